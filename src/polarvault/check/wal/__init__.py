"""Whether the WAL that a backup needs is written, kept and handed out, and whether it leaves the server."""
