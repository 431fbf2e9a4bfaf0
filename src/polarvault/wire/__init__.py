"""Replication protocol: message framing, commands, result rows. No I/O."""
