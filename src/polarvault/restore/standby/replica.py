"""--as replica: a read-only PolarDB node on the primary's own storage, from the local half of a backup alone.

Facts 5.1 and 6.3, measured on PolarDB 15.8: a copy of a local half becomes a replica once backup_label and
restore_command are gone (with them the server PANICs, because it may not write to the shared storage) and
replica.signal is there. Without replica.signal the same copy starts as a second writer on live storage and destroys
data; nothing locks it. Hence the order here: replica.signal is written before any other file, and postgresql.conf,
without which no server starts, is put in place last (PG_VERSION would not do: PolarDB starts without it). Nothing is
ever written to the storage.
"""

from __future__ import annotations

import os
import posixpath
import re
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from polarvault.backupset.model import CONTROL_NAME, Area, BackupSource, Form, Inventory, area_of
from polarvault.errors import BackupUnusable, IntegrityError, ServerRefused, StartFailed, StorageFailed, UsageError
from polarvault.instance.account import working_as_account
from polarvault.instance.host import Host
from polarvault.instance.model import Account, Role
from polarvault.instance.programs import ask_setting
from polarvault.pgconf.configuration import MAIN_FILE, Configuration, MemoryReader
from polarvault.pgfiles.control import parse_control
from polarvault.pgfiles.tar import MemberKind
from polarvault.polardb.settings import (
    DATADIR,
    LOCALFS_MODE,
    SHARED_STORAGE_MODE,
    Wanted,
    is_true,
    split_protocol,
    uses_shared_storage,
)
from polarvault.restore.model import Layout, RestorePlan, RestoreRequest
from polarvault.restore.plan.places import check_targets, is_within, plan_space
from polarvault.restore.plan.plan import check_request, major_version, with_settings
from polarvault.restore.plan.routing import Router
from polarvault.restore.standby.follow_checks import check_follows, check_system_identifier
from polarvault.storage.files import fsync_parent, fsync_tree, storage_failed, write_durably

if TYPE_CHECKING:
    from polarvault.restore.standby.primary import Primary

_WAITING_SUFFIX = ".polarvault"
# What decides whose storage is opened, and what a replica dies of.
_NOT_TO_BE_SET = (DATADIR, SHARED_STORAGE_MODE, "restore_command", "archive_mode", "primary_slot_name")
_RELATION = re.compile(r"base/\d+/\d+\Z")


class LocalHalfRouter(Router):
    """Map members of the local half; everything else stays behind, and so does what would make the node a writer."""

    def path(self, area: Area, name: str, kind: MemberKind, oid: int = 0) -> str | None:
        """Return the target path of a member, or None when it stays behind."""
        area, name = area_of(area, name)
        # postgresql.conf is written at the end, edited.
        if area is not Area.LOCAL or name in ("backup_label", MAIN_FILE):
            return None
        # Spelled out: super() without arguments fails in a dataclass with slots.
        return Router.path(self, area, name, kind, oid)


def check_replica_options(request: RestoreRequest) -> None:
    """Raise UsageError for what a replica lacks or cannot have."""
    if not request.primary_conninfo or not request.slot:
        missing = "--primary-conninfo CONNSTR" if not request.primary_conninfo else "--slot NAME --create-slot"
        raise UsageError("a replica follows a running primary through a slot of its own there", hint=f"add {missing}")
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


def local_half(source: BackupSource, inventory: Inventory) -> Inventory:
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


def plan_replica(
    request: RestoreRequest, source: BackupSource, inventory: Inventory, host: Host, account: Account
) -> RestorePlan:
    """Decide everything that can be decided without the primary; raise with the next step for what would not work."""
    check_request(request)
    check_replica_options(request)
    inventory = local_half(source, inventory)
    major = major_version(inventory, source)
    files = {"/" + name: content for (_, name), content in inventory.files.items()}
    value = Configuration("/", MemoryReader(files)).value
    if not uses_shared_storage(value):
        raise BackupUnusable(
            f'"{source.path}" is not of a PolarDB instance on shared storage: {SHARED_STORAGE_MODE} is '
            f"{value(SHARED_STORAGE_MODE) or 'not set'}",
            hint="a replica shares the storage of its primary; for a copy of its own use --as standby",
        )
    datadir = _datadir(request, value(DATADIR) or "")
    layout = Layout(request.target, None, {})
    check_targets(layout, source, inventory, host)
    on_pfs = not is_true(value(LOCALFS_MODE))
    if on_pfs and request.host_id is None:
        raise UsageError(
            "on PFS every server that mounts the storage needs a number of its own (polar_hostid)",
            hint=f"add --hostid N, another than the primary's ({value('polar_hostid') or 1})",
        )
    _check_apart(request.target, storage_directory(datadir), host)
    plan = RestorePlan(
        request=request,
        source=source,
        inventory=inventory,
        layout=layout,
        label=None,
        major_version=major,
        is_polardb=True,
        changes=(),
        files={},
        signal_path=os.path.join(layout.local, Role.REPLICA.signal_file),
        space=tuple(plan_space(layout, inventory, source, host)),
        warnings=(),
        binaries=None,
        live_datadir=datadir,
    )
    return settle_replica(plan, host, account)


