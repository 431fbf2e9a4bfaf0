"""Bytes at rest on a local file system: durable writes, sparse files, fast copies."""
