"""The server's configuration files: which, where, and what is in them (`files`), as a backup finds them (`server`)."""
