"""Where everything goes: target directories, tablespaces, space; and what may not be a target. Pure."""

from __future__ import annotations

import os
import shlex
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace

from polarvault.backupset.backup import Backup
from polarvault.backupset.model import SHARED_PREFIX, Area, Inventory, Tablespace
from polarvault.errors import BackupUnusable, StorageFailed, TargetNotEmpty, UsageError
from polarvault.model.tablespace_mapping import mapping_option
from polarvault.model.units import format_bytes
from polarvault.pgconf.configuration import Configuration
from polarvault.restore.facts import BackupFacts, HostFacts, PfsPlace, Place
from polarvault.restore.model import STAGING_NAME, Layout, RestorePlan, RestoreRequest, SpaceNeed
from polarvault.storage.occupants import Occupancy, not_empty
from polarvault.storage.trees.pfs.mount import MOST_HOST_ID, PFS_BLOCK_BYTES, PfsMount

# Directories, and what the server makes at its start before anybody could free anything.
_SPARE_FILES = 100


def plan_layout(
    request: RestoreRequest, inventory: Inventory, *, had_shared_half: bool, pfs: PfsMount | None = None
) -> Layout:
    """Decide where each area goes, for a server with a storage of its own. pfs: where the shared half goes into PFS."""
    if request.merge:
        if not had_shared_half:
            raise UsageError("--merge: the backup has no shared half to merge", hint="leave --merge out")
        return Layout(request.target, None, {}, merged=True)
    if had_shared_half and pfs is not None:
        return Layout(request.target, str(pfs.address), {}, pfs=pfs)
    if had_shared_half:
        return Layout(request.target, request.shared_target or os.path.join(request.target, SHARED_PREFIX), {})
    if request.shared_target is not None or request.pfs is not None:
        raise UsageError("--polardata: the backup has no shared half", hint="leave --polardata out")
    return Layout(request.target, None, _map_tablespaces(_tablespace_mapping(request, inventory), inventory))


def _tablespace_mapping(request: RestoreRequest, inventory: Inventory) -> Mapping[str, str]:
    if request.confined_to is None:
        return request.tablespace_mapping
    own = os.path.join(request.confined_to, "tablespaces")
    return {space.location: os.path.join(own, str(space.oid)) for space in inventory.tablespaces}


def _map_tablespaces(mapping: Mapping[str, str], inventory: Inventory) -> dict[int, str]:
    mapping = {os.path.normpath(old): new for old, new in mapping.items()}
    known = {os.path.normpath(space.location): space for space in inventory.tablespaces}
    missing = [space for location, space in known.items() if space.is_missing and location not in mapping]
    if missing:
        raise _tablespace_missing(missing)
    for oid, live in inventory.unlisted_tablespaces.items():
        # Replay forcibly removes what is there before it makes the directory again (server: commands/tablespace.c).
        raise BackupUnusable(
            f'tablespace {oid} at "{live}" was made while the backup was taken: it is not in the backup, and recovery '
            "would remove what is there, which are a server's files, most likely the source's, to make it again",
            hint="use a later backup; or restore on another machine, or in a container, where that directory is empty",
        )
    for old in mapping.keys() - known.keys():
        present = ", ".join(sorted(known)) or "none"
        raise UsageError(f'-T: the backup has no tablespace at "{old}"', hint=f"its tablespaces: {present}")
    # The links of a plain backup point at the backup's own files: never use those in place.
    homeless = [location for location, space in known.items() if space.copy is not None and location not in mapping]
    if homeless:
        raise UsageError(
            f"tablespaces of the backup need a place of their own: {', '.join(homeless)}",
            hint="add " + " ".join(mapping_option(location, "NEW_DIRECTORY") for location in homeless),
        )
    return {space.oid: mapping.get(location, location) for location, space in known.items()}


def _tablespace_missing(missing: Sequence[Tablespace]) -> BackupUnusable:
    first = missing[0]
    more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
    return BackupUnusable(
        f'tablespace {first.oid} is missing: pg_tblspc/{first.oid} points to "{first.location}", where nothing '
        f"is{more}",
        hint=f"put the tablespace's copy back there, or make the link lead to it: ln -sfn COPY pg_tblspc/{first.oid}; "
        f"to restore it empty: {mapping_option(first.location, 'NEW_DIRECTORY')}; if it was made while the backup was "
        f"taken, recovery makes it again at {first.location}: restore on a host where nobody uses that place",
    )


