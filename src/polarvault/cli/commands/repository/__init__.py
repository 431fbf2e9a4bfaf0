"""The commands about backups in a repository, a file each; `pin`, `unpin` and `note` share one."""