def settle_replica(plan: RestorePlan, host: Host, account: Account) -> RestorePlan:
    """Work the settings out, again when the primary has been asked since."""
    assert plan.live_datadir is not None
    wanted = (
        Wanted(SHARED_STORAGE_MODE, "on", "a replica reads the primary's storage"),
        Wanted(DATADIR, plan.live_datadir, "the primary's storage"),
    )
    return with_settings(plan, host, account, replica_settings=wanted)


def _datadir(request: RestoreRequest, configured: str) -> str:
    protocol, path = split_protocol(configured)
    if request.shared_target is not None:
        return f"{protocol}://{request.shared_target}" if protocol else request.shared_target
    if not posixpath.isabs(path):
        raise UsageError(
            f"{DATADIR} is {configured!r} in the backup, relative to the source's data directory",
            hint="name the primary's storage by its full path: --polardata DIRECTORY",
        )
    return configured


def storage_directory(datadir: str) -> str:
    """Return the path of the storage without its protocol."""
    return posixpath.normpath(split_protocol(datadir)[1])


def _check_apart(target: str, storage: str, host: Host) -> None:
    real_target, real_storage = host.real_path(target), host.real_path(storage)
    if is_within(real_target, real_storage) or is_within(real_storage, real_target):
        raise UsageError(
            f'target "{target}" and the primary\'s storage "{storage}" lie inside one another',
            hint="choose another target",
        )


def check_replica(plan: RestorePlan, primary: Primary, host: Host) -> list[str]:
    """Raise unless the primary runs on exactly this storage and takes replicas; return warnings."""
    assert plan.live_datadir is not None
    identity = primary.identity
    warnings = check_follows(plan, primary)
    if not identity.shared_storage:
        raise _refused("the primary does not use shared storage, so it can have no replica", "use --as standby")
    if identity.in_recovery:
        raise _refused("the server of --primary-conninfo is itself in recovery", "name the primary")
    if re.fullmatch(r"0+(\s*MB)?", primary.settings.get("polar_logindex_mem_size", "1")):
        raise _refused(
            "polar_logindex_mem_size is 0 on the primary, and replicas need its log index",
            "set it on the primary (for example 512MB) and restart that",
        )
    _check_same_path(plan.live_datadir, primary, host)
    on_localfs = is_true(_value(plan, LOCALFS_MODE))
    if on_localfs:
        _check_storage(storage_directory(plan.live_datadir), primary)
        if not plan.request.create_slot:
            prove_storage(plan)
    elif str(plan.request.host_id) == primary.settings.get("polar_hostid"):
        raise UsageError(f"--hostid {plan.request.host_id} is the primary's own number", hint="choose another one")
    return warnings


def _value(plan: RestorePlan, name: str) -> str | None:
    files = {"/" + file: content for (_, file), content in plan.inventory.files.items()}
    return Configuration("/", MemoryReader(files)).value(name)


def _check_same_path(datadir: str, primary: Primary, host: Host) -> None:
    theirs = split_protocol(primary.identity.shared_data_directory or "")[1]
    if not posixpath.isabs(theirs):
        # Relative to its data directory, which only those with pg_read_all_settings are told.
        theirs = posixpath.join(primary.settings.get("data_directory", "?"), theirs)
    theirs, ours = posixpath.normpath(theirs), storage_directory(datadir)
    if host.real_path(ours) != host.real_path(theirs):
        raise _refused(
            f'the primary\'s storage is "{theirs}", and the replica would open "{ours}"',
            f"name the primary's: --polardata {theirs}",
        )


def _check_storage(directory: str, primary: Primary) -> None:
    path = os.path.join(directory, CONTROL_NAME)
    try:
        with open(path, "rb") as stream:
            control = parse_control(stream.read(), path)
    except FileNotFoundError as problem:
        raise _refused(
            f'the primary\'s storage is not at "{directory}" on this machine (no {CONTROL_NAME} there)',
            "mount it here, or name its place: --polardata DIRECTORY",
        ) from problem
    except OSError as problem:
        raise storage_failed(problem, "read", path) from problem
    except IntegrityError as problem:
        # The primary rewrites it in place; a read in between sees half of each.
        raise StorageFailed(f"{problem.message}; nothing was written", hint="run the command again") from problem
    check_system_identifier(primary, str(control.system_identifier))


