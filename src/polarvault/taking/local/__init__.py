"""The local source: a backup whose files are read here, between pg_backup_start and pg_backup_stop, by many threads.

`place` finds the directories and proves that they are this server's; `session` holds the backup on the server;
`walk` and `rules` say what a base backup consists of; `content` reads one file, every page of it checked; `source`
brings them together. Files come by trees (`storage.trees`): nothing here opens a path of its own but `place`.
"""
