"""File formats of PostgreSQL: tar, backup_manifest, backup_label, pg_control, pages. No I/O."""
