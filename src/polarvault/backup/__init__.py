"""Take a base backup into a repository: `take`. Parent, comparison with the server's manifest, record."""