def check_targets(
    layout: Layout,
    places: Sequence[Place],
    sources: Iterable[str],
    tablespaces: Sequence[Tablespace] = (),
    *,
    kept: Container[str] = (),
) -> None:
    """Refuse targets that hold something, and targets, backup and tablespaces that lie inside one another.

    places: of the layout's roots. sources: the real paths of what the backup consists of; none for one that was put
    together inside of the target, from where it is moved, and nothing else is in there then. kept: places that may hold
    what they hold.
    """
    sources = list(sources)
    own = {place.real_path for place in places}
    for place in places:
        for other in sources:
            if is_within(place.real_path, other) or is_within(other, place.real_path):
                raise UsageError(
                    f'target "{place.path}" and backup "{other}" lie inside one another', hint="choose another target"
                )
        if (around := place.around) is not None and not (place.path in kept and around.path in own):
            raise UsageError(
                f'target "{place.path}" lies inside of "{around.path}", which is {around.occupancy.value}',
                hint="choose a place outside: whoever backs that up or removes it would take the copy for a part of it",
            )
        if place.occupant is not None and place.path not in kept:
            mapped = next((oid for oid, path in layout.tablespaces.items() if path == place.path), None)
            original = next((space.location for space in tablespaces if space.oid == mapped), None)
            raise not_empty(place.occupant, tablespace=original, replaceable=True)
    spaces = set(layout.tablespaces.values())
    for index, inner in enumerate(places):
        for outer in places[:index]:
            apart = inner.real_path != outer.real_path
            nested_shared = outer.path == layout.local and inner.path == layout.shared and apart
            # One tablespace may lie inside of another: each has its files in a directory of the server's version.
            may_nest = nested_shared or ({outer.path, inner.path} <= spaces and apart)
            overlaps = is_within(inner.real_path, outer.real_path) or is_within(outer.real_path, inner.real_path)
            if overlaps and not may_nest:
                raise UsageError(
                    f'targets "{outer.path}" and "{inner.path}" lie inside one another', hint="choose another place"
                )


def is_within(path: str, directory: str) -> bool:
    """Tell whether a normalised path is a directory or lies below it."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def check_pfs(layout: Layout, place: PfsPlace) -> None:
    """Refuse a directory in PFS that holds something or lies in somebody's database, and a host number in use."""
    if place.around is not None:
        raise UsageError(
            f'target "{place.address}" lies inside of "{place.around}", in which a database lives',
            hint="choose a place outside: whoever backs that up or removes it would take the copy for a part of it",
        )
    if place.occupancy is not None:
        what = "" if place.occupancy is Occupancy.OTHER else f": it is {place.occupancy.value}"
        assert layout.pfs is not None
        raise TargetNotEmpty(
            f'directory "{place.address}" exists but is not empty{what}',
            hint=f"choose another directory; see what is there: pfs -C {layout.pfs.cluster} ls "
            f"{shlex.quote(layout.pfs.address.path)}",
        )
    host_id = layout.pfs.host_id if layout.pfs is not None else None
    if host_id is not None and host_id in place.used_host_ids:
        free = next(number for number in range(1, MOST_HOST_ID + 2) if number not in place.used_host_ids)
        raise UsageError(
            f"host id {host_id} is in use on this machine, by {place.used_host_ids[host_id]}, and two servers with one "
            "number would write over each other's journal; nothing was written",
            hint=f"give a number that no server on this disk has, on whichever host: --hostid {free}",
        )


def pfs_need(backup: BackupFacts, place: PfsPlace) -> SpaceNeed:
    """Add up what the shared half takes of a disk in PFS: whole blocks and an inode for each file.

    The server makes one more WAL segment before it opens for writing.
    """
    inventory = backup.inventory
    lengths = {key[1]: length for key, length in inventory.lengths.items() if key[0] is Area.SHARED}
    names = {name for area, name in inventory.names if area is Area.SHARED} | lengths.keys()
    needed = sum(_in_blocks(length) for length in lengths.values()) + sum(map(_in_blocks, inventory.wal.values()))
    # Without a manifest, and in tars that were not read to their ends, only the sum is known.
    needed = max(needed, inventory.sizes.get(Area.SHARED, 0))
    segment = inventory.control.wal_segment_size if inventory.control is not None else 0
    files = max(len(names), 1 if inventory.is_whole else inventory.file_count) + len(inventory.wal) + _SPARE_FILES
    return SpaceNeed(place.address, needed + segment, place.available_bytes, files, place.available_files)


