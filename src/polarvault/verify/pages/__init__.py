"""Pages with a wrong checksum: what they are, and whether the WAL of the backup puts them right."""
