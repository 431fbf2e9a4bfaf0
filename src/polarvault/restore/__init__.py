"""Use case: lay a backup out so that it starts. Start reading at run.py.

Owns one restore from request to running server: `plan` asks, decides and writes nothing, `write` lays out and
completes, `standby` asks the primary before and follows it afterwards. What was asked are `facts`; what was decided is
in `model`. Leaves to `backupset` what a backup is, to `recovery` which WAL is replayed up to where, to `instance` the
server's programs and its start, and to `pgconf` how settings are edited.
"""
