"""Plan a restore: everything that can be refused is refused here, before anything is written."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace

from polarvault.backupset.model import CONTROL_NAME, SHARED_LABEL_NAME, Area, BackupSource, Inventory
from polarvault.backupset.one_backup import check_one_backup
from polarvault.errors import BackupUnusable, UsageError
from polarvault.instance.debian import DebianCluster
from polarvault.instance.host import Host
from polarvault.instance.model import Account, Role
from polarvault.model import versions
from polarvault.model.segment import WalSegment
from polarvault.pgconf.configuration import MAIN_FILE, Configuration, MemoryReader
from polarvault.pgconf.hba import without_missing
from polarvault.pgfiles.backup_label import BackupLabel, parse_backup_label
from polarvault.pgfiles.control import ClusterState, parse_known_control, system_identifier_of
from polarvault.polardb.settings import DATADIR, SHARED_STORAGE_MODE, Wanted, names_directory, uses_shared_storage
from polarvault.recovery.settings import NO_ARCHIVE_COMMAND
from polarvault.restore.model import RestorePlan, RestoreRequest
from polarvault.restore.plan.archiving import check_archiving
from polarvault.restore.plan.configuration import plan_put_back, saved_configuration_of
from polarvault.restore.plan.places import check_targets, is_within, plan_layout, plan_space
from polarvault.restore.plan.settings import NOTE, SettingsPlanner
from polarvault.restore.standby.follow_checks import check_follow_options, check_system_identifier
from polarvault.walarchive.restore_command import restore_command
from polarvault.walfiles.search_list import wal_places

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

    The result names no programs and knows nothing of a primary yet; run.py adds both. A replica has a plan of its own.
    """
    check_request(request)
    major = major_version(inventory, source)
    label = _label(inventory, source, chained=request.combines)
    check_one_backup(source, inventory, label)
    is_polardb, had_shared_half = _polardb(request, source, inventory)
    if request.host_id is not None and not is_polardb:
        raise UsageError("--hostid is a setting of PolarDB, and the backup is of PostgreSQL", hint="leave it out")
    layout = plan_layout(request, inventory, had_shared_half=had_shared_half)
    check_targets(layout, source, inventory, host)
    plan = RestorePlan(
        request=request,
        source=source,
        inventory=inventory,
        layout=layout,
        label=label,
        major_version=major,
        is_polardb=is_polardb,
        changes=(),
        files={},
        signal_path=os.path.join(layout.local, request.role.signal_file),
        space=tuple(plan_space(layout, inventory, source, host)),
        warnings=(),
        binaries=None,
        debian=_debian_cluster(request, layout.local, major, host),
    )
    put_back = plan_put_back(
        request.configuration,
        backup=source.path, data_directory=layout.local, major=major, owner=plan.debian, host=host,
    )  # fmt: skip
    if put_back is not None:
        plan = replace(plan, put_back=put_back, debian=put_back.cluster or plan.debian)
    return with_settings(plan, host, account)


def _debian_cluster(request: RestoreRequest, data_directory: str, major: int, host: Host) -> DebianCluster | None:
    """Return the cluster in /etc/postgresql that the data directory belongs to; it must be of the backup's version."""
    cluster = host.debian_cluster(data_directory) if request.confined_to is None else None
    if cluster is not None and cluster.version != str(major):
        raise UsageError(
            f'"{data_directory}" is the data directory of the cluster {cluster} ({cluster.main_file}), and the backup '
            f"is of PostgreSQL {major}",
            hint=f"make a cluster of that version and restore into its data directory: pg_createcluster {major} NAME",
        )
    return cluster


def settle_plan(
    plan: RestorePlan, found: Mapping[tuple[Area, str], bytes], host: Host, account: Account
) -> RestorePlan:
    """Complete a plan that was made without reading a compressed tar to its end, from what was unpacked since."""
    control_bytes = found[Area.SHARED, CONTROL_NAME]
    control = parse_known_control(control_bytes, plan.major_version)
    if plan.primary is not None:
        found_in_tar = str(system_identifier_of(control_bytes))
        check_system_identifier(plan.primary, found_in_tar, outcome="what was restored so far has been removed")
    is_newer = plan.inventory.is_newer or control is None
    inventory = replace(plan.inventory, control=control, is_newer=is_newer, files={**plan.inventory.files, **found})
    label = _label(inventory, plan.source, chained=False)
    check_one_backup(plan.source, inventory, label)
    return with_settings(replace(plan, inventory=inventory, label=label), host, account)


