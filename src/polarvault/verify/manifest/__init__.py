"""The manifests of a backup: reading them, and what they lead to expect on disk."""
