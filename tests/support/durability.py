"""Judge a trace of system calls: would a power cut, at any moment, leave something that is taken for whole and is not?

What counts is the worst that a file system may do: of a file only what a finished fsync covers is there afterwards, of
a directory only the names that a finished fsync of that directory covers, and what was not synced may be there as well.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import lz4.frame
import zstandard

from support.power_cut import Event

# A number is given to another file once its first one is gone: the event that made it tells them apart.
Inode = tuple[int, int, int]
_SEGMENT = re.compile(r"([0-9A-F]{24})(\.gz|\.lz4|\.zst)?(\.partial)?\Z")
_SHOWN = 4
_CHANGES = ("write", "create", "mkdir", "symlink", "link", "rename", "unlink")


@dataclass(frozen=True, slots=True)
class Rules:
    """What must hold. Names are last components of paths.

    commits: op and name of each call that makes something valid, in their order; before it everything else must be
    durable, and it must be durable itself before the next one. guard: the file that says "unfinished"; nothing else of
    its directory may be durable before it is. renames: a file gets its final name only when its content is durable.
    news: names that need not survive; nor need those in directories called scratch, though what is written there must.
    disarms: the new name of what is taken away before anything is changed; until that is durable nothing may be.
    wal_start, segment_bytes: what is acknowledged to the server, from there on, must be durable.
    """

    commits: tuple[tuple[str, str], ...] = ()
    guard: str | None = None
    disarms: str | None = None
    renames: bool = False
    news: tuple[str, ...] = ()
    scratch: tuple[str, ...] = ()
    wal_start: int | None = None
    segment_bytes: int = 1 << 20


@dataclass(slots=True)
class _Demand:
    """Compressed WAL: what the durable front of a file must hold when it is decoded."""

    inode: Inode
    suffix: str
    durable_bytes: int
    needed_bytes: int
    what: str


@dataclass(slots=True)
class Disk:
    """What is in the kernel's memory only, after the events so far; numbers are those of events."""

    names: dict[str, Inode] = field(default_factory=dict)
    # Names made or removed since their directory was synced.
    pending: dict[str, int] = field(default_factory=dict)
    dirty: dict[Inode | None, list[tuple[int, int, int]]] = field(default_factory=dict)
    length: dict[Inode | None, int] = field(default_factory=dict)
    made: dict[tuple[int, int], int] = field(default_factory=dict)

    def file_of(self, event: Event) -> Inode | None:
        """Return which file an event is about."""
        if not event["inode"]:
            return None
        device, number = event["inode"]
        return device, number, self.made.get((device, number), 0)

    def apply(self, event: Event) -> None:
        """Take the next event."""
        op, path, number = event["op"], event["path"], event["number"]
        if op in ("create", "mkdir", "symlink"):
            self.made[tuple(event["inode"])] = number
        inode = self.file_of(event)
        if op in ("sync", "syncfs"):
            self._sync(path, inode, event["since"])
        elif op == "write":
            assert inode is not None
            self.dirty.setdefault(inode, []).append((number, event["start"], event["end"]))
            self.length[inode] = max(self.length.get(inode, 0), event["end"])
        elif op in ("create", "mkdir", "symlink", "link"):
            assert inode is not None
            self.names[path], self.pending[path] = inode, number
        elif op == "rename":
            assert inode is not None
            self._rename(event["old"], path, inode, number)
        elif op == "exists":
            assert inode is not None
            self.names[path], self.length[inode] = inode, event["length"]
        elif op == "unlink":
            self.names.pop(path, None)
            # With a directory goes what is pending in it.
            self.pending = {one: of for one, of in self.pending.items() if not one.startswith(path + os.sep)}
            self.pending[path] = number

    def undurable(self, *, but: Sequence[str] = (), news: Sequence[str] = (), scratch: Sequence[str] = ()) -> list[str]:
        """Say what a power cut now may take away, or bring back."""
        found = []
        for path in sorted({*self.names, *self.pending} - set(but)):
            if os.path.basename(path) in news:
                continue
            if path in self.pending and os.path.basename(os.path.dirname(path)) not in scratch:
                found.append(f"the name {path}" if path in self.names else f"that {path} is gone")
            if self.dirty.get(self.names.get(path)):
                found.append(f"the content of {path}")
        return found

    def _sync(self, path: str, inode: Inode | None, since: int) -> None:
        for entry, number in list(self.pending.items()):
            if number < since and (inode is None or os.path.dirname(entry) == path):
                del self.pending[entry]
        for one in list(self.dirty) if inode is None else [inode]:
            self.dirty[one] = [change for change in self.dirty.get(one, []) if change[0] >= since]

    def _rename(self, old: str, new: str, inode: Inode, number: int) -> None:
        if old not in self.names:
            # Another program has made it, and nobody knows what it has synced.
            self.dirty.setdefault(inode, []).append((number, 0, 1 << 62))
        for path in [path for path in self.names if path.startswith(old + os.sep)]:
            moved = new + path[len(old) :]
            self.names[moved] = self.names.pop(path)
            if path in self.pending:
                self.pending[moved] = self.pending.pop(path)
        self.names.pop(old, None)
        self.names[new] = inode
        self.pending[old] = self.pending[new] = number


