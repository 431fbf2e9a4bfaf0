"""What goes wrong with snapshots, by who must act."""

from __future__ import annotations

from polarvault.errors import PolarvaultError


class SnapshotFailed(PolarvaultError):
    """A program or the file system did not do what was asked: it failed, hung, or answered nonsense."""

    id = "snapshot-failed"
    actor = "the administrator of this machine"
    remedy = "run the command that the message names by hand, as the same user; what was begun has been taken back"


class SnapshotRefused(PolarvaultError):
    """These directories cannot be taken as asked: the snapshot would not hold what it must."""

    id = "snapshot-refused"
    actor = "the operator"
    remedy = "do what the hint says; nothing was made"


class NotOurs(PolarvaultError):
    """What is to be destroyed was not made by this program, or is not what it made: it is left as it is."""

    id = "not-ours"
    actor = "the operator"
    remedy = "see what it is; if it really is to go, remove it by hand"


class StillNeeded(PolarvaultError):
    """A snapshot has clones that cannot live without it."""

    id = "still-needed"
    actor = "the operator"
    remedy = "remove the clones first"
