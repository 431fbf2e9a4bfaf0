"""The chain of an incremental backup: from a full one to the newest, found from what each backup_label says.

An incremental backup holds what changed since another backup, and its label names that one by where it began:
INCREMENTAL FROM LSN and INCREMENTAL FROM TLI (server: basebackup_incremental.c). pg_combinebackup makes a whole backup
of a chain; it reads plain backups only, and takes them oldest first.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from polarvault.backupset.backup import Backup
from polarvault.backupset.model import Area, Form, Inventory
from polarvault.backupset.source import OnDisk, looks_like_backup
from polarvault.errors import BackupUnusable, PolarvaultError
from polarvault.pgfiles.backup_label import BackupLabel, parse_backup_label
from polarvault.restore.model import Link, RestoreRequest
from polarvault.restore.plan.candidates import Candidate, candidates_in, load_label
from polarvault.restore.plan.integrity import check_integrity

_PREFIX = "INCREMENTAL."


@dataclass(frozen=True, slots=True)
class _Choice:
    """Where older links are looked for."""

    candidates: list[Candidate]
    words: str


def order_backups(backups: Sequence[str], *, force: bool) -> tuple[str, tuple[str, ...]]:
    """Return the newest of the backups that were named, and the others; raise PolarvaultError for what is none."""
    if len(backups) == 1:
        return backups[0], ()
    labels = [(load_label(OnDisk(), path, force=force), path) for path in backups]
    *older, newest = sorted(labels, key=lambda pair: pair[0].start_lsn)
    if newest[0].incremental_from_lsn is None:
        raise BackupUnusable(
            f'"{newest[1]}", which began last, is not an incremental backup, so that it needs none of the others',
            hint=f"name it alone: polarvault restore {shlex.quote(newest[1])} -D DIRECTORY",
        )
    return newest[1], tuple(path for _, path in older)


def plan_chain(request: RestoreRequest, source: Backup, inventory: Inventory) -> tuple[Link, ...]:
    """Return every link of an incremental backup's chain, full one first; empty for a backup that is whole itself.

    Raises BackupUnusable that says which link is missing, and IntegrityError for one that is damaged.
    """
    label = _label(inventory)
    if label is None or label.incremental_from_lsn is None:
        return ()
    _refuse_tar(source)
    chain = [Link(source.path, label, source, inventory)]
    choice = _choice(request, source)
    while (label := chain[0].label).incremental_from_lsn is not None:
        chain.insert(0, _link_before(request, chain[0], choice))
    for unused in set(request.older) - {link.path for link in chain}:
        raise BackupUnusable(
            f'"{unused}" is not part of the chain of "{source.path}"',
            hint="leave it out; the chain: " + " ".join(shlex.quote(link.path) for link in chain),
        )
    return tuple(chain)


def combined(chain: Sequence[Link]) -> Inventory:
    """Return the newest link's inventory with the sizes that the combined backup will have, as far as can be told."""
    newest = chain[-1].inventory
    sizes = {Area.LOCAL: 0}
    spaces = dict.fromkeys(newest.tablespace_sizes, 0)
    for (_, path), size in newest.lengths.items():
        whole = _whole_size(path, size, chain)
        oid = int(path.split("/")[1]) if path.startswith("pg_tblspc/") else 0
        if oid:
            spaces[oid] = spaces.get(oid, 0) + whole
        else:
            sizes[Area.LOCAL] += whole
    sizes[Area.LOCAL] += sum(newest.wal.values())
    return replace(newest, sizes=sizes, tablespace_sizes=spaces)


def _whole_size(path: str, size: int, chain: Sequence[Link]) -> int:
    directory, name = os.path.split(path)
    if not name.startswith(_PREFIX):
        return size
    whole = (Area.LOCAL, os.path.join(directory, name.removeprefix(_PREFIX)))
    return next((link.inventory.lengths[whole] for link in reversed(chain) if whole in link.inventory.lengths), size)


def _label(inventory: Inventory) -> BackupLabel | None:
    content = inventory.file("backup_label")
    return parse_backup_label(content) if content is not None else None


def _choice(request: RestoreRequest, source: Backup) -> _Choice:
    if request.older:
        given = [Candidate(path, load_label(request.shelf, path, force=request.force)) for path in request.older]
        return _Choice(given, "those that were named")
    directory = os.path.dirname(source.path)
    # Beside a backup, not inside of one.
    found = [] if looks_like_backup(directory) else candidates_in(request.shelf, directory, force=request.force)
    return _Choice(found, f'the backups in "{directory}"')


def _link_before(request: RestoreRequest, link: Link, choice: _Choice) -> Link:
    label = link.label
    fitting = [
        one
        for one in choice.candidates
        if one.label is not None
        and one.label.start_lsn == label.incremental_from_lsn
        and label.incremental_from_timeline in (None, one.label.timeline_id)
        and os.path.realpath(one.path) != os.path.realpath(link.path)
    ]
    problem: PolarvaultError | None = None
    for one in fitting:
        assert one.label is not None
        try:
            source = request.shelf.find(one.path, force=request.force)
            _refuse_tar(source)
            inventory = source.look_through()
            _check_cluster(link, inventory, source)
            _, warnings = check_integrity(replace(request, reports_damage=False), source, inventory)
            named = tuple(f'"{one.path}", which the backup is incremental to: {warning}' for warning in warnings)
            return Link(one.path, one.label, source, inventory, named)
        except PolarvaultError as refused:
            problem = problem or refused
    if problem is not None:
        raise problem
    raise _missing(link, choice)


def _missing(link: Link, choice: _Choice) -> BackupUnusable:
    timeline = link.label.incremental_from_timeline
    on = f" on timeline {timeline}" if timeline else ""
    there = "\n  ".join(_described(choice))
    return BackupUnusable(
        f'"{link.path}" is an incremental backup of the one that began at {link.label.incremental_from_lsn}{on}, and '
        f"that is not among {choice.words}",
        detail=f"there are:\n  {there}" if there else None,
        hint="name every backup of the chain: polarvault restore FULL INCREMENTAL... -D DIRECTORY",
    )


def _described(choice: _Choice) -> Iterator[str]:
    for one in choice.candidates:
        if one.label is None:
            yield f"{one.path}: cannot be used: {one.problem.message if one.problem else 'no label'}"
            continue
        base = one.label.incremental_from_lsn
        kind = f"incremental, from {base}" if base is not None else "full"
        yield f"{one.path}: began at {one.label.start_lsn} on timeline {one.label.timeline_id}, {kind}"


def _check_cluster(link: Link, inventory: Inventory, source: Backup) -> None:
    ours, theirs = link.inventory.control, inventory.control
    if ours and theirs and ours.system_identifier != theirs.system_identifier:
        raise BackupUnusable(
            f'"{source.path}" is of another cluster (system identifier {theirs.system_identifier}) than "{link.path}" '
            f"({ours.system_identifier})",
            hint="name the backups of one cluster: polarvault restore FULL INCREMENTAL... -D DIRECTORY",
        )


def _refuse_tar(source: Backup) -> None:
    if source.form is Form.PLAIN:
        return
    path = shlex.quote(source.path)
    raise BackupUnusable(
        f'"{source.path}" belongs to an incremental backup and is in tar format, which pg_combinebackup does not read',
        hint=f"unpack it: mkdir -p PLAIN/pg_wal && tar -xf {path}/base.tar -C PLAIN && tar -xf {path}/pg_wal.tar -C "
        f"PLAIN/pg_wal && cp {path}/backup_manifest PLAIN/; each tablespace's tar into a directory to which "
        "PLAIN/pg_tblspc/OID is a link",
    )