def prove_storage(plan: RestorePlan) -> None:
    """Raise unless the slot on the primary shows in the storage: a copy at the same path would not have it.

    PolarDB keeps the slots of a primary in its shared storage (facts 6.3), so this tells live storage from a copy.
    """
    assert plan.live_datadir is not None
    assert plan.request.slot is not None
    if not is_true(_value(plan, LOCALFS_MODE)):
        return
    directory = storage_directory(plan.live_datadir)
    path = os.path.join(directory, "pg_replslot", plan.request.slot)
    if not os.path.isdir(path):
        raise ServerRefused(
            f'"{directory}" is not the storage that the primary writes to: slot "{plan.request.slot}" is not in it',
            hint="on another machine the same path may be another disk; mount the primary's storage there",
        )


def begin_replica(plan: RestorePlan, *, file_mode: int) -> None:
    """Write replica.signal, before anything that a server could start from; durable on return."""
    try:
        write_durably(plan.signal_path, b"", mode=file_mode, sync=plan.request.sync)
    except OSError as problem:
        raise storage_failed(problem, "write", plan.signal_path) from problem


def finish_replica(plan: RestorePlan, account: Account, *, file_mode: int) -> list[str]:
    """Make the laid-out local half a replica that starts; return warnings. On return everything is durable.

    Directories of databases that are newer than the backup are made by the server at every start of a replica.
    """
    local = plan.layout.local
    try:
        with working_as_account(account):
            for path, content in plan.files.items():
                waiting = _WAITING_SUFFIX if path == _main_path(plan) else ""
                # Not synced one by one: fsync_tree does all of them at the end.
                write_durably(path + waiting, content, mode=file_mode, sync=False)
    except OSError as problem:
        raise storage_failed(problem, "complete", local) from problem
    warnings = _check_settings(plan, account)
    with working_as_account(account):
        if plan.request.sync:
            fsync_tree(local)
        _put_settings_in_place(plan)
    return warnings


def disarm(plan: RestorePlan) -> None:
    """Take postgresql.conf away, before an undo removes replica.signal in whatever order."""
    with suppress(OSError):
        os.unlink(_main_path(plan))


def _main_path(plan: RestorePlan) -> str:
    return os.path.join(plan.layout.local, MAIN_FILE)


def _check_settings(plan: RestorePlan, account: Account) -> list[str]:
    """Prove that a start would be a replica on the primary's storage, by our and the server's reading of the files."""
    local, datadir = plan.layout.local, plan.live_datadir
    expected = {DATADIR: datadir, SHARED_STORAGE_MODE: "on", "archive_mode": "off"}
    main_path = _main_path(plan)
    reader = MemoryReader({main_path: plan.files[main_path]}, fallback=Host(), is_ours=lambda path: path == main_path)
    files = Configuration(local, reader)
    for name, value in expected.items():
        if files.value(name) != value and not (value == "on" and is_true(files.value(name))):
            raise _wrong_setting(name, files.value(name), value)
    if not os.path.exists(plan.signal_path):
        raise StartFailed(f'"{plan.signal_path}" is missing: a start would open the live storage as a second writer')
    if plan.binaries is None:
        return ["no fitting server programs were found, so `postgres -C` could not confirm the settings"]
    for name, value in {**expected, "restore_command": ""}.items():
        found = ask_setting(plan.binaries, local, name, account, config_file=main_path + _WAITING_SUFFIX)
        if found != value:
            raise _wrong_setting(name, found, value)
    return []


def _wrong_setting(name: str, found: str | None, expected: str | None) -> StartFailed:
    return StartFailed(
        f"the settings would not make a replica: {name} is {found!r} and must be {expected!r}; nothing is left",
        hint=f"look for {name} in the settings of the source and in --set",
    )


def _put_settings_in_place(plan: RestorePlan) -> None:
    final = _main_path(plan)
    waiting = final + _WAITING_SUFFIX
    try:
        os.rename(waiting, final)
    except OSError as problem:
        raise storage_failed(problem, "rename", waiting) from problem
    if plan.request.sync:
        fsync_parent(final)


def _refused(message: str, hint: str) -> ServerRefused:
    return ServerRefused(f"{message}; nothing was written", hint=hint)
