"""Is it the primary's storage that a replica would open? PolarDB would open any, and a second writer destroys data."""

from __future__ import annotations

import os
import posixpath
import re
from contextlib import closing, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from polarvault.backupset.model import CONTROL_NAME
from polarvault.errors import IntegrityError, ServerRefused, StorageFailed, UsageError
from polarvault.instance.host import Host
from polarvault.pgfiles.control import parse_control
from polarvault.polardb.settings import HOST_ID, split_protocol
from polarvault.restore.facts import Storage
from polarvault.restore.model import Layout, RestorePlan, RestoreRequest
from polarvault.restore.plan.roles.storage import storage_directory
from polarvault.restore.standby.follow_checks import check_system_identifier
from polarvault.storage.files import storage_failed
from polarvault.storage.trees.pfs.mount import PfsMount
from polarvault.storage.trees.small_files import is_directory, read_file

if TYPE_CHECKING:
    from polarvault.restore.standby.primary import Primary


def look_at_storage(request: RestoreRequest, layout: Layout, primary: Primary, host: Host) -> Storage:
    """Look at the storage as it is seen from here; raise StorageFailed if a directory here cannot be read."""
    assert layout.live_datadir is not None
    directory = storage_directory(layout.live_datadir)
    theirs = split_protocol(primary.identity.shared_data_directory or "")[1]
    if not posixpath.isabs(theirs):
        # Relative to its data directory, which only those with pg_read_all_settings are told.
        theirs = posixpath.join(primary.settings.get("data_directory", "?"), theirs)
    theirs = posixpath.normpath(theirs)
    if layout.pfs is not None:
        return _look_into_pfs(layout.pfs, request, directory, theirs, host)
    return Storage(
        directory=directory,
        real_path=host.real_path(directory),
        primarys_path=theirs,
        primarys_real_path=host.real_path(theirs),
        control=_control_of(directory),
        holds_slot=holds_slot(directory, request.slot or ""),
    )


def _look_into_pfs(mount: PfsMount, request: RestoreRequest, directory: str, theirs: str, host: Host) -> Storage:
    """Look at a storage in PFS. Where that cannot be done from here, only what the primary answers is left."""
    control, shows_slot, unseen = None, False, None
    try:
        with closing(host.open_pfs(replace(mount, host_id=None))) as tree:
            with suppress(FileNotFoundError):
                control = read_file(tree, CONTROL_NAME)
            shows_slot = is_directory(tree, f"pg_replslot/{request.slot}")
    except OSError as problem:
        unseen = problem.strerror or str(problem)
    # A path of PFS is the same everywhere: it begins with the disk.
    return Storage(directory, directory, theirs, theirs, control, shows_slot, on_pfs=True, unseen=unseen)


def _control_of(directory: str) -> bytes | None:
    path = os.path.join(directory, CONTROL_NAME)
    try:
        with open(path, "rb") as stream:
            return stream.read()
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise storage_failed(problem, "read", path) from problem


def check_storage(request: RestoreRequest, primary: Primary, storage: Storage) -> list[str]:
    """Raise unless the primary runs on exactly this storage and takes replicas; return what could not be seen."""
    identity = primary.identity
    if not identity.shared_storage:
        raise _refused("the primary does not use shared storage, so it can have no replica", "use --as standby")
    if identity.in_recovery:
        raise _refused("the server of --primary-conninfo is itself in recovery", "name the primary")
    if re.fullmatch(r"0+(\s*MB)?", primary.settings.get("polar_logindex_mem_size", "1")):
        raise _refused(
            "polar_logindex_mem_size is 0 on the primary, and replicas need its log index",
            "set it on the primary (for example 512MB) and restart that",
        )
    if storage.real_path != storage.primarys_real_path:
        raise _refused(
            f'the primary\'s storage is "{storage.primarys_path}", and the replica would open "{storage.directory}"',
            f"name the primary's: --polardata {storage.primarys_path}",
        )
    if storage.on_pfs and str(request.host_id) == primary.settings.get(HOST_ID):
        raise UsageError(f"--hostid {request.host_id} is the primary's own number", hint="choose another one")
    if storage.unseen is not None:
        return [
            f'"{storage.directory}" in PFS could not be looked into ({storage.unseen}): that it is the storage which '
            "the primary writes to is known from the primary alone"
        ]
    _check_control(primary, storage)
    if not request.create_slot and not storage.holds_slot:
        raise not_the_storage(storage.directory, request.slot)
    return []


def _check_control(primary: Primary, storage: Storage) -> None:
    path = os.path.join(storage.directory, CONTROL_NAME)
    if storage.control is None:
        raise _refused(
            f'the primary\'s storage is not at "{storage.directory}" on this machine (no {CONTROL_NAME} there)',
            "mount it here, or name its place: --polardata DIRECTORY",
        )
    try:
        control = parse_control(storage.control, path)
    except IntegrityError as problem:
        # The primary rewrites it in place; a read in between sees half of each.
        raise StorageFailed(f"{problem.message}; nothing was written", hint="run the command again") from problem
    check_system_identifier(primary, str(control.system_identifier))


def prove_storage(plan: RestorePlan, host: Host) -> None:
    """Raise unless the slot on the primary shows in the storage now: a copy at the same path would not have it.

    PolarDB keeps the slots of a primary in its shared storage (facts 6.3), so this tells live storage from a copy.
    """
    assert plan.layout.live_datadir is not None
    assert plan.request.slot is not None
    directory = storage_directory(plan.layout.live_datadir)
    if plan.layout.pfs is not None:
        storage = _look_into_pfs(plan.layout.pfs, plan.request, directory, directory, host)
        shows = storage.holds_slot or storage.unseen is not None
    else:
        shows = holds_slot(directory, plan.request.slot)
    if not shows:
        raise not_the_storage(directory, plan.request.slot)


def holds_slot(directory: str, slot: str) -> bool:
    """Tell whether a slot shows in a storage."""
    return os.path.isdir(os.path.join(directory, "pg_replslot", slot))


def not_the_storage(directory: str, slot: str | None) -> ServerRefused:
    """Return the error for a storage in which the slot does not show."""
    return ServerRefused(
        f'"{directory}" is not the storage that the primary writes to: slot "{slot}" is not in it',
        hint="on another machine the same path may be another disk; mount the primary's storage there",
    )


def _refused(message: str, hint: str) -> ServerRefused:
    return ServerRefused(f"{message}; nothing was written", hint=hint)
