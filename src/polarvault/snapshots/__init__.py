"""Snapshots and clones of directories, whatever the file system: ZFS, btrfs, reflinks, the user's commands, copies.

`model` is the seam (`SnapshotProvider`) and its values; `choice` finds the provider of a path. Each provider is a
module of its own: `zfs`, `btrfs`, `trees` (reflinks and plain copies), `commands` (four commands of the configuration).
Everything that is made here has a name that begins with one prefix and carries an id (`names`), and the same id again
where only its maker can have put it: a property, an attribute, a file. Nothing without both is ever destroyed.
Knows no server and no backup: what a snapshot is worth as one is left to its callers.
"""
