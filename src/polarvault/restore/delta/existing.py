"""What is in the target of a delta restore already, and whether it may be changed. Only looks."""

from __future__ import annotations

import os
import shlex
from collections.abc import Container, Iterator, Sequence

from polarvault.backupset.backup import Entry
from polarvault.backupset.model import CONTROL_NAME, Area, Form
from polarvault.errors import TargetNotEmpty, UsageError
from polarvault.instance.model import Account
from polarvault.model.tablespace_mapping import mapping_option
from polarvault.pgfiles.control import ControlDamage, ControlFile, parse_known_control, system_identifier_of
from polarvault.pgfiles.tar import MemberKind
from polarvault.repository.reading.as_backup import BackupInRepository
from polarvault.restore.delta.own_wal import KEPT_DIRECTORY, segments_to_keep
from polarvault.restore.facts import BackupFacts, Existing, Place
from polarvault.restore.model import Layout, RestoreRequest
from polarvault.restore.plan.places import is_within
from polarvault.restore.plan.routing import Router, is_hidden, router_of
from polarvault.storage.below import Below
from polarvault.storage.files import storage_failed
from polarvault.storage.occupants import (
    CONTROL_ASIDE_NAME,
    CONTROL_WAITING_NAME,
    RESTORE_MARK_NAME,
    Occupancy,
    Occupant,
    not_empty,
)

# The one that counts comes first; the others are what an interrupted restore left.
_CONTROLS = (CONTROL_NAME, CONTROL_ASIDE_NAME, CONTROL_WAITING_NAME)
# What only a server, or a restore, leaves behind: without it a directory with a manifest is a backup.
_OF_A_SERVER = frozenset({"postmaster.opts", RESTORE_MARK_NAME})
_OF_A_RESTORE = frozenset({"recovery.signal", "standby.signal"})
_OF_A_BACKUP = frozenset({"backup_manifest", "polarvault_backup.json"})


def examine(
    request: RestoreRequest, backup: BackupFacts, layout: Layout, places: Sequence[Place], account: Account
) -> Existing | None:
    """Return what there is to go on with; None where the data directory holds nothing. The caller works as the account.

    Raises TargetNotEmpty and UsageError for what must not be changed.
    """
    source = backup.source
    if not isinstance(source, BackupInRepository):
        assert source.form is not Form.REPOSITORY
        raise UsageError(
            f'--delta compares with page sums, which a repository has, and "{source.path}" is a {source.form.value}',
            hint="leave --delta out, and choose an empty target",
        )
    occupants = {place.path: place.occupant for place in places if place.occupant is not None}
    if layout.data not in occupants:
        return None
    try:
        _check_sources(request, source, layout, occupants)
        for half in dict.fromkeys((layout.data, layout.local)):
            if half in occupants:
                _check_half(half, occupants[half], account)
        control = _check_identity(layout.data, backup)
        if layout.shared in occupants and not request.yes_shared:
            raise UsageError(
                f'--delta changes the shared half "{layout.shared}" in place, and nothing here shows whether a node on '
                "another host has it open",
                hint="when all nodes of the cluster are stopped: add --yes-shared",
            )
        for oid, location in layout.tablespaces.items():
            if location in occupants:
                _check_tablespace(request, layout, backup, oid, occupants[location])
        growth = _growth(source, layout, router_of(layout, backup.inventory), backup)
        # What was restored and never started has no WAL of its own.
        was_started = not os.path.exists(os.path.join(layout.local, "backup_label"))
        kept = segments_to_keep(layout.data, control, source.archives) if was_started and control is not None else ()
    except OSError as problem:
        raise storage_failed(problem, "look at", problem.filename or layout.local) from problem
    return Existing(frozenset(occupants), growth, kept)


def _check_sources(
    request: RestoreRequest, source: BackupInRepository, layout: Layout, occupied: Container[str]
) -> None:
    """Refuse a target in which something lies that the restore needs: it would be removed, as it does not belong."""
    words = [word for archive in source.archives for word in archive.fetch_options()]
    needed = [*request.recovery.wal_directories, *(word for word in words if os.path.isabs(word))]
    kept = os.path.realpath(os.path.join(layout.data, KEPT_DIRECTORY))
    for path in needed:
        real = os.path.realpath(path)
        inside = [root for root in layout.roots if root in occupied and is_within(real, os.path.realpath(root))]
        if inside and not is_within(real, kept):
            raise UsageError(
                f'"{path}" lies in the target "{inside[0]}", where --delta removes what does not belong',
                hint="copy it to another place, and name that",
            )


