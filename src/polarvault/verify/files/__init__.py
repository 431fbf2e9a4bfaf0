"""Reading the files of a backup, once and in parallel, and comparing them with the manifest's list."""
