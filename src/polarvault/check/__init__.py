"""Use case: can this server be backed up, and would the backup restore? Start reading at run.py."""
