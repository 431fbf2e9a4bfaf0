"""Where the copy of a drill runs and disturbs nobody: its directory, walls, server, and that one's processes."""
