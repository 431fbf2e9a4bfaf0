"""Read one backup from a repository: its files, ranges of them, everything in the order of the packs; verify it."""