def with_settings(
    plan: RestorePlan, host: Host, account: Account, *, replica_settings: tuple[Wanted, ...] = ()
) -> RestorePlan:
    """Return the plan with its settings, files and warnings worked out, also anew after it changed."""
    planner = _plan_settings(plan, host, account, replica_settings)
    is_replica = plan.request.role is Role.REPLICA
    warnings = [] if is_replica else _source_warnings(plan)
    warnings += plan.recovery.warnings if plan.recovery else ()
    warnings += _half_warnings(plan) + _port_warnings(plan, planner.configuration, host)
    files = dict(planner.configuration.edited())
    hba_path = os.path.join(plan.layout.local, "pg_hba.conf")
    kept = plan.put_back.files if plan.put_back is not None and plan.debian is None else {}
    files = {**kept, **files}
    warnings += _configuration_warnings(plan, host)
    keeps_hba = plan.debian is not None or planner.configuration.value("hba_file") or hba_path in kept
    if plan.inventory.file("pg_hba.conf") is None and not keeps_hba:
        warnings.append("the backup holds no pg_hba.conf: one that admits local users is written")
        files[os.path.join(plan.layout.local, "pg_hba.conf")] = _MINIMAL_HBA
    elif plan.debian is None and not is_replica:
        warnings += _settle_hba(plan, planner.exists, files)
    return replace(
        plan,
        changes=tuple(planner.changes),
        files=files,
        warnings=(*plan.lasting_warnings, *warnings, *planner.warnings, *plan.follow_warnings),
    )


def _configuration_warnings(plan: RestorePlan, host: Host) -> list[str]:
    put = plan.put_back
    if put is not None:
        return [f'configuration file "{path}" is not put back: it has no place in {put.root}' for path in put.left_out]
    if plan.inventory.file(MAIN_FILE) is not None or plan.request.confined_to is not None:
        return []
    saved = saved_configuration_of(plan.source.path, host)
    if saved is None:
        return []
    return [
        f'the source\'s own configuration was kept in "{saved}": --configuration data puts it into the data directory, '
        f"--configuration /etc/postgresql/{plan.major_version}/NAME into that of a Debian cluster"
    ]


def _settle_hba(plan: RestorePlan, exists: Callable[[str], bool], files: dict[str, bytes]) -> list[str]:
    """Comment out the lines of pg_hba.conf that name files which are not here; the server would not start with them."""
    path = os.path.join(plan.layout.local, "pg_hba.conf")
    content = files.get(path) or plan.inventory.file("pg_hba.conf")
    if content is None:
        return []
    settled, missing = without_missing(content, path, exists, f"{NOTE}: the file is not here")
    if missing:
        files[path] = settled
    return [
        f'pg_hba.conf line {reference.first_line} names "{reference.path_from(path)}", which is not here: the line is '
        + ("made to reject all" if reference.rejects else "commented out")
        for reference in missing
    ]


def check_request(request: RestoreRequest) -> None:
    """Raise UsageError for options that exclude each other or have no sense."""
    check_follow_options(request)
    check_archiving(request)
    if request.merge and request.shared_target:
        raise UsageError("--merge puts both halves into -D; it excludes --polardata")
    if request.host_id is not None and request.host_id < 1:
        raise UsageError(f"--hostid {request.host_id}: a host number is 1 or more")
    if request.port is not None and not 1 <= request.port <= 65535:
        raise UsageError(f"--port {request.port}: a port is a number from 1 to 65535")


def major_version(inventory: Inventory, source: BackupSource) -> int:
    """Return the backup's major version; raise BackupUnusable when it is unknown or not supported."""
    content = inventory.file("PG_VERSION")
    text = (content or b"").decode("ascii", "replace").strip()
    if not text.isdecimal():
        raise BackupUnusable(
            f'"{source.path}" holds no PG_VERSION' if content is None else f"PG_VERSION says {text!r}",
            hint="the backup is incomplete, or is not a base backup of PostgreSQL 13 or later",
        )
    if int(text) < versions.OLDEST.major:
        raise BackupUnusable(f"the backup is of PostgreSQL {text}; {versions.KNOWN_VERSIONS} can be restored")
    return int(text)


def _label(inventory: Inventory, source: BackupSource, *, chained: bool) -> BackupLabel | None:
    control = inventory.control
    if not inventory.has_control:
        shared = next((part.path for part in source.parts if part.area is Area.SHARED), None)
        hint = "the backup is incomplete; for PolarDB, name the shared half: --shared-from DIRECTORY"
        if shared is not None:
            hint = "the shared half is incomplete; see what else is missing: polarvault verifybackup " + source.path
        raise BackupUnusable(f'"{shared or source.path}" holds no global/pg_control', hint=hint)
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
    if label.incremental_from_lsn is not None and not chained:
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


def _source_warnings(plan: RestorePlan) -> list[str]:
    request, inventory, label = plan.request, plan.inventory, plan.label
    warnings = []
    if inventory.is_newer:
        known = versions.is_not_known(f"the backup's server, PostgreSQL {plan.major_version},")
        warnings.append(f"{known}; the files are laid out and compared with the manifest, and no more can be said")
    if label is None:
        warnings.append("the backup has no backup_label; pg_control says that the server was shut down cleanly")
    elif (missing := missing_wal(inventory, label)) is not None:
        command = {name for name, _ in request.settings} & {"restore_command"}
        from_primary = request.role is Role.STANDBY and request.primary_conninfo
        if not (command or from_primary or request.recovery.wal_directories):
            warnings.append(
                f"the backup does not hold WAL segment {missing}, which recovery needs: "
                "name the directory that holds it: --wal DIR"
            )
    if request.merge or inventory.has_shared_half:
        warnings += [
            f'tablespace {space.oid} ("{space.location}") is left out: PolarDB cannot use tablespaces on shared storage'
            for space in inventory.tablespaces
        ]
    return warnings


