"""Backups in a repository, read and judged: one backup (`backup`), everything that is there (`check`)."""
