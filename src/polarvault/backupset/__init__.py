"""Base backups: recognise (`recognise`, `source`), look through (`inventory`), deliver (`backup`: the seam; `on_disk`).

Knows no server, and no repository: that is another implementation of `backup.Backup`.
"""
