"""Where everything goes: target directories, tablespaces, space; and what may not be a target."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

from polarvault.backupset.model import SHARED_PREFIX, Area, BackupSource, Form, Inventory, Tablespace
from polarvault.errors import BackupUnusable, StorageFailed, UsageError
from polarvault.instance.host import Host
from polarvault.model.tablespace_mapping import mapping_option
from polarvault.model.units import format_bytes
from polarvault.restore.model import STAGING_NAME, Layout, RestorePlan, RestoreRequest, SpaceNeed
from polarvault.storage.occupants import not_empty


def plan_layout(request: RestoreRequest, inventory: Inventory, *, had_shared_half: bool) -> Layout:
    """Decide where each area goes."""
    shared = None
    if had_shared_half and not request.merge:
        shared = request.shared_target or os.path.join(request.target, SHARED_PREFIX)
    elif request.shared_target is not None:
        raise UsageError("--polardata: the backup has no shared half", hint="leave --polardata out")
    if request.merge and not had_shared_half:
        raise UsageError("--merge: the backup has no shared half to merge", hint="leave --merge out")
    spaces = {} if shared or request.merge else _map_tablespaces(_tablespace_mapping(request, inventory), inventory)
    return Layout(request.target, shared, spaces, merged=request.merge)


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


def check_targets(layout: Layout, source: BackupSource, inventory: Inventory, host: Host) -> None:
    """Refuse targets that hold something, and targets, backup and tablespaces that lie inside one another."""
    sources = {host.real_path(part.path) for part in source.parts} | {host.real_path(source.path)}
    sources |= {host.real_path(space.copy) for space in inventory.tablespaces if space.copy}
    # What was put together inside of the target is moved from there, and nothing else is in it.
    staged = os.path.basename(source.path) == STAGING_NAME
    sources = set() if staged else sources
    targets = [host.real_path(path) for path in layout.roots]
    for path, target in zip(layout.roots, targets, strict=True):
        for other in sources:
            if is_within(target, other) or is_within(other, target):
                raise UsageError(
                    f'target "{path}" and backup "{other}" lie inside one another', hint="choose another target"
                )
        if (around := host.enclosing_occupant(target)) is not None:
            raise UsageError(
                f'target "{path}" lies inside of "{around.path}", which is {around.occupancy.value}',
                hint="choose a place outside: whoever backs that up or removes it would take the copy for a part of it",
            )
        if staged and path == layout.local:
            continue
        if (occupant := host.occupant(path)) is not None:
            mapped = next((oid for oid, place in layout.tablespaces.items() if place == path), None)
            original = next((space.location for space in inventory.tablespaces if space.oid == mapped), None)
            raise not_empty(occupant, tablespace=original, replaceable=True)
    for index, (path, target) in enumerate(zip(layout.roots, targets, strict=True)):
        for place, other in list(zip(layout.roots, targets, strict=True))[:index]:
            nested_shared = place == layout.local and path == layout.shared and target != other
            # One tablespace may lie inside of another: each has its files in a directory of the server's version.
            spaces = set(layout.tablespaces.values())
            may_nest = nested_shared or ({place, path} <= spaces and target != other)
            if (is_within(target, other) or is_within(other, target)) and not may_nest:
                raise UsageError(f'targets "{place}" and "{path}" lie inside one another', hint="choose another place")


def is_within(path: str, directory: str) -> bool:
    """Tell whether a normalised path is a directory or lies below it."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def plan_space(layout: Layout, inventory: Inventory, source: BackupSource, host: Host) -> list[SpaceNeed]:
    """Add up what each file system has to take; copies that share extents take nothing."""
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
    if os.path.basename(source.path) == STAGING_NAME:
        needs = dict.fromkeys(needs, 0)
    by_device: dict[int, SpaceNeed] = {}
    for place, needed in needs.items():
        device, available = host.available_bytes(place)
        seen = by_device.get(device)
        total = needed + (seen.needed if seen else 0)
        by_device[device] = replace(seen, needed=total) if seen else SpaceNeed(place, total, available)
    return list(by_device.values())


def check_space(plan: RestorePlan) -> None:
    """Raise when a file system lacks the space that the plan needs."""
    for need in plan.space:
        if need.needed > need.available:
            raise StorageFailed(
                f'not enough space for "{need.path}": {format_bytes(need.needed)} are needed, '
                f"{format_bytes(need.available)} are free",
                hint="free space or choose another target (df -h); nothing was written",
            )