def judge(events: Sequence[Event], rules: Rules) -> list[str]:
    """Return what is wrong with a run that ended well; nothing if nothing is."""
    disk, found, demands = Disk(), [], list[_Demand]()
    # Of each the last one counts.
    committed: dict[tuple[str, str], int] = {}
    for place, event in enumerate(events):
        op, path = event["op"], event["path"]
        name = os.path.basename(path)
        if op == "opaque" and name not in rules.news:
            found.append(f"{path} is opened for writing where nobody sees whether it is synced")
        if (op, name) in rules.commits:
            committed[op, name] = place
            lost = disk.undurable(but=(path, event.get("old", path)), news=rules.news, scratch=rules.scratch)
            if op == "rename" and disk.dirty.get(disk.file_of(event)):
                lost.append(f"its own content, {event['old']}")
            found += _said(f"when {op} {path} makes it valid", lost)
        if op == "rename" and rules.renames and disk.dirty.get(disk.file_of(event)) and name not in rules.news:
            found.append(f"{path} gets its name before its content is durable")
        if rules.guard is not None and op == "sync" and name != rules.guard:
            found += _unguarded(disk, rules.guard, path)
        if op in _CHANGES and name not in (rules.guard, rules.disarms) and _is_armed(disk, rules.disarms):
            found.append(f"{path} is changed before the name {rules.disarms} is durable")
        if op == "acknowledge" and rules.wal_start is not None:
            found += _acknowledged(disk, event["flushed"], rules, demands)
        disk.apply(event)
    found += _said("at the end", disk.undurable(news=rules.news, scratch=rules.scratch))
    found += [f"there is no {op} of {name}" for op, name in rules.commits if (op, name) not in committed]
    if (order := [committed[commit] for commit in rules.commits if commit in committed]) != sorted(order):
        found.append(f"not in this order: {', '.join(name for _, name in rules.commits)}")
    paths = {inode: path for path, inode in disk.names.items()}
    return found + [problem for demand in demands if (problem := _unmet(demand, paths.get(demand.inode)))]


def _said(when: str, lost: list[str]) -> list[str]:
    if not lost:
        return []
    more = f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
    return [f"{when}, these are not durable: {', '.join(lost[:_SHOWN])}{more}"]


def _is_armed(disk: Disk, name: str | None) -> bool:
    return any(os.path.basename(path) == name and path in disk.names for path in disk.pending)


def _unguarded(disk: Disk, guard: str, path: str) -> list[str]:
    """A sync of a file: what guards the directory it lies in must be durable already."""
    directory = os.path.dirname(path)
    while directory != os.sep:
        guarding = os.path.join(directory, guard)
        if guarding in disk.names and guarding in disk.pending and path in disk.names:
            return [f"{path} becomes durable before {guarding}, which says that the directory is unfinished"]
        directory = os.path.dirname(directory)
    return []


def _acknowledged(disk: Disk, flushed: int, rules: Rules, demands: list[_Demand]) -> list[str]:
    size, start = rules.segment_bytes, rules.wal_start
    assert start is not None
    lost = [what for what in disk.undurable() if what.endswith(".history")]
    if lost:
        return [f"WAL is acknowledged before the history of its timeline is durable: {lost[0]}"]
    for number in range(start // size, -(-flushed // size) if flushed > start else 0):
        needed = min(size, flushed - number * size)
        problem = f"the WAL up to {flushed:X} is acknowledged, and segment {number:X} is not durable"
        for path, inode in disk.names.items():
            match = _SEGMENT.match(os.path.basename(path))
            if match is None or path in disk.pending or int(match[1][8:16], 16) or int(match[1][16:], 16) != number:
                continue
            dirty = [start for _, start, _ in disk.dirty.get(inode, [])]
            if match[2]:
                front = min([*dirty, disk.length.get(inode, 0)])
                demands.append(_Demand(inode, match[2], front, needed, problem))
                break
            if all(start >= needed for start in dirty):
                break
        else:
            return [problem]
    return []


def _unmet(demand: _Demand, path: str | None) -> str | None:
    if path is None:
        return None  # Replaced by one that holds as much, which is looked at for the acknowledgements after that.
    front = Path(path).read_bytes()[: demand.durable_bytes]
    return None if len(_DECODERS[demand.suffix](front)) >= demand.needed_bytes else demand.what


_DECODERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": lambda front: zlib.decompressobj(wbits=31).decompress(front),
    ".lz4": lambda front: bytes(lz4.frame.LZ4FrameDecompressor().decompress(front, max_length=1 << 30)),
    ".zst": lambda front: zstandard.ZstdDecompressor().decompressobj().decompress(front),
}
