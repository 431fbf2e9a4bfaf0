"""Several backups in one directory: which there are, which of them can be used, and the right one for a target.

What is no whole backup (cut off, damaged, unreadable) is never passed over without a word: it may be the newest one,
and whoever relies on it has to know.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from polarvault.backupset.backup import Concerned, Shelf
from polarvault.backupset.source import OnDisk, find_backup
from polarvault.errors import (
    BackupUnusable,
    IntegrityError,
    PolarvaultError,
    StorageFailed,
    TargetUnreachable,
    TimelineDiverged,
    WalDamaged,
    WalGap,
)
from polarvault.pgfiles.backup_label import BackupLabel, parse_backup_label
from polarvault.recovery.reachability import Window
from polarvault.restore.facts import Choice, RestoreFacts
from polarvault.restore.model import RestoreRequest
from polarvault.restore.plan.integrity import find_disagreements
from polarvault.restore.plan.windows import cut_off_warnings, describe_windows, settled_windows, windows_of
from polarvault.storage.below import Below

# What means "not this backup, but perhaps an older one".
_OTHER_BACKUP_MAY_DO = (TargetUnreachable, TimelineDiverged, WalDamaged, WalGap)
_BROKEN = (BackupUnusable, IntegrityError, StorageFailed)
# Older backups that are looked at for one that is whole; each costs a listing.
_LOOKED_AT = 5


@dataclass(frozen=True, slots=True)
class Candidate:
    """A directory that is, or was to become, a backup; problem: why it cannot be used, then label is None."""

    path: str
    label: BackupLabel | None
    problem: PolarvaultError | None = None


def candidates_in(shelf: Shelf, word: str, *, force: bool = False) -> list[Candidate]:
    """Return the backups where a word leads; none when it names a backup itself, or nothing.

    Newest first, which means the one that starts last in the WAL, whatever its name says; then those that cannot be
    used at all.
    """
    found = [_candidate(shelf, path, force=force) for path in shelf.several(word)]
    return sorted(found, key=lambda one: (one.label.start_lsn if one.label else -1, one.path), reverse=True)


def _candidate(shelf: Shelf, path: str, *, force: bool) -> Candidate:
    try:
        return Candidate(path, load_label(shelf, path, force=force))
    except PolarvaultError as problem:
        return Candidate(path, None, problem)


def load_label(shelf: Shelf, path: str, *, force: bool = False) -> BackupLabel:
    """Return the label of a backup; raise PolarvaultError for one that cannot be used."""
    source = shelf.find(path, force=force)
    if source.parts and all(not part.is_tar for part in source.parts):
        try:
            with Below(path) as backup:
                return parse_backup_label(backup.read("backup_label"))
        except OSError:
            pass  # Without a label it may still be a copy of a server that was shut down; the inventory tells.
    content = source.look_through().file("backup_label")
    if content is None:
        raise BackupUnusable(f'"{source.path}" holds no backup_label', hint="name it alone, to see what it is")
    return parse_backup_label(content)


def choose_backup(
    request: RestoreRequest, candidates: list[Candidate], gather_one: Callable[[RestoreRequest], RestoreFacts]
) -> tuple[RestoreRequest, RestoreFacts]:
    """Return request and facts for the newest of several backups that reaches the target, and why others do not.

    gather_one gathers the facts about one backup, how its recovery would go included.
    """
    rejected: list[tuple[str, str]] = []
    details: dict[str, str | None] = {}
    broken: set[str] = set()
    problem: PolarvaultError | None = None
    chosen: tuple[RestoreRequest, RestoreFacts] | None = None
    for candidate in candidates:
        if candidate.problem is not None:
            broken.add(candidate.path)
            rejected.append((candidate.path, candidate.problem.message))
            continue
        if chosen is not None:
            continue
        try:
            # Whether it is whole decides here, also for who reports damage and goes on with a backup that was named.
            asked = replace(request, backup=candidate.path, reports_damage=False)
            chosen = asked, gather_one(asked)
        except (*_OTHER_BACKUP_MAY_DO, *_BROKEN) as refused:
            # The newest one's account of what can be reached is the most useful one.
            problem = problem or refused
            rejected.append((candidate.path, refused.message))
            details[candidate.path] = refused.detail
            if isinstance(refused, _BROKEN) and not isinstance(refused, WalDamaged):
                broken.add(candidate.path)
    usable = [(one.path, one.label) for one in candidates if one.label is not None and one.path not in broken]
    windows = windows_of(request, usable) if not request.recovery.archive_is_unknown else ()
    if chosen is not None:
        asked, facts = chosen
        warnings = tuple(f'"{path}" cannot be used: {why}' for path, why in rejected if path in broken)
        if facts.recovery is not None:
            windows = settled_windows(windows, facts.recovery.reachable, facts.backup.source.path)
            warnings += tuple(f'"{path}": {why}' for path, why in cut_off_warnings(windows))
        return asked, replace(facts, choice=Choice(tuple(rejected), frozenset(broken), windows, warnings))
    problem = problem or next(one.problem for one in candidates if one.problem is not None)
    lines = "\n  ".join(f"{path}: {why}" for path, why in rejected)
    reached = _what_all_reach(request, windows, details) or problem.detail or ""
    # Damage in the WAL is none of a target, whichever backup one begins with.
    error = WalDamaged if isinstance(problem, WalDamaged) else TargetUnreachable
    raise error(
        f'none of the {len(rejected)} backups in "{request.backup}" reaches {request.recovery.effective_target}',
        detail=f"newest first:\n  {lines}\n{reached}".rstrip(),
        hint=problem.hint,
    ) from problem


def _what_all_reach(
    request: RestoreRequest, windows: Sequence[Window], details: Mapping[str, str | None]
) -> str | None:
    """Say what the backups reach together; details: what the refusal of each says about it alone."""
    if not windows:
        return None
    # The oldest backup of a window has read all WAL of it, restore points included.
    own = details.get(windows[-1].backups[0])
    if own is not None and len(windows) == 1:
        return f"{own}\n  the earliest with {windows[0].backups[0]}"
    target = request.recovery.target
    zone = target.time.tzinfo if target is not None and target.time else None
    return "\n  ".join(["what can be reached:", *describe_windows(windows, zone)]) + (
        f"\nof the last, {own}" if own else ""
    )


def refuse_several(directory: str, candidates: list[Candidate]) -> BackupUnusable:
    """Return the error for a directory of backups without a target that would choose one."""
    usable = [one for one in candidates if one.problem is None]
    broken = [one for one in candidates if one.problem is not None]
    newest = next(((one.path, why) for one in usable[:_LOOKED_AT] if (why := _how_whole(one)) is not None), None)
    lines = [f"{one.path}: {one.problem.message}" for one in broken if one.problem]
    lines += [f"{one.path}: does not agree with its manifest" for one in usable[:_LOOKED_AT] if _how_whole(one) is None]
    choice = f"the newest that is whole is {newest[0]} ({newest[1]})" if newest else "none of them is whole"
    return BackupUnusable(
        f'"{directory}" holds {len(candidates)} backups and is none itself',
        detail="\n  ".join(["these cannot be used:", *lines]) if lines else None,
        hint=f"name one of them, {choice}; or a target, and the right one is chosen: --wal DIR --target latest",
    )


def name_older_backup(problem: IntegrityError, path: str, shelf: Shelf) -> IntegrityError:
    """Add to the error of a backup that is damaged which older one beside it is whole, and which is damaged as well."""
    concerned = shelf.concerned(problem, path)
    if concerned is not None:
        return _with_concerned(problem, concerned)
    if not isinstance(shelf, OnDisk):
        return problem
    # Damage in the WAL is not the backup's, and an older one needs that WAL as well.
    older = None if isinstance(problem, WalDamaged) else next(_whole_older(path), None)
    if older is not None:
        option, why = older
        line = f"older, and whole ({why}): polarvault restore {shlex.quote(option)} -D DIRECTORY"
        problem.hint = f"{line}; {problem.hint}" if problem.hint else line
    return problem


def _with_concerned(problem: IntegrityError, concerned: Concerned) -> IntegrityError:
    if concerned.others:
        shown = ", ".join(concerned.others[:_LOOKED_AT])
        more = f" and {len(concerned.others) - _LOOKED_AT} more" if len(concerned.others) > _LOOKED_AT else ""
        problem.message += f"; damaged by the same are {shown}{more}"
    if concerned.spared:
        line = f"older, and without that damage: polarvault restore {concerned.spared[0]} -D DIRECTORY"
        if concerned.way is not None:
            line = "older, without that damage, and its WAL leads to where this one ends, or on: polarvault restore "
            line += f"{concerned.way} -D DIRECTORY"
        problem.hint = f"{line}; {problem.hint}" if problem.hint else line
    return problem


def _whole_older(path: str) -> Iterator[tuple[str, str]]:
    parent = os.path.dirname(os.path.abspath(path))
    try:
        candidates = candidates_in(OnDisk(), parent)
    except OSError:
        return
    own = next((one for one in candidates if os.path.realpath(one.path) == os.path.realpath(path)), None)
    for one in [one for one in candidates if one.label is not None][: _LOOKED_AT * 2]:
        if one is own or one.label is None:
            continue
        if own is not None and own.label is not None and one.label.start_lsn >= own.label.start_lsn:
            continue
        if (why := _how_whole(one)) is not None:
            yield one.path, why


def _how_whole(candidate: Candidate) -> str | None:
    """Say how far a backup is known to be whole; None: it is not."""
    try:
        source = find_backup(candidate.path)
        inventory = source.look_through()
    except PolarvaultError:
        return None
    listing = inventory.listing
    if listing is None or listing.damage is not None or candidate.label is None:
        return None
    if candidate.label.incremental_from_lsn is not None or not listing.entries or not inventory.has_control:
        return None
    if any(not one.is_setting for one in find_disagreements(source, inventory)):
        return None
    return (
        "names and sizes agree with its manifest" if inventory.is_whole else "compressed, compared when it is unpacked"
    )
