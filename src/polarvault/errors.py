"""The error tree, by who must act; exit statuses live on the classes.

Messages are lower case, have no full stop, and name the object and the position. A hint is a line to type or
the next step to take. Every class has an id of its own, which --json shows and which never changes; docs/errors.md is
made from the classes. The drop-in commands (basebackup) exit 1 for every failure, as pg_basebackup does; the other
commands use the class's own status.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # `wal fetch` starts once for every WAL segment: importing typing would double its start-up.
    from typing import ClassVar


class PolarvaultError(Exception):
    """Base of everything that a user, a server or a disk can cause; never shown with a traceback.

    id: stable, for programs. actor: who has to do something; remedy: what, when the message has no hint.
    """

    id: ClassVar[str] = "failure"
    actor: ClassVar[str] = "the operator"
    remedy: ClassVar[str] = "read the message; if it does not help, report it with the whole command and output"

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None, detail: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.detail = detail


class UsageError(PolarvaultError):
    """The command line is wrong; nothing was touched."""

    id = "usage"
    actor = "the caller"
    remedy = "correct the command line as the message says; `COMMAND --help` shows its options"

    exit_code = 2


class ConfigurationError(UsageError):
    """The configuration file is wrong; every mistake is named with its line, and nothing was touched."""

    id = "configuration"
    actor = "the operator"
    remedy = "correct the lines that the message names; `polarvault config show` checks the file"


class TargetNotEmpty(PolarvaultError):
    """A target directory holds something already; it was not touched."""

    id = "target-not-empty"
    actor = "the operator"
    remedy = "name another directory, or see whose it is; nothing in it was changed"


class ServerError(PolarvaultError):
    """The server refused; every field of its message is kept (manual, "Error and Notice Message Fields")."""

    id = "server-error"
    actor = "the DBA"
    remedy = 'look up the SQLSTATE in the manual ("PostgreSQL Error Codes"), and read the server\'s log'

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

    id = "server-refused"
    actor = "the DBA"
    remedy = (
        "do what the hint says on the server, or name another server; `polarvault check` finds all such things at once"
    )


class ConnectionFailed(PolarvaultError):
    """No connection was made: address, authentication, pg_hba.conf, limits."""

    id = "connection-failed"
    actor = "the DBA"
    remedy = "try the same address and user with psql; see listen_addresses, pg_hba.conf, password and firewall"


class ConnectionLost(PolarvaultError):
    """An established connection broke; the only retryable server failure."""

    id = "connection-lost"
    actor = "nobody at first"
    remedy = "run the command again; if it happens often, see the server's log and what lies between"


class RemoteProtocolError(PolarvaultError):
    """The peer sent something that the protocol does not allow."""

    id = "remote-protocol"
    actor = "us, or whoever runs what answers there"
    remedy = "see that a PostgreSQL server answers there and no proxy changes what it sends; else report it"


class CheckpointBlocked(PolarvaultError):
    """The backup waits for a checkpoint that a replication slot holds up (PolarDB)."""

    id = "checkpoint-blocked"
    actor = "the DBA"
    remedy = "start what reads from the slot that the message names; drop the slot only if that is gone for good"


class BackupIncomplete(PolarvaultError):
    """The server leaves data out of the backup; its administrator has to mend what it cannot or will not send."""

    id = "backup-incomplete"
    actor = "the DBA"
    remedy = "mend what the message names on the server, and take the backup again"


class WalIncomplete(PolarvaultError):
    """WAL that the backup needs did not arrive; names the LSN range."""

    id = "wal-incomplete"
    actor = "the operator"
    remedy = "take the backup again, with -X stream and a slot; see why WAL did not come"


class TargetUnreachable(PolarvaultError):
    """The recovery target lies before the end of the backup or is not in the WAL; says what can be reached."""

    id = "target-unreachable"
    actor = "the operator"
    remedy = "choose a target in the range that is shown, an older backup, or name more WAL with --wal"


class StorageFailed(PolarvaultError):
    """The local file system refused: full, read-only, no permission."""

    id = "storage-failed"
    actor = "the administrator of this machine"
    remedy = "see the file system that the message names: permission, mount, hardware, kernel log"


class DiskFull(StorageFailed):
    """No space is left, or the quota is used up: a receiver waits and goes on."""

    id = "disk-full"
    actor = "the administrator of this machine"
    remedy = "make space, or raise the quota; a receiver goes on by itself"


class StoreUnreachable(StorageFailed):
    """A store of objects did not answer, or not to the end; the only failure of a store that is tried again."""

    id = "store-unreachable"
    actor = "nobody at first"
    remedy = "run the command again; if it happens often, see the network, the proxy and the store's own status page"


class StoreForbidden(StorageFailed):
    """A store of objects refused the credentials, or what they may do."""

    id = "store-forbidden"
    actor = "the administrator of the store"
    remedy = "see the credentials, and that they may do what the message names; clocks that disagree are refused too"


class StoreFull(DiskFull):
    """A store of objects has no room left, or its quota is used up."""

    id = "store-full"
    actor = "the administrator of the store"
    remedy = "make space, or raise the quota"


class ObjectMissing(StorageFailed):
    """An object that must be there is not."""

    id = "object-missing"
    actor = "the operator"
    remedy = "see that the address is the right one; if an object was removed, get it back from another copy"


class ObjectExists(StorageFailed):
    """Something has the name of a new object already; nothing was written."""

    id = "object-exists"
    actor = "the operator"
    remedy = "see what wrote it; nothing was changed"


class WalGap(PolarvaultError):
    """WAL is missing between what is kept and what can be had; names segment, timeline and LSN."""

    id = "wal-gap"
    actor = "the operator"
    remedy = "supply the missing segments from another WAL archive, or take a new base backup"


class SlotLost(WalGap):
    """The replication slot has lost WAL that was not received (max_slot_wal_keep_size); no receiver can go on."""

    id = "slot-lost"
    remedy = "drop the slot and make it again, receive into an empty directory, take a new base backup"


class TimelineDiverged(PolarvaultError):
    """The WAL at hand and the server, or the target, are on timelines that have parted."""

    id = "timeline-diverged"
    actor = "the operator"
    remedy = "find out which history counts; receive into another directory, or choose a timeline with --timeline"


class IntegrityError(PolarvaultError):
    """Stored or received bytes are wrong: never retried, never downgraded."""

    id = "integrity"
    actor = "the operator"
    remedy = "use another copy; keep the damaged one until it is known why"

    exit_code = 3


class ObjectDiffers(IntegrityError):
    """A new object and what has its name already are not the same; nothing was changed."""

    id = "object-differs"
    remedy = "find out what else writes there (a second cluster of the same name, a copy); nothing was overwritten"


class ObjectTruncated(IntegrityError):
    """An object is shorter than it must be."""

    id = "object-truncated"
    remedy = "get the object back from another copy; keep the short one until it is known why"


class ObjectDamaged(IntegrityError):
    """An object of a repository, or a part of one, is not what was written. chunk: which one, where a file needs it."""

    id = "object-damaged"
    remedy = "get the object back from another copy of the repository, or restore an older backup; keep the damaged one"

    chunk: object = None


class RepositoryMismatch(IntegrityError):
    """An object is of another repository than the one around it, or is encrypted where that is not, or the reverse."""

    id = "repository-mismatch"
    remedy = "find out how it came there, and who can write there; nothing was changed"


class RepositoryNewer(PolarvaultError):
    """A repository has a format, or a feature, that this program does not know."""

    id = "repository-newer"
    actor = "the operator"
    remedy = "use the version of this program that wrote it, or a newer one"


class RepositoryNotFound(PolarvaultError):
    """There is no repository at an address, or no such cluster or backup in it."""

    id = "repository-not-found"
    actor = "the operator"
    remedy = "check the address and the name; a new repository is made on purpose only"


class KeyUnavailable(PolarvaultError):
    """A repository is encrypted, and its passphrase or key file is not given, or cannot be read."""

    id = "key-unavailable"
    actor = "the operator"
    remedy = "give the passphrase or the key file as the hint says"


class WrongKey(PolarvaultError):
    """A passphrase or a key file is not one of this repository's."""

    id = "wrong-key"
    actor = "the operator"
    remedy = "give the one that belongs to this repository; without any of them its content cannot be had"


class WalDamaged(IntegrityError):
    """WAL is wrong where it would have to go on, so that its end is not where recovery would take it to be."""

    id = "wal-damaged"
    remedy = "take another copy of the segment that the message names; restore to a target before it otherwise"


class ChecksumFailure(PolarvaultError):
    """Pages in the backup have wrong checksums; the files are kept, without a manifest."""

    id = "page-checksum"
    actor = "the DBA"
    remedy = "see the server's storage at once, and restore the damaged relations from an older backup"


class BackupUnusable(PolarvaultError):
    """What was given as a backup cannot be restored as asked."""

    id = "backup-unusable"
    actor = "the operator"
    remedy = "name the backup itself or another one; the message says what is missing"


class StartFailed(PolarvaultError):
    """The restored server did not start or did not answer."""

    id = "start-failed"
    actor = "the operator"
    remedy = "read the server's log that the message names"

    exit_code = 4


class Interrupted(PolarvaultError):
    """SIGINT, SIGTERM or SIGHUP arrived; cleanup has been done."""

    id = "interrupted"
    actor = "nobody"
    remedy = "run the command again"
