"""WAL outside of a server: received into directories, and served from them.

`receive` starts the half that writes (`polarvault receivewal`), `fetch` the half that serves (`polarvault wal fetch`).
Leaves to `walfiles` how WAL lies in files and which copy of it counts, to `wal` what it says, to `recovery` when to
recover and to where.
"""
