"""Plan a restore: everything that can be refused is refused here, before anything is written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace

from polarvault.errors import BackupUnusable, StorageFailed, TargetNotEmpty, UsageError
from polarvault.pgconf.configuration import Configuration, MemoryReader
from polarvault.pgfiles.backup_label import BackupLabel, parse_backup_label
from polarvault.pgfiles.control import ClusterState
from polarvault.polardb.settings import DATADIR, SHARED_STORAGE_MODE, uses_shared_storage
from polarvault.restore.host import Account, Host
from polarvault.restore.model import (
    SHARED_PREFIX,
    Area,
    BackupSource,
    Form,
    Inventory,
    Layout,
    RestorePlan,
    RestoreRequest,
    Role,
    SpaceNeed,
    Tablespace,
)
from polarvault.restore.settings import SettingsPlanner

# pg_hba.conf for a backup that has none; without one the server does not start.
_MINIMAL_HBA = b"""# Written by polarvault restore: the backup holds no pg_hba.conf.
local   all             all                                     peer
host    all             all             127.0.0.1/32            scram-sha-256
host    all             all             ::1/128                 scram-sha-256
"""


def plan_restore(
    request: RestoreRequest, source: BackupSource, inventory: Inventory, host: Host, account: Account
) -> RestorePlan:
    """Decide everything about a restore; raise with the next step for whatever would not work.

    The result names no programs yet; run.py adds them.
    """
    _check_request(request)
    major = _major_version(inventory, source)
    label = _label(inventory, source)
    is_polardb, had_shared_half = _polardb(request, source, inventory)
    layout = plan_layout(request, inventory, had_shared_half=had_shared_half)
    _check_targets(layout, source, inventory, host)
    warnings = _source_warnings(request, inventory, label)
    planner = _plan_settings(
        request, inventory, layout, host, account, is_polardb=is_polardb, had_shared_half=had_shared_half
    )
    files = dict(planner.configuration.edited())
    hba = os.path.join(layout.local, "pg_hba.conf")
    if inventory.file("pg_hba.conf") is None and not planner.configuration.value("hba_file"):
        warnings.append("the backup holds no pg_hba.conf: one that admits local users is written")
        files[hba] = _MINIMAL_HBA
    return RestorePlan(
        request=request,
        source=source,
        inventory=inventory,
        layout=layout,
        label=label,
        major_version=major,
        is_polardb=is_polardb,
        changes=tuple(planner.changes),
        files=files,
        signal_path=os.path.join(layout.local, request.role.signal_file),
        space=tuple(_space(layout, inventory, source, host)),
        warnings=(*warnings, *planner.warnings),
        binaries=None,
        expected_datadir=planner.configuration.value(DATADIR) if layout.shared else None,
    )


def check_space(plan: RestorePlan) -> None:
    """Raise when a file system lacks the space that the plan needs."""
    for need in plan.space:
        if need.needed > need.available:
            raise StorageFailed(
                f'not enough space for "{need.path}": {need.needed} bytes are needed, {need.available} are free',
                hint="free space or choose another target (df -h); nothing was written",
            )


def plan_layout(request: RestoreRequest, inventory: Inventory, *, had_shared_half: bool) -> Layout:
    """Decide where each area goes."""
    shared = None
    if had_shared_half and not request.merge:
        shared = request.shared_target or os.path.join(request.target, SHARED_PREFIX)
    elif request.shared_target is not None:
        raise UsageError("--polardata: the backup has no shared half", hint="leave --polardata out")
    if request.merge and not had_shared_half:
        raise UsageError("--merge: the backup has no shared half to merge", hint="leave --merge out")
    spaces = {} if shared or request.merge else _map_tablespaces(request.tablespace_mapping, inventory.tablespaces)
    return Layout(request.target, shared, spaces, merged=request.merge)


def _check_request(request: RestoreRequest) -> None:
    if request.role is Role.PRIMARY:
        for option, value in (("--primary-conninfo", request.primary_conninfo), ("--slot", request.slot)):
            if value:
                raise UsageError(f"{option} is for a standby", hint="add --as standby")
    if request.merge and request.shared_target:
        raise UsageError("--merge puts both halves into -D; it excludes --polardata")
    if request.port is not None and not 1 <= request.port <= 65535:
        raise UsageError(f"--port {request.port}: a port is a number from 1 to 65535")


def _major_version(inventory: Inventory, source: BackupSource) -> int:
    content = inventory.file("PG_VERSION")
    text = (content or b"").decode("ascii", "replace").strip()
    if not text.isdigit():
        raise BackupUnusable(
            f'"{source.path}" holds no PG_VERSION' if content is None else f"PG_VERSION says {text!r}",
            hint="the backup is incomplete, or is not a base backup of PostgreSQL 13 or later",
        )
    if not 13 <= int(text) <= 18:
        raise BackupUnusable(f"the backup is of PostgreSQL {text}; versions 13 to 18 can be restored")
    return int(text)


def _label(inventory: Inventory, source: BackupSource) -> BackupLabel | None:
    control = inventory.control
    if not inventory.has_control:
        raise BackupUnusable(
            f'"{source.path}" holds no global/pg_control',
            hint="the backup is incomplete; for PolarDB, name the shared half: --shared-from DIRECTORY",
        )
    content = inventory.file("backup_label")
    if content is None:
        # Only a copy of a server that was shut down is complete without it (manual, 26.3.4).
        if control is not None and control.state.is_clean:
            return None
        raise BackupUnusable(
            f'"{source.path}" holds no backup_label: recovery would silently start from the wrong checkpoint',
            hint="use another backup, or put back the backup_label that belongs to this one",
        )
    label = parse_backup_label(content)
    if label.incremental_from_lsn is not None:
        raise BackupUnusable(
            f'"{source.path}" is an incremental backup',
            hint="combine it first: pg_combinebackup FULL INCR -o DIRECTORY",
        )
    is_replica = (Area.LOCAL, "replica.signal") in inventory.names
    in_production = control is not None and control.state is ClusterState.IN_PRODUCTION
    if is_replica or (label.is_from_standby and in_production):
        raise BackupUnusable(
            f'"{source.path}" was taken from a PolarDB read-only node: its label does not fit its pg_control, '
            "and the server refuses it",
            hint="take the backup from the primary or a standby",
        )
    return label


def _polardb(request: RestoreRequest, source: BackupSource, inventory: Inventory) -> tuple[bool, bool]:
    """Tell whether the backup is PolarDB's, and whether it has a shared half, possibly merged already."""
    reader = MemoryReader(
        {"/" + name: content for (area, name), content in inventory.files.items() if area is Area.LOCAL}
    )
    value = Configuration("/", reader).value
    is_polardb = (
        inventory.has_shared_half
        or bool(source.description.get("polardb"))
        or (Area.LOCAL, "polar_settings.conf") in inventory.names
        or value(SHARED_STORAGE_MODE) is not None
    )
    if inventory.has_shared_half or not uses_shared_storage(value):
        return is_polardb, inventory.has_shared_half
    has_data = (Area.LOCAL, "global/pg_control") in inventory.files
    if not has_data:
        raise BackupUnusable(
            f'"{source.path}" is only the local half of a PolarDB backup: '
            f"{DATADIR} was {value(DATADIR)!r}, and the shared half is not here",
            hint="name the directory that --polardata named when the backup was taken: --shared-from DIRECTORY",
        )
    if not request.merge:
        raise BackupUnusable(
            f'"{source.path}" holds both halves of a PolarDB backup in one name space, '
            "so that the halves can no longer be told apart",
            hint="restore it into one directory, as an instance without shared storage: --merge",
        )
    return True, True


