"""Do to a directory what a power cut may do: take away what was not synced, or some of it.

Of a file the content that the last finished fsync covered comes back, or zeros in the place of what was written since,
or everything is kept; of a directory the changes since its last fsync are undone, or kept. The seed decides. Symbolic
links and modes are kept as they are.
"""

from __future__ import annotations

import os
import random
import shutil
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

Event = dict[str, Any]
Inode = tuple[int, int]
# Enough for a WAL segment, which is sparse here.
_MOST_BYTES = 32 << 20
_NEW_NAMES = ("create", "symlink", "link", "mkdir")


@dataclass(frozen=True, slots=True)
class _Change:
    """A change of names that no fsync of the directory has covered; kept is a second name of what had the path."""

    number: int
    op: str
    path: str
    old: str | None
    kept: str | None


class PowerCut:
    """Remembers what is durable below a root while a process works; `cut` takes away what is not, or some of it."""

    def __init__(self, root: str, kept: str, seed: str) -> None:
        self._root = root
        self._kept = kept
        self._random = random.Random(seed)
        self._changes: list[_Change] = []
        # The content that is durable; and what will be, once the sync that began at that event has returned.
        self._durable: dict[Inode, bytes] = {}
        self._coming: dict[int, dict[Inode, bytes]] = {}
        self._dirty: dict[Inode, int] = {}
        self._last_kept: str | None = None
        self._links = 0
        os.mkdir(kept)
        # A restore under root works as another account.
        os.chmod(kept, 0o777)

    def keep(self, path: str) -> None:
        """Give what has the path a second name, before it loses this one."""
        self._last_kept = None
        if os.path.lexists(path) and not os.path.isdir(path):
            self._links += 1
            self._last_kept = os.path.join(self._kept, str(self._links))
            os.link(path, self._last_kept, follow_symlinks=False)

    def sync_begins(self, path: str | None, number: int) -> None:
        """Take the content that a sync, of one file or of everything (None), is going to make durable."""
        files = self._files() if path is None else [(_inode(path), path)] if os.path.isfile(path) else []
        self._coming[number] = {inode: content for inode, path in files if (content := _read(path)) is not None}

    def note(self, event: Event) -> None:
        """Take what has been done."""
        op, path, number = event["op"], event["path"], event["number"]
        inode = tuple(event["inode"]) if event["inode"] else None
        if op in ("sync", "syncfs"):
            self._synced(path, inode, event["since"])
        elif op == "exists" and event["length"] <= _MOST_BYTES and os.path.isfile(path) and inode is not None:
            self._durable[inode] = _read(path) or b""
        elif op == "write" and inode is not None:
            self._dirty[inode] = number
        elif op in (*_NEW_NAMES, "rename", "unlink"):
            if op == "create" and inode is not None:
                self._durable[inode] = b""
                self._dirty.pop(inode, None)
            kept = self._last_kept if op in ("rename", "unlink") else None
            self._changes.append(_Change(number, op, path, event.get("old"), kept))

    def cut(self) -> None:
        """Leave of everything what survives."""
        for inode, path in list(self._files()):
            if inode in self._dirty and inode in self._durable:
                self._lose_content(path, self._durable[inode])
        # All of it, a part of the directories, or nothing.
        share = self._random.choice((0.0, 0.5, 0.5, 1.0, 1.0))
        directories = sorted({os.path.dirname(change.path) for change in self._changes})
        lost = {directory for directory in directories if self._random.random() < share}
        for change in reversed(self._changes):
            if os.path.dirname(change.path) in lost:
                with suppress(FileNotFoundError):
                    _undo(change)

    def _synced(self, path: str, inode: Inode | None, since: int) -> None:
        self._changes = [
            change for change in self._changes
            if change.number >= since or (inode is not None and os.path.dirname(change.path) != path)
        ]  # fmt: skip
        for found, content in self._coming.pop(since, {}).items():
            self._durable[found] = content
            if self._dirty.get(found, since) < since:
                del self._dirty[found]

    def _lose_content(self, path: str, durable: bytes) -> None:
        choice = self._random.randrange(4)
        if choice == 3:
            return
        size = os.path.getsize(path)
        with open(path, "r+b") as stream:
            stream.truncate(0)
            stream.write(durable)
            # The length may be on disk before the content: zeros are read there.
            if choice == 2:
                stream.truncate(size)

    def _files(self) -> list[tuple[Inode, str]]:
        paths = [os.path.join(directory, name) for directory, _, names in os.walk(self._root) for name in names]
        return [(_inode(path), path) for path in paths if os.path.isfile(path) and not os.path.islink(path)]


def _inode(path: str) -> Inode:
    status = os.lstat(path)
    return status.st_dev, status.st_ino


def _undo(change: _Change) -> None:
    if change.op == "mkdir":
        shutil.rmtree(change.path)
    elif change.op in _NEW_NAMES:
        os.unlink(change.path)
    elif change.op == "rename" and change.old is not None:
        os.rename(change.path, change.old)
    if change.kept is not None and not os.path.lexists(change.path):
        os.link(change.kept, change.path, follow_symlinks=False)


def _read(path: str) -> bytes | None:
    try:
        if os.path.getsize(path) > _MOST_BYTES:
            return None
        with open(path, "rb") as stream:
            return stream.read()
    except OSError:
        return None
