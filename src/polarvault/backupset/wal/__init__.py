"""The WAL that comes with a backup, as a `wal.source.WalSource`. Start at `of_backup`.

Leaves pg_wal as a directory to `walfiles`; owns the WAL in tar files: `tars`, and `streamed` for compressed ones.
"""
