"""Read a compressed tar once, from its beginning: list it, and check everything in it on the way."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from polarvault.backupset.model import Part
from polarvault.backupset.reading.tarstream import read_tar
from polarvault.errors import IntegrityError, StorageFailed
from polarvault.pgfiles.digest import new_digest
from polarvault.pgfiles.pages import Kernel, relation_segment
from polarvault.pgfiles.tar import Member, MemberBegins, MemberData, TarEvent
from polarvault.pipeline.read_ahead import ReadAhead
from polarvault.verify.files.contents import Contents, Report, damaged_tar, is_kept, is_readable_tar, note_member
from polarvault.verify.files.reading import FileReading, FileTask, PageReader
from polarvault.verify.files.trees import IgnoreRules

# Events read ahead, of at most 1 MB each: decompressing and checking are done by two threads.
_DEPTH = 16


@dataclass(frozen=True, slots=True)
class StreamChecks:
    """What is checked while a tar goes by; algorithm None: no checksums, kernel None: no pages."""

    algorithm: str | None
    kernel: Kernel | None
    blocks_per_segment: int


def read_compressed_tars(
    found: Contents,
    ignored: IgnoreRules,
    checks: StreamChecks,
    report: Report,
    *,
    jobs: int,
    advance: Callable[[int], None],
) -> None:
    """Add what is in the compressed tars of a half; advance is called with the bytes that went by."""
    parts = [part for part in found.half.tars if part.compression is not None and is_readable_tar(part, report)]

    def read(part: Part) -> None:
        tar = _TarPass(found, part, ignored, checks)
        try:
            tar.run(advance)
        except (IntegrityError, StorageFailed) as problem:
            tar.forget_unfinished()
            found.cut_tars[part] = tar.last_member
            report(damaged_tar(part, problem.message))
        else:
            if not tar.last_member:
                found.cut_tars[part] = ""

    # Here: it loads the logging package, and most backups have no use for it.
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(max(1, jobs)) as pool:
        for _ in pool.map(read, parts):
            pass


class _TarPass:
    """One way through one tar."""

    def __init__(self, found: Contents, part: Part, ignored: IgnoreRules, checks: StreamChecks) -> None:
        self._found = found
        self._part = part
        self._ignored = ignored
        self._checks = checks
        self.last_member = ""
        self._path: str | None = None
        self._small: list[bytes] | None = None

    def run(self, advance: Callable[[int], None]) -> None:
        with ReadAhead(read_tar(self._part), depth=_DEPTH, interrupt=lambda: None) as events:
            for event in events.items(lambda: None):
                self._accept(event)
                if isinstance(event, MemberData):
                    advance(event.size)

    def forget_unfinished(self) -> None:
        """Take back the member in which the tar broke off: like those behind it, it is missing."""
        if self._path is not None:
            self._found.sizes.pop(self._path, None)

    def _accept(self, event: TarEvent) -> None:
        if isinstance(event, MemberBegins):
            self._begin(event.member)
        elif self._path is None:
            return
        elif isinstance(event, MemberData):
            for view in event.views:
                chunk = bytes(view)
                if self._digest is not None:
                    self._digest.update(chunk)
                if self._pages is not None:
                    self._pages.accept(chunk)
                if self._small is not None:
                    self._small.append(chunk)
                self._reading.size += len(chunk)
        else:
            self._end(self._path)

    def _begin(self, member: Member) -> None:
        self.last_member = member.name
        path = self._path = note_member(self._found, self._part, member, self._ignored, None)
        if path is None:
            return
        checks = self._checks
        segment = relation_segment(path) if checks.kernel is not None else None
        first_block = None if segment is None else segment * checks.blocks_per_segment
        task = FileTask(
            self._found.half.name(path), os.path.basename(self._part.path), member.size,
            algorithm=checks.algorithm, first_block=first_block,
        )  # fmt: skip
        self._reading = FileReading(task)
        self._digest = new_digest(checks.algorithm)
        has_pages = first_block is not None and checks.kernel is not None
        self._pages = PageReader(self._reading, checks.kernel) if has_pages and checks.kernel else None
        self._small = [] if is_kept(path, member.size) else None

    def _end(self, path: str) -> None:
        if self._digest is not None:
            self._reading.checksum = self._digest.hexdigest()
        self._found.readings[path] = self._reading
        if self._small is not None:
            self._found.small[path] = b"".join(self._small)
        self._path = None
