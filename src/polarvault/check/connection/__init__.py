"""Whether a backup gets in: the way to the server, the login, the role, and whether it is the right node."""
