"""What an archive_command does: look at the file, mark what is pushed ahead, spool, write into a plain directory.

`polarvault wal push` starts once for every segment: nothing heavy may be imported at the top of these modules.
"""
