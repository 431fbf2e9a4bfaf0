"""A directory that WAL is received into: a `wal.store.WalStore`. Start at `directory`.

Owns the names, the bytes and the order of fsyncs of what is written there: segments (`writer`, `segment_file`,
`durability`), histories, the lock and the status (`status_file`), and where receiving goes on (`resume`). Leaves to
`receive` what is asked of a server, and when.
"""