def _in_blocks(length: int) -> int:
    return -(-length // PFS_BLOCK_BYTES) * PFS_BLOCK_BYTES


def plan_space(backup: BackupFacts, host: HostFacts, *, wal_bytes: int = 0) -> list[SpaceNeed]:
    """Add up what each file system has to take; copies that share extents take nothing, nor what is only moved.

    wal_bytes: of WAL that comes from elsewhere.
    """
    layout, inventory = host.layout, backup.inventory
    needs: dict[str, int] = {layout.local: 0, layout.data: 0}
    for area, size in inventory.sizes.items():
        root = layout.data if area in (Area.SHARED, Area.WAL) else layout.local
        needs[root] += size
    for oid, root in layout.tablespaces.items():
        needs[root] = needs.get(root, 0) + inventory.tablespace_sizes.get(oid, 0)
    if wal_bytes:
        needs[layout.data] += wal_bytes
    if host.existing is not None:
        needs = dict(host.existing.growth_bytes)
    if host.shares_extents or is_staged(backup.source):
        needs = dict.fromkeys(needs, 0)
    in_pfs = []
    if host.pfs is not None:
        needs.pop(layout.data)
        in_pfs = [pfs_need(backup, host.pfs)]
    by_path = {place.path: place for place in host.places}
    by_device: dict[int, SpaceNeed] = {}
    for path, needed in needs.items():
        place = by_path[path]
        seen = by_device.get(place.device)
        total = needed + (seen.needed if seen else 0)
        by_device[place.device] = replace(seen or SpaceNeed(path, 0, place.available_bytes), needed=total)
    return [*by_device.values(), *in_pfs]


def port_of(request: RestoreRequest, configuration: Configuration) -> int | None:
    """Return the TCP port that the restored server will listen on here; None for none, or one that is no number."""
    given = {"port": str(request.port)} if request.port is not None else {}
    given |= {name.lower(): value for name, value in request.settings if name.lower() in ("port", "listen_addresses")}
    port = given.get("port", configuration.value("port") or "5432")
    addresses = given.get("listen_addresses", configuration.value("listen_addresses"))
    is_local = addresses is None or any(word in addresses for word in ("*", "localhost", "127.0.0.1", "0.0.0.0"))
    return int(port) if port.isdecimal() and is_local else None


def check_port(request: RestoreRequest, host: HostFacts) -> None:
    """Raise UsageError for a server that is to be started on a port that another one has."""
    if request.start and host.taken_port is not None:
        raise UsageError(
            f"port {host.taken_port} is in use on this machine, so the restored server could not start; nothing was "
            "written",
            hint="choose another one: --port N",
        )


def port_warnings(request: RestoreRequest, host: HostFacts) -> list[str]:
    """Say that the port is taken, where nothing is started yet."""
    port = host.taken_port
    if port is None or request.start:
        return []
    return [f"port {port} is in use on this machine: choose another one with --port before the server is started"]


def is_staged(source: Backup) -> bool:
    """Tell whether the backup was put together inside of its target."""
    return os.path.basename(source.path) == STAGING_NAME


def check_space(plan: RestorePlan) -> None:
    """Raise when a file system lacks the space that the plan needs."""
    for need in plan.space:
        if not need.has_files:
            raise StorageFailed(
                f'not enough inodes for "{need.path}": {need.needed_files} are needed, {need.available_files} are free',
                hint="choose a larger disk, or grow this one (pfs growfs); nothing was written",
            )
        if not need.is_met:
            raise StorageFailed(
                f'not enough space for "{need.path}": {format_bytes(need.needed)} are needed, '
                f"{format_bytes(need.available or 0)} are free",
                hint="free space or choose another target (df -h); nothing was written",
            )
