"""The error tree, by who must act; exit statuses live on the classes.

Messages are lower case, have no full stop, and name the object and the position. A hint is a line to type or
the next step to take. The drop-in commands (basebackup) exit 1 for every failure, as pg_basebackup does; the
other commands use the class's own status.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # `wal fetch` starts once for every WAL segment: importing typing would double its start-up.
    from typing import ClassVar


class PolarvaultError(Exception):
    """Base of everything that a user, a server or a disk can cause; never shown with a traceback."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None, detail: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.detail = detail


class UsageError(PolarvaultError):
    """The command line is wrong; nothing was touched."""

    exit_code = 2


class TargetNotEmpty(PolarvaultError):
    """A target directory holds something already; it was not touched."""


class ServerError(PolarvaultError):
    """The server refused; every field of its message is kept (manual, "Error and Notice Message Fields")."""

    def __init__(
        self,
        message: str,
        *,
        sqlstate: str = "",
        severity: str = "ERROR",
        detail: str | None = None,
        hint: str | None = None,
        routine: str = "",
    ) -> None:
        super().__init__(message, hint=hint, detail=detail)
        self.sqlstate = sqlstate
        self.severity = severity
        self.routine = routine


class ServerRefused(PolarvaultError):
    """The server can be reached but cannot be backed up as asked: wrong role, wrong version, wrong node."""


class ConnectionFailed(PolarvaultError):
    """No connection was made: address, authentication, pg_hba.conf, limits."""


class ConnectionLost(PolarvaultError):
    """An established connection broke; the only retryable server failure."""


class RemoteProtocolError(PolarvaultError):
    """The peer sent something that the protocol does not allow."""


class CheckpointBlocked(PolarvaultError):
    """The backup waits for a checkpoint that a replication slot holds up (PolarDB)."""


class BackupIncomplete(PolarvaultError):
    """The server leaves data out of the backup; its administrator has to mend what it cannot or will not send."""


class WalIncomplete(PolarvaultError):
    """WAL that the backup needs did not arrive; names the LSN range."""


class TargetUnreachable(PolarvaultError):
    """The recovery target lies before the end of the backup or is not in the WAL; says what can be reached."""


class StorageFailed(PolarvaultError):
    """The local file system refused: full, read-only, no permission."""


class DiskFull(StorageFailed):
    """No space is left, or the quota is used up: a receiver waits and goes on."""


class WalGap(PolarvaultError):
    """WAL is missing between what is kept and what can be had; names segment, timeline and LSN."""


class TimelineDiverged(PolarvaultError):
    """The WAL at hand and the server, or the target, are on timelines that have parted."""


class IntegrityError(PolarvaultError):
    """Stored or received bytes are wrong: never retried, never downgraded."""

    exit_code = 3


class WalDamaged(IntegrityError):
    """WAL is wrong where it would have to go on, so that its end is not where recovery would take it to be."""


class ChecksumFailure(PolarvaultError):
    """Pages in the backup have wrong checksums; the files are kept, without a manifest."""


class BackupUnusable(PolarvaultError):
    """What was given as a backup cannot be restored as asked."""


class StartFailed(PolarvaultError):
    """The restored server did not start or did not answer."""

    exit_code = 4


class Interrupted(PolarvaultError):
    """SIGINT, SIGTERM or SIGHUP arrived; cleanup has been done."""
