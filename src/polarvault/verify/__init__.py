"""Use case: read a whole backup and report everything that is wrong with it. Start reading at run.py."""
