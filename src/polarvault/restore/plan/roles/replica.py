"""A read-only PolarDB node on the primary's own storage, from the local half of a backup alone.

Facts 5.1 and 6.3, measured on PolarDB 15.8: a copy of a local half becomes a replica once backup_label and
restore_command are gone (with them the server PANICs, because it may not write to the shared storage) and
replica.signal is there. Without replica.signal the same copy starts as a second writer on live storage and destroys
data; nothing locks it (`write/replica.py` has the order that keeps it from that).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from polarvault.backupset.backup import Backup
from polarvault.backupset.model import Area, Form, Inventory
from polarvault.errors import BackupUnusable, UsageError
from polarvault.instance.model import Role
from polarvault.polardb.settings import DATADIR, LOCALFS_MODE, SHARED_STORAGE_MODE, is_true, uses_shared_storage
from polarvault.recovery.target import RecoveryRequest
from polarvault.restore.facts import BackupFacts, HostFacts
from polarvault.restore.model import Archiving, Link, RestoreRequest
from polarvault.restore.plan.backup import local_settings, major_version
from polarvault.restore.plan.places import is_within
from polarvault.restore.plan.roles.standby import FollowerRules
from polarvault.restore.plan.roles.storage import LIVE, StorageRules, storage_directory
from polarvault.restore.plan.settings.book import SettingsBook

# What decides whose storage is opened, and what a replica dies of.
_NOT_TO_BE_SET = (DATADIR, SHARED_STORAGE_MODE, "restore_command", "archive_mode", "primary_slot_name")
_RELATION = re.compile(r"base/\d+/\d+\Z")


class ReplicaRules(FollowerRules):
    """The rules of `--as replica`."""

    role = Role.REPLICA
    takes_local_half_only = True
    is_armed_by_main_file = True
    wal_words = "from the primary's storage and its stream"
    settles_hba = False

    def check_role_options(self, request: RestoreRequest) -> None:
        """Refuse what a replica lacks or cannot have."""
        super().check_role_options(request)
        archiving = request.archiving
        if archiving is not Archiving.OFF or request.archive_command is not None:
            raise UsageError(
                f"--archive {archiving.value}: a replica cannot archive: it must not write to the shared storage, "
                "where the archiver marks what is done, and PANICs again and again when it tries",
                hint="archive on the primary, or from a standby: --as standby --archive always",
            )
        if not request.primary_conninfo or not request.slot:
            missing = "--primary-conninfo CONNSTR" if not request.primary_conninfo else "--slot NAME --create-slot"
            raise UsageError(
                "a replica follows a running primary through a slot of its own there", hint=f"add {missing}"
            )
        for option, given in (
            ("--merge", request.merge),
            ("--shared-from", request.shared_from),
            ("-T", request.tablespace_mapping),
        ):
            if given:
                raise UsageError(f"{option}: a replica is made of the local half alone, on the primary's storage")
        if request.configuration is not None:
            raise UsageError(
                "--configuration: a replica starts with the postgresql.conf of the backup's local half, which is what "
                "makes it a replica",
                hint="leave it out, and change what the replica needs with --set NAME=VALUE",
            )
        for name, _ in request.settings:
            if name in _NOT_TO_BE_SET:
                raise UsageError(
                    f"--set {name}: for a replica this is decided by the primary",
                    hint="--polardata DIRECTORY names the primary's storage" if name == DATADIR else "leave it out",
                )

    def only_for_primaries(self, recovery: RecoveryRequest) -> Iterator[str]:
        """Yield WAL directories as well: the server PANICs when a replica has a restore_command (facts 3)."""
        yield from super().only_for_primaries(recovery)
        if recovery.wal_directories:
            yield "--wal"

    def judge_backup(
        self, request: RestoreRequest, source: Backup, inventory: Inventory, chain: Sequence[Link] = ()
    ) -> BackupFacts:
        """Return what the local half is; its label is of no use to a replica."""
        inventory = _local_half(source, inventory)
        value = local_settings(inventory).value
        facts = BackupFacts(
            source=source, inventory=inventory, label=None, major_version=major_version(inventory, source),
            is_polardb=True, had_shared_half=False,
        )  # fmt: skip
        if not uses_shared_storage(value):
            raise BackupUnusable(
                f'"{source.path}" is not of a PolarDB instance on shared storage: {SHARED_STORAGE_MODE} is '
                f"{value(SHARED_STORAGE_MODE) or 'not set'}",
                hint="a replica shares the storage of its primary; for a copy of its own use --as standby",
            )
        return facts

    def storage(self, request: RestoreRequest) -> StorageRules:
        """Return the rules of the primary's storage."""
        return LIVE

    def check_host(self, request: RestoreRequest, backup: BackupFacts, host: HostFacts) -> None:
        """Refuse a target in the live storage, and a second server with one number on PFS."""
        value = local_settings(backup.inventory).value
        if (host.layout.pfs is not None or not is_true(value(LOCALFS_MODE))) and request.host_id is None:
            raise UsageError(
                "on PFS every server that mounts the storage needs a number of its own (polar_hostid)",
                hint=f"add --hostid N, another than the primary's ({value('polar_hostid') or 1})",
            )
        storage = host.storage_path
        assert storage is not None
        target, shown = host.places[0], storage_directory(host.layout.live_datadir or "")
        if is_within(target.real_path, storage) or is_within(storage, target.real_path):
            raise UsageError(
                f'target "{target.path}" and the primary\'s storage "{shown}" lie inside one another',
                hint="choose another target",
            )

    def check_settled(self, book: SettingsBook) -> None:
        """Refuse nothing: a replica applies no WAL to pages of its own."""

    def backup_warnings(self, request: RestoreRequest, backup: BackupFacts) -> list[str]:
        """Say nothing: of the backup only settings are used."""
        return []


def _local_half(source: Backup, inventory: Inventory) -> Inventory:
    """Reduce what was found to the local half; raise BackupUnusable when it cannot be told apart."""
    names = frozenset(key for key in inventory.names if key[0] is Area.LOCAL)
    if any(_RELATION.match(name) for _, name in names):
        raise BackupUnusable(
            f'"{source.path}" holds data files next to the settings: it is no local half of a PolarDB backup',
            hint="a replica is made from a backup of PolarDB on shared storage, in two halves or as base.tar",
        )
    return replace(
        inventory,
        files={key: content for key, content in inventory.files.items() if key[0] is Area.LOCAL},
        sizes={Area.LOCAL: inventory.sizes.get(Area.LOCAL, 0)},
        tablespace_sizes={},
        wal={},
        names=names,
        tablespaces=(),
        has_control=False,
        control=None,
        file_count=inventory.file_count if source.form is not Form.TAR_FILE else len(names),
    )
