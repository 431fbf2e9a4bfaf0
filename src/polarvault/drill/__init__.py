"""Use case: prove that a backup restores, by restoring it. Start reading at run.py."""
