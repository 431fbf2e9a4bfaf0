"""WAL outside of a server: directories as a source of segments, and `polarvault wal fetch`.

Owns file names and their forms (whole, partial, compressed), and what of them is served to a recovery. What the WAL
says is read in `wal`; when to recover and to where is decided in `restore`.
"""
