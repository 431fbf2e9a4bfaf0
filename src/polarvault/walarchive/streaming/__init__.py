"""Received WAL on its way into repositories.

Start reading at `store`; `slices` is what waits, `uploader` what takes it away.
"""
