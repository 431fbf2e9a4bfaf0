"""Taking a base backup from a server, wherever it goes: what is asked, what is refused, the stream, the WAL with it.

Start at `take.py`. Where the backup goes is a `target.BackupTarget`; `basebackup` has directories, tar files and
standard output. This package writes nothing itself and makes nothing valid: targets do.
"""
