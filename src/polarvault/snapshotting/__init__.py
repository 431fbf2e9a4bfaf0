"""Use case: a snapshot of a running server that is a backup: `polarvault snapshot create`.

Start reading at `create.py`. `shelf` is the directory that holds snapshots, with what each says of itself; `complete`
makes a plain backup of what the provider has made. How directories are snapshotted is left to `snapshots`, how the
server is asked to `taking`.
"""
