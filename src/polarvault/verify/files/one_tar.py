"""Read a backup that is one tar (`-D - -Ft`), from a file or from standard input: once, from its first byte on.

Everything is found out in that one pass, as in a compressed tar (`compressed`). The manifest comes last: checksums are
made of both kinds that are usual, and WAL, of which the manifest says how much is needed, waits in an unnamed temporary
file. PolarDB's shared half lies below polar_shared_data/.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import BinaryIO

from polarvault.backupset.model import SHARED_PREFIX, STANDARD_INPUT, Area, Part, area_of, wal_name_of
from polarvault.backupset.reading.tarstream import read_tar_stream
from polarvault.backupset.wal.tars import SpooledWal
from polarvault.errors import IntegrityError
from polarvault.model import limits
from polarvault.pgfiles.digest import Digest, new_digest
from polarvault.pgfiles.pages import Kernel, relation_segment
from polarvault.pgfiles.tar import Member, MemberBegins, MemberData, MemberKind, TarEvent
from polarvault.storage.files import storage_failed
from polarvault.verify.files.contents import Contents, Report, damaged_tar, is_kept, note_member
from polarvault.verify.files.reading import FileReading, FileTask, PageReader
from polarvault.verify.files.trees import IgnoreRules
from polarvault.verify.layout import MANIFEST, Half

# What manifests have: the default of the server's and ours, and what people choose instead.
_USUAL_ALGORITHMS = ("CRC32C", "SHA256")


@dataclass(frozen=True, slots=True)
class OneTarChecks:
    """What is wanted of a tar while it goes by; kernel None: no pages. wants_wal: keep it for later."""

    checksums: bool
    wants_wal: bool
    kernel: Kernel | None
    blocks_per_segment: int


@dataclass(slots=True)
class OneTar:
    """What was found in the tar: the halves, the manifest of each, WAL.

    checksums: of every file by half and path, for each algorithm that was tried.
    """

    contents: list[Contents]
    manifests: dict[Area, bytes] = field(default_factory=dict)
    checksums: dict[tuple[Area, str], dict[str, str]] = field(default_factory=dict)
    wal: SpooledWal | None = None

    def choose(self, algorithm: str | None) -> bool:
        """Give every reading its checksum of the manifest's algorithm; False if that was not among those tried."""
        for found in self.contents:
            for path, reading in found.readings.items():
                reading.checksum = self.checksums[found.half.area, path].get(algorithm or "")
        return algorithm is None or algorithm in _USUAL_ALGORITHMS


def read_one_tar(
    path: str, ignored: IgnoreRules, checks: OneTarChecks, report: Report, *, advance: Callable[[int], None]
) -> OneTar:
    """Read the tar at a path, "-" for standard input; raise BackupUnusable if it is encrypted, StorageFailed."""
    part = Part(Area.LOCAL, path, is_tar=True)
    title = "standard input" if path == STANDARD_INPUT else path
    one = OneTar([Contents(Half(Area.LOCAL, os.path.dirname(path), None, (part,)))])
    if checks.wants_wal:
        one.wal = SpooledWal(title)
    tar = _Pass(one, part, ignored, checks)
    with _opened(path) as stream:
        try:
            for event in read_tar_stream(stream, path):
                tar.accept(event)
                if isinstance(event, MemberData):
                    advance(event.size)
        except IntegrityError as problem:
            tar.forget_unfinished()
            for found in one.contents:
                found.cut_tars[part] = tar.last_member
            report(replace(damaged_tar(part, problem.message), subject=title))
    return one


@contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    if path == STANDARD_INPUT:
        yield sys.stdin.buffer
        return
    try:
        # A pipe that the user has named, such as <(gpg -d FILE), is as good as standard input.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as problem:
        raise storage_failed(problem, "read", path) from problem
    with open(descriptor, "rb", buffering=0) as stream:
        yield stream


class _Pass:
    """One way through the tar."""

    def __init__(self, one: OneTar, part: Part, ignored: IgnoreRules, checks: OneTarChecks) -> None:
        self._one = one
        self._part = part
        self._ignored = ignored
        self._checks = checks
        self.last_member = ""
        self._take: Callable[[bytes], object] | None = None
        self._end: Callable[[], None] = lambda: None
        self._unfinished: tuple[Contents, str] | None = None

    def accept(self, event: TarEvent) -> None:
        """Take the next event."""
        if isinstance(event, MemberBegins):
            self.last_member = event.member.name
            self._take, self._end, self._unfinished = None, lambda: None, None
            self._begin(event.member)
        elif isinstance(event, MemberData):
            if self._take is not None:
                for view in event.views:
                    self._take(bytes(view))
        else:
            self._end()
            self._unfinished = None

    def forget_unfinished(self) -> None:
        """Take back the member in which the tar broke off: like those behind it, it is missing."""
        if self._unfinished is not None:
            found, path = self._unfinished
            found.sizes.pop(path, None)

    def _begin(self, member: Member) -> None:
        area, name = area_of(Area.LOCAL, member.name)
        if not name:
            return
        if name == MANIFEST and member.kind is MemberKind.FILE and member.size <= limits.MANIFEST_BYTES:
            self._keep(lambda content: self._one.manifests.__setitem__(area, content))
            return
        wal_name = wal_name_of(area, name) if member.kind is MemberKind.FILE else None
        if wal_name is not None and self._one.wal is not None:
            self._take = self._one.wal.begin(wal_name, member.size)
        found = self._half(area)
        path = note_member(found, self._part, replace(member, name=name), self._ignored, None)
        if path is not None:
            self._check(found, path, member.size)

    def _half(self, area: Area) -> Contents:
        for found in self._one.contents:
            if found.half.area is area:
                return found
        half = Half(area, self._one.contents[0].half.directory, None, (self._part,), f"{SHARED_PREFIX}/")
        self._one.contents.append(Contents(half))
        return self._one.contents[-1]

    def _keep(self, give: Callable[[bytes], None]) -> None:
        parts: list[bytes] = []
        self._take, self._end = parts.append, lambda: give(b"".join(parts))

    def _check(self, found: Contents, path: str, size: int) -> None:
        checks = self._checks
        segment = relation_segment(path) if checks.kernel is not None else None
        first_block = None if segment is None else segment * checks.blocks_per_segment
        reading = FileReading(FileTask(found.half.name(path), self._part.path, size, first_block=first_block))
        digests = {name: _digest(name) for name in _USUAL_ALGORITHMS} if checks.checksums else {}
        pages = PageReader(reading, checks.kernel) if checks.kernel is not None and first_block is not None else None
        kept: list[bytes] | None = [] if is_kept(path, size) else None

        def take(chunk: bytes) -> None:
            for digest in digests.values():
                digest.update(chunk)
            if pages is not None:
                pages.accept(chunk)
            if kept is not None:
                kept.append(chunk)
            reading.size += len(chunk)

        def end() -> None:
            self._one.checksums[found.half.area, path] = {name: one.hexdigest() for name, one in digests.items()}
            found.readings[path] = reading
            if kept is not None:
                found.small[path] = b"".join(kept)

        self._take, self._end, self._unfinished = take, end, (found, path)


def _digest(name: str) -> Digest:
    digest = new_digest(name)
    assert digest is not None
    return digest
