"""The questions that a role answers, and the answers that most servers have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar, TypedDict

from polarvault.backupset.backup import Backup
from polarvault.backupset.model import Inventory
from polarvault.errors import UsageError
from polarvault.instance.model import Role
from polarvault.model import versions
from polarvault.polardb.settings import Wanted
from polarvault.recovery.wal.places import places_of
from polarvault.restore.facts import BackupFacts, HostFacts, RestoreFacts
from polarvault.restore.model import Link, RestoreRequest
from polarvault.restore.plan.backup import judge_backup, missing_wal
from polarvault.restore.plan.roles.storage import MERGED, OWN, StorageRules
from polarvault.restore.plan.settings.archiving import check_archiving
from polarvault.restore.plan.settings.hot_standby import check_given
from polarvault.storage.trees.pfs.mount import LIBRARY_VARIABLE, MOST_HOST_ID
from polarvault.walarchive.restore_command import restore_command

if TYPE_CHECKING:
    from polarvault.restore.plan.settings.book import SettingsBook


class _ForPfs(TypedDict, total=False):
    pfs_cluster: str
    environment: dict[str, str]


def _for_pfs(host: HostFacts) -> _ForPfs:
    """Return what a restore_command has to be told where pg_wal lies in PFS: the server's environment is another."""
    if host.layout.pfs is None:
        return {}
    named = {} if host.pfs is None or host.pfs.library is None else {LIBRARY_VARIABLE: host.pfs.library}
    return {"pfs_cluster": host.layout.pfs.cluster, "environment": named}


class RoleRules(ABC):
    """What a restore does for one role; the class attributes and methods here are those of a server of its own."""

    role: ClassVar[Role]
    # Only the local half of a PolarDB backup is read, compared and laid out.
    takes_local_half_only: ClassVar[bool] = False
    # No server starts without postgresql.conf, which is put in place last; else that is pg_control.
    is_armed_by_main_file: ClassVar[bool] = False
    # pg_hba.conf may be edited where it would keep the server from starting.
    settles_hba: ClassVar[bool] = True
    # For people: where WAL comes from, if not from the backup.
    wal_words: ClassVar[str | None] = None

    def check_request(self, request: RestoreRequest) -> None:
        """Raise UsageError for options that exclude each other or have no sense for the role."""
        self.check_role_options(request)
        check_archiving(request)
        if request.merge and (request.shared_target or request.pfs):
            raise UsageError("--merge puts both halves into -D; it excludes --polardata")
        if request.delta and request.pfs:
            raise UsageError(
                "--delta changes directories of this machine only, not a shared half in PFS",
                hint="restore into a new directory there, without --delta",
            )
        if request.host_id is not None and request.pfs and request.host_id > MOST_HOST_ID:
            raise UsageError(f"--hostid {request.host_id}: a host number in PFS is at most {MOST_HOST_ID}")
        if request.host_id is not None and request.host_id < 1:
            raise UsageError(f"--hostid {request.host_id}: a host number is 1 or more")
        if request.port is not None and not 1 <= request.port <= 65535:
            raise UsageError(f"--port {request.port}: a port is a number from 1 to 65535")

    @abstractmethod
    def check_role_options(self, request: RestoreRequest) -> None:
        """Raise UsageError for options that do not fit the role."""

    def judge_backup(
        self, request: RestoreRequest, source: Backup, inventory: Inventory, chain: Sequence[Link] = ()
    ) -> BackupFacts:
        """Return what the backup is; raise BackupUnusable for one that no such server can be made of."""
        return judge_backup(request, source, inventory, chain)

    def storage(self, request: RestoreRequest) -> StorageRules:
        """Return the rules of where the data are."""
        return MERGED if request.merge else OWN

    def check_host(self, request: RestoreRequest, backup: BackupFacts, host: HostFacts) -> None:
        """Raise UsageError for places that do not go together, beyond what holds for every target."""
        return

    def surveys_wal(self, request: RestoreRequest) -> bool:
        """Tell whether the WAL is read to see where recovery will end."""
        return False

    def streams_wal(self, request: RestoreRequest) -> bool:
        """Tell whether the server gets the WAL that the backup lacks from a primary."""
        return False

    def restore_command(self, request: RestoreRequest, facts: RestoreFacts) -> str | None:
        """Return the restore_command to write; None leaves one that --set names, or none, in place."""
        recovery = request.recovery
        if any(name == "restore_command" for name, _ in request.settings) or not recovery.has_places:
            return None
        if request.brings_wal:
            return None
        control = facts.backup.inventory.control
        return restore_command(
            places_of(recovery, facts.backup.source),
            system_identifier=control.system_identifier if control else None,
            # What holds WAL now and is empty later is a file system that is not mounted any more.
            refuse_empty=facts.host.wal_directories_hold_files,
            last_segment=facts.recovery.last_segment if facts.recovery else None,
            **_for_pfs(facts.host),
        )

    @abstractmethod
    def settle(self, book: SettingsBook) -> None:
        """Make the settings that the role needs."""

    def last_settings(self, request: RestoreRequest) -> Iterable[Wanted]:
        """Yield what comes after all other settings but those that were asked for."""
        return ()

    def check_settled(self, book: SettingsBook) -> None:
        """Raise UsageError for what was asked for and would stop the server on its way."""
        check_given(book)

    def backup_warnings(self, request: RestoreRequest, backup: BackupFacts) -> list[str]:
        """Say what is odd about the backup, or has to be supplied."""
        inventory, label = backup.inventory, backup.label
        warnings = []
        if inventory.is_newer:
            known = versions.is_not_known(f"the backup's server, PostgreSQL {backup.major_version},")
            warnings.append(f"{known}; the files are laid out and compared with the manifest, and no more can be said")
        if label is None:
            warnings.append("the backup has no backup_label; pg_control says that the server was shut down cleanly")
        elif (missing := missing_wal(inventory, label)) is not None and not self.is_wal_supplied(request):
            warnings.append(
                f"the backup does not hold WAL segment {missing}, which recovery needs: "
                "name the directory that holds it: --wal DIR"
            )
        return warnings + self.storage(request).left_out(inventory)

    def is_wal_supplied(self, request: RestoreRequest) -> bool:
        """Tell whether WAL that the backup lacks comes from elsewhere."""
        command = any(name == "restore_command" for name, _ in request.settings)
        return command or self.streams_wal(request) or request.recovery.has_places

    def disables_subscriptions(self, request: RestoreRequest) -> bool:
        """Tell whether the source's subscriptions are switched off in a copy that was started and can be written."""
        return False