def _half_warnings(plan: RestorePlan) -> list[str]:
    """Compare the label with its copy in the shared half; a concurrent backup can have replaced that copy."""
    content = plan.inventory.file(SHARED_LABEL_NAME, Area.SHARED)
    label = plan.inventory.file("backup_label")
    if not content or label is None or content.splitlines()[0] == label.splitlines()[0]:
        return []
    return [
        "the halves may be of two different backups: the label in the shared half names another start "
        f"({content.splitlines()[0].decode('ascii', 'replace')})"
    ]


def _port_warnings(plan: RestorePlan, configuration: Configuration, host: Host) -> list[str]:
    port = configuration.value("port") or "5432"
    addresses = configuration.value("listen_addresses")
    is_local = addresses is None or any(word in addresses for word in ("*", "localhost", "127.0.0.1", "0.0.0.0"))
    if not (port.isdecimal() and is_local and host.port_is_taken(int(port))):
        return []
    if plan.request.start:
        raise UsageError(
            f"port {port} is in use on this machine, so the restored server could not start; nothing was written",
            hint="choose another one: --port N",
        )
    return [f"port {port} is in use on this machine: choose another one with --port before the server is started"]


def missing_wal(inventory: Inventory, label: BackupLabel) -> str | None:
    """Return the name of the first WAL segment that the backup needs to be consistent and does not hold.

    The manifest tells where the backup ended, if there is one; otherwise only where recovery starts is known.
    """
    if label.start_segment not in inventory.wal:
        return label.start_segment
    ends = [span.end_lsn for span in inventory.spans if span.end_timeline_id == label.timeline_id]
    if inventory.control is None or not ends:
        return None
    segment = WalSegment.holding(label.start_lsn, label.timeline_id, inventory.control.wal_segment_size)
    # The end is from a file as well: the loop is bounded by the segments that are there.
    while segment.start < max(ends):
        if segment.file_name not in inventory.wal:
            return segment.file_name
        segment = segment.next()
    return None


def _restore_command(plan: RestorePlan, host: Host) -> str | None:
    """Return the restore_command to write; None leaves one that --set names, or none, in place."""
    request = plan.request
    if any(name == "restore_command" for name, _ in request.settings):
        return None
    if request.recovery.wal_directories and request.role is not Role.REPLICA:
        control = plan.inventory.control
        directories = request.recovery.wal_directories
        return restore_command(
            wal_places(directories),
            system_identifier=control.system_identifier if control else None,
            # What holds WAL now and is empty later is a file system that is not mounted any more.
            refuse_empty=all(host.list_names(directory) for directory in directories),
            last_segment=plan.recovery.last_segment if plan.recovery else None,
        )
    return NO_ARCHIVE_COMMAND if request.role is Role.PRIMARY else None


def _plan_settings(
    plan: RestorePlan, host: Host, account: Account, replica_settings: tuple[Wanted, ...]
) -> SettingsPlanner:
    inventory, layout = plan.inventory, plan.layout
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
    known = {os.path.join(layout.local, name) for area, name in inventory.names if area is Area.LOCAL}
    put_root = plan.put_back.root if plan.put_back is not None else None
    if plan.put_back is not None:
        files |= plan.put_back.files
        known |= {*plan.put_back.files, *plan.put_back.directories}

    def is_ours(path: str) -> bool:
        is_put = put_root is not None and is_within(path, put_root)
        return is_within(path, layout.local) or path == cluster_file or is_put

    def exists(path: str) -> bool:
        return path in known if is_ours(path) else host.exists(path)

    is_confined = plan.request.confined_to is not None
    reader = MemoryReader(files, fallback=None if is_confined else host, is_ours=is_ours, directories=frozenset(known))
    planner = SettingsPlanner(
        configuration=Configuration(
            layout.local, reader, cluster_file=cluster_file, main_file=plan.debian.main_file if plan.debian else None
        ),
        layout=layout,
        request=plan.request,
        exists=exists,
        usable_socket_directory=lambda path: host.is_writable_directory(path, account),
        direct_io=layout.shared is None or host.takes_direct_io(layout.shared),
        is_polardb=plan.is_polardb,
        had_shared_half=inventory.has_shared_half or layout.merged,
        control=inventory.control,
        debian=plan.debian,
        recovery=plan.recovery,
        restore_command=_restore_command(plan, host),
        primary_settings=plan.primary.settings if plan.primary else {},
        replica_settings=replica_settings,
    )
    planner.plan()
    # Only --set can have undone it; it would start a second writer on somebody's storage (facts 4.2).
    if layout.shared and not names_directory(planner.configuration.value(DATADIR), layout.shared):
        raise UsageError(
            f"--set {DATADIR}={planner.configuration.value(DATADIR)} does not name the restored shared half",
            hint=f"leave it out; --polardata decides where the shared half goes (now {layout.shared})",
        )
    return planner
