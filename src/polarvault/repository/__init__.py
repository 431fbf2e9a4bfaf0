"""Backups in a repository: every one full to restore, incremental to take.

Owns the format (`docs/internals/repository-format.md`) and everything that writes and reads it. Knows named byte
objects (`storage.objects`) and no server: what a backup consists of is handed in, and where it is restored to is the
caller's.
"""