def _check_half(path: str, occupant: Occupant, account: Account) -> None:
    names = set(os.listdir(path))
    occupancy = occupant.occupancy
    if occupancy is Occupancy.SERVER:
        lock = os.path.join(path, "postmaster.pid")
        raise TargetNotEmpty(
            f'"{path}" is {occupancy.value}: --delta changes a stopped one only',
            hint=f"stop it: {shlex.join(['pg_ctl', '-D', path, 'stop'])}; if it has crashed, and no process of it is "
            f"left here or in a container: {shlex.join(['mv', lock, lock + '.old'])}",
        )
    is_backup = bool(names & _OF_A_BACKUP and not names & _OF_A_SERVER)
    is_backup |= "backup_label" in names and not names & (_OF_A_SERVER | _OF_A_RESTORE)
    if is_backup or occupancy in (Occupancy.TABLESPACE, Occupancy.OTHER):
        occupant = Occupant(path, Occupancy.BACKUP) if is_backup else occupant
        raise not_empty(occupant, replaceable=True)
    owner = os.stat(path).st_uid
    if owner != account.uid:
        raise UsageError(
            f'"{path}" belongs to user {owner}, and the restored files would belong to {account.name}',
            hint="run the restore as the owner, or as root without --owner",
        )


def _check_identity(data: str, backup: BackupFacts) -> ControlFile | None:
    """Return the pg_control that proves whose the files are; None if it is of a server that is not known."""
    with Below(data) as below:
        name = next((name for name in _CONTROLS if below.exists(name)), None)
        content = None if name is None else below.read(name)
    if content is None:
        raise TargetNotEmpty(
            f'"{data}" has no global/pg_control, so that nothing proves whose files these are',
            hint="restore into an empty directory",
        )
    try:
        control = parse_known_control(content, backup.major_version)
    except ControlDamage as problem:
        raise TargetNotEmpty(
            f'pg_control of "{data}" does not prove whose files these are: {problem.message}',
            hint="restore into an empty directory",
        ) from problem
    found, expected = str(system_identifier_of(content)), backup.system_identifier
    if found != expected:
        raise TargetNotEmpty(
            f'"{data}" is another cluster: its system identifier is {found}, and that of the backup {expected}',
            hint="name the cluster's own data directory, or an empty one",
        )
    return control


def _check_tablespace(
    request: RestoreRequest, layout: Layout, backup: BackupFacts, oid: int, occupant: Occupant
) -> None:
    """Refuse a tablespace that is not certainly this cluster's.

    The links of a copied data directory lead to the tablespaces of the one that was copied: so the link alone is no
    proof, and somebody has to say it.
    """
    location = occupant.path
    link = os.path.join(layout.local, "pg_tblspc", str(oid))
    original = next(space.location for space in backup.inventory.tablespaces if space.oid == oid)
    # An interrupted restore has left its mark before it could make the link.
    is_begun = occupant.occupancy is Occupancy.CUT_OFF_RESTORE
    is_linked = os.path.islink(link) and os.path.realpath(link) == os.path.realpath(location)
    if not (is_linked or is_begun):
        raise not_empty(occupant, tablespace=original)
    if request.tablespace_mapping.get(os.path.normpath(original)) != location:
        raise UsageError(
            f'tablespace {oid} at "{location}" would be changed in place; a copy of the cluster may use it as well',
            hint=f"if it is this cluster's alone: {mapping_option(original, location)}",
        )


def _growth(source: BackupInRepository, layout: Layout, router: Router, backup: BackupFacts) -> dict[str, int]:
    """Return how many bytes more each root's files will have; those that go are not counted."""
    growth = dict.fromkeys(layout.roots, 0)
    for entry, path in targets(source, layout, router, backup):
        if entry.kind is not MemberKind.FILE:
            continue
        try:
            size = os.lstat(path).st_size
        except OSError:
            size = 0
        root = root_of(path, layout)
        growth[root] += max(0, entry.size - size)
    growth[layout.data] += backup.inventory.sizes.get(Area.WAL, 0)
    return growth


def targets(
    source: BackupInRepository, layout: Layout, router: Router, backup: BackupFacts
) -> Iterator[tuple[Entry, str]]:
    """Yield everything in the backup that has a place, but for WAL and links, and the place."""
    for row in source.reader.rows():
        entry = source.entry(row)
        if entry.kind is MemberKind.SYMLINK or is_hidden(entry, layout, backup.inventory):
            continue
        if entry.area is Area.TABLESPACE and entry.tablespace_oid not in layout.tablespaces:
            continue
        path = router.path(entry.area, entry.name, entry.kind, entry.tablespace_oid)
        if path is not None:
            yield entry, path


def root_of(path: str, layout: Layout) -> str:
    """Return the innermost root that a path lies in."""
    inside = [root for root in layout.roots if path == root or path.startswith(root.rstrip("/") + "/")]
    return max(inside, key=len)
