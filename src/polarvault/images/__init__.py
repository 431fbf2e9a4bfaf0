"""Use case: images, restored copies that WAL is replayed into, each the beginning of the next.

Start reading at `make.py`. An image is a full backup that read nothing of its source but WAL, proved by the very replay
that made it. `area` is the directory that holds them; `finish` makes a plain backup of a server that was stopped in
recovery; `nearest` offers images and snapshots beside the backups of a cluster. A server of an image is as confined as
a drill's, never writable, and never on a timeline that nobody asked for.
"""
