"""Use case: a base backup into a directory, tar files or standard output; start reading at take.py."""
