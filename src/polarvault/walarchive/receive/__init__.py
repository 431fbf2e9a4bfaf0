"""Receive WAL from a server until told to stop, into any `wal.store.WalStore`. Start at `run`.

Owns connections, slots, timelines, acknowledging, and what is retried. Leaves to the store how WAL is kept.
"""
