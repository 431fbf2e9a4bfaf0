"""What is looked at in the copy, and before it in the backup's own list of files; each returns what it found."""
