"""Whether a cluster's repository can take backups and WAL: the store and its rights, what arrives, what goes next."""
