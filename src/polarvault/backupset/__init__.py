"""Base backups on disk, as files: recognise them, list them, read their tar files. Knows no server."""
