"""The file that tells a directory of ours from everybody else's: which id it has, and whether it is whole.

It is the first thing in a new directory and the last to go, so that what was cut off is still known as ours.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from contextlib import suppress
from dataclasses import dataclass

from polarvault.snapshots.errors import NotOurs, SnapshotRefused
from polarvault.snapshots.model import Kind
from polarvault.snapshots.names import is_id, parse_name
from polarvault.storage.files import fsync_parent, open_regular, storage_failed, write_durably

NAME = ".polarvault-made.json"
# Its name while the directory is being removed: a full file system has room for a rename, and none for a new file.
REMOVING_NAME = NAME + ".removing"
_MOST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Mark:
    """What the file says. sources: the directories of which the numbered ones are pictures."""

    kind: Kind
    id: str
    is_whole: bool
    sources: tuple[str, ...] = ()


def make_marked(directory: str, mark: Mark) -> None:
    """Make a directory with its mark; raise SnapshotRefused if it is there, StorageFailed."""
    try:
        os.mkdir(directory, 0o700)
    except FileExistsError:
        raise SnapshotRefused(f'"{directory}" exists already', hint="nothing was changed; use another name") from None
    except OSError as problem:
        raise storage_failed(problem, "create directory", directory) from problem
    try:
        write_mark(directory, mark)
        fsync_parent(directory)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise


def write_mark(directory: str, mark: Mark) -> None:
    """Write the mark anew; on return it is durable."""
    content = {"kind": mark.kind.value, "id": mark.id, "whole": mark.is_whole, "sources": list(mark.sources)}
    # Paths are bytes: those that are no UTF-8 become surrogates, which JSON can carry.
    write_durably(os.path.join(directory, NAME), json.dumps(content).encode("ascii"))


def read_mark(directory: str) -> Mark | None:
    """Return the mark of a directory; None for one without, or with one that is not of this directory's name."""
    named = parse_name(os.path.basename(directory))
    try:
        if named is None or not stat.S_ISDIR(os.lstat(directory).st_mode):
            return None
        is_going = not os.path.lexists(os.path.join(directory, NAME))
        with open_regular(os.path.join(directory, REMOVING_NAME if is_going else NAME)) as stream:
            content = json.loads(stream.read(_MOST_BYTES))
        kind, id_, sources = Kind(content["kind"]), str(content["id"]), content["sources"]
        is_whole = content["whole"] is True and not is_going
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if (kind, id_) != named[:2] or not is_id(id_) or not isinstance(sources, list):
        return None
    return Mark(kind, id_, is_whole, tuple(map(str, sources)))


def remove_marked(directory: str, kind: Kind, id_: str) -> None:
    """Remove a directory with all that is in it, if it is the one with this id; else raise NotOurs and leave it.

    One that is gone already is no error. No link is followed.
    """
    if not os.path.lexists(directory):
        return
    mark = read_mark(directory)
    if mark is None or mark.id != id_ or mark.kind is not kind:
        raise NotOurs(
            f'"{directory}" is not the {kind.value} {id_} that was made here: it is left as it is',
            hint=f"see what it is: ls -la {directory}",
        )
    try:
        with suppress(FileNotFoundError):
            os.rename(os.path.join(directory, NAME), os.path.join(directory, REMOVING_NAME))
        for name in os.listdir(directory):
            path = os.path.join(directory, name)
            if name == REMOVING_NAME:
                continue
            if stat.S_ISDIR(os.lstat(path).st_mode):
                shutil.rmtree(path)
            else:
                os.unlink(path)
        os.unlink(os.path.join(directory, REMOVING_NAME))
        os.rmdir(directory)
        fsync_parent(directory)
    except OSError as problem:
        raise storage_failed(problem, "remove", directory) from problem
