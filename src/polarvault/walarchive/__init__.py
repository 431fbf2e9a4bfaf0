"""WAL outside of a server: received into directories, and read back from them.

`receive` starts the half that writes (`polarvault receivewal`); `directory` and `fetch` are the half that reads
(`polarvault wal fetch` and everybody who needs archived WAL). Owns file names and their forms (whole, partial,
compressed). What the WAL says is read in `wal`; when to recover and to where is decided in `recovery`.
"""