def _map_tablespaces(mapping: Mapping[str, str], spaces: tuple[Tablespace, ...]) -> dict[int, str]:
    mapping = {os.path.normpath(old): new for old, new in mapping.items()}
    known = {os.path.normpath(space.location): space for space in spaces}
    for old in mapping.keys() - known.keys():
        present = ", ".join(sorted(known)) or "none"
        raise UsageError(f'-T: the backup has no tablespace at "{old}"', hint=f"its tablespaces: {present}")
    # The links of a plain backup point at the backup's own files: never use those in place.
    homeless = [location for location, space in known.items() if space.copy is not None and location not in mapping]
    if homeless:
        raise UsageError(
            f"tablespaces of the backup need a place of their own: {', '.join(homeless)}",
            hint="add " + " ".join(f"-T {location}=NEW_DIRECTORY" for location in homeless),
        )
    return {space.oid: mapping.get(location, location) for location, space in known.items()}


def _check_targets(layout: Layout, source: BackupSource, inventory: Inventory, host: Host) -> None:
    sources = {host.real_path(part.path) for part in source.parts} | {host.real_path(source.path)}
    sources |= {host.real_path(space.copy) for space in inventory.tablespaces if space.copy}
    targets = [host.real_path(path) for path in layout.roots]
    for path, target in zip(layout.roots, targets, strict=True):
        for other in sources:
            if _is_within(target, other) or _is_within(other, target):
                raise UsageError(
                    f'target "{path}" and backup "{other}" lie inside one another', hint="choose another target"
                )
        if not host.is_free_target(path):
            mapped = next((oid for oid, place in layout.tablespaces.items() if place == path), None)
            raise TargetNotEmpty(
                f'directory "{path}" exists but is not empty',
                hint=f"relocate tablespace {mapped}: -T {path}=NEW_DIRECTORY"
                if mapped is not None
                else "remove or empty it yourself, or choose another directory; it was not touched",
            )
    for index, (path, target) in enumerate(zip(layout.roots, targets, strict=True)):
        for place, other in list(zip(layout.roots, targets, strict=True))[:index]:
            nested_shared = place == layout.local and path == layout.shared and target != other
            if (_is_within(target, other) or _is_within(other, target)) and not nested_shared:
                raise UsageError(f'targets "{place}" and "{path}" lie inside one another', hint="choose another place")


