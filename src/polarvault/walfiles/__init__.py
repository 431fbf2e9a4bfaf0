"""WAL in files: what their names say, how they are read, and which of several copies counts. Reads only.

Owns the forms of a segment's file (whole, partial, compressed: `files`, `reading`), a directory and a list of places as
a `wal.source.WalSource` (`directory`, `search_list`), and the rule by which a copy is chosen, whatever source it is in
(`choice`). Leaves the WAL in a backup's tar files to `backupset`, writing to `walarchive`, what the bytes say to `wal`.
"""
