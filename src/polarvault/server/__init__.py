"""The I/O half of the client: connections, replication commands, the two copy transports."""
