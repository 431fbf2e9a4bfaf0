"""The WAL of a recovery: what there is of it, which chain of segments is replayed, where a backup's own ends."""
