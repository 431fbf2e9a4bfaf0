"""What is in a repository: clusters, their backups, leftovers, intents, WAL; start at `repository`."""
