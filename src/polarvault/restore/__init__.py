"""Use case: lay a backup out so that it starts; start reading at run.py."""