def _is_within(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _source_warnings(request: RestoreRequest, inventory: Inventory, label: BackupLabel | None) -> list[str]:
    warnings = []
    if label is None:
        warnings.append("the backup has no backup_label; pg_control says that the server was shut down cleanly")
    elif (missing := missing_wal(inventory, label)) is not None:
        command = {name for name, _ in request.settings} & {"restore_command"}
        from_primary = request.role is Role.STANDBY and request.primary_conninfo
        if not (command or from_primary):
            warnings.append(
                f"the backup does not hold WAL segment {missing}, which recovery needs first: "
                "add --set restore_command='cp ARCHIVE/%f \"%p\"', or put the WAL into pg_wal before the start"
            )
    if request.merge or inventory.has_shared_half:
        warnings += [
            f'tablespace {space.oid} ("{space.location}") is left out: PolarDB cannot use tablespaces on shared storage'
            for space in inventory.tablespaces
        ]
    return warnings


def missing_wal(inventory: Inventory, label: BackupLabel) -> str | None:
    """Return the name of the WAL segment that recovery starts with when the backup does not hold it."""
    return None if label.start_segment in inventory.wal else label.start_segment


def _plan_settings(
    request: RestoreRequest,
    inventory: Inventory,
    layout: Layout,
    host: Host,
    account: Account,
    *,
    is_polardb: bool,
    had_shared_half: bool,
) -> SettingsPlanner:
    files = {
        os.path.join(layout.local, name): content
        for (area, name), content in inventory.files.items()
        if area is Area.LOCAL
    }
    cluster_file = None
    cluster_settings = inventory.file("global/polar_settings.conf", Area.SHARED)
    if cluster_settings is not None:
        cluster_file = os.path.join(layout.data, "global/polar_settings.conf")
        files[cluster_file] = cluster_settings
    known = frozenset(os.path.join(layout.local, name) for area, name in inventory.names if area is Area.LOCAL)

    def is_ours(path: str) -> bool:
        return _is_within(path, layout.local) or path == cluster_file

    def exists(path: str) -> bool:
        return path in known if is_ours(path) else host.exists(path)

    reader = MemoryReader(files, fallback=host, is_ours=is_ours, directories=known)
    planner = SettingsPlanner(
        configuration=Configuration(layout.local, reader, cluster_file=cluster_file),
        layout=layout,
        request=request,
        exists=exists,
        usable_socket_directory=lambda path: host.is_writable_directory(path, account),
        direct_io=layout.shared is None or host.takes_direct_io(layout.shared),
        is_polardb=is_polardb,
        had_shared_half=had_shared_half,
        control=inventory.control,
    )
    planner.plan()
    return planner


def _space(layout: Layout, inventory: Inventory, source: BackupSource, host: Host) -> list[SpaceNeed]:
    needs: dict[str, int] = {layout.local: 0, layout.data: 0}
    for area, size in inventory.sizes.items():
        place = layout.data if area in (Area.SHARED, Area.WAL) else layout.local
        needs[place] += size
    for oid, place in layout.tablespaces.items():
        needs[place] = needs.get(place, 0) + inventory.tablespace_sizes.get(oid, 0)
    if source.form is Form.PLAIN and all(
        host.shares_extents(part.path, layout.data if part.area is Area.SHARED else layout.local)
        for part in source.parts
    ):
        needs = dict.fromkeys(needs, 0)
    by_device: dict[int, SpaceNeed] = {}
    for place, needed in needs.items():
        device, available = host.available_bytes(place)
        seen = by_device.get(device)
        total = needed + (seen.needed if seen else 0)
        by_device[device] = replace(seen, needed=total) if seen else SpaceNeed(place, total, available)
    return list(by_device.values())
