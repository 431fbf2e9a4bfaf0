"""Block maps in a repository: what the WAL of each segment changes, so that nobody has to read that WAL for it.

`format.py` is a map's bytes, `stored.py` the maps of one cluster, `making.py` makes those that are missing from the WAL
that is there. What a map is and what a reader may rely on: `polarvault.wal.block_maps`. Maps are derived: one that is
lost or damaged costs reading WAL, or a backup that reads everything, and nothing else.
"""
