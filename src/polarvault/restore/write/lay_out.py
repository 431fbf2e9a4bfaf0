"""Put the files of a backup into their places: copy trees, unpack tars, several at a time. The backup is only read."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from functools import partial

from polarvault.backupset.inventory import walk_tree
from polarvault.backupset.model import Area, Part
from polarvault.backupset.tarstream import read_tar
from polarvault.instance.model import Account
from polarvault.pgfiles.tar import Member, MemberBegins, MemberData, MemberEnds, MemberKind
from polarvault.restore.model import RestorePlan
from polarvault.restore.plan.routing import Router
from polarvault.storage.copying import copy_content
from polarvault.storage.files import open_regular, storage_failed, write_all

# Files copied per task: most files of a cluster are tiny, and a task for each would cost more than the copy.
_BATCH_FILES = 64
_BATCH_BYTES = 64 << 20
_ZEROS = bytes(1 << 20)

Progress = Callable[[int], None]


class _Stopped(Exception):
    """Another worker failed or the user interrupted; the work of this one is no longer wanted."""


class LayOut:
    """One run of laying files out; `progress` is called with bytes done, from several threads."""

    def __init__(self, plan: RestorePlan, router: Router, account: Account, progress: Progress) -> None:
        self._plan = plan
        self._router = router
        self._progress = progress
        self._stop = threading.Event()
        self._owner = (account.uid, account.gid) if os.geteuid() == 0 else None
        group = plan.inventory.group_readable
        self.file_mode = 0o640 if group else 0o600
        self.directory_mode = 0o750 if group else 0o700

    def run(self) -> None:
        """Lay everything out; on the first failure the rest is abandoned and the failure raised."""
        jobs = self._plan.request.jobs or min(8, (os.cpu_count() or 1) + 2)
        with ThreadPoolExecutor(jobs, thread_name_prefix="restore") as pool:
            try:
                futures = [pool.submit(task) for task in self._tasks()]
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                self._raise_first(done)
            except BaseException:
                # Workers look at the event between steps, so that cleanup never races with a writer for long.
                self._stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    @staticmethod
    def _raise_first(done: set[Future[None]]) -> None:
        problems = [problem for future in done if (problem := future.exception()) is not None]
        for problem in problems:
            if not isinstance(problem, _Stopped):
                raise problem

    def _tasks(self) -> Iterator[Callable[[], None]]:
        for part in self._plan.source.parts:
            if part.is_tar:
                yield partial(self._unpack, part)
            else:
                yield from self._tree_tasks(part)
        for space in self._plan.inventory.tablespaces:
            if space.copy is not None and space.oid in self._plan.layout.tablespaces:
                yield from self._tree_tasks(Part(Area.TABLESPACE, space.copy, tablespace_oid=space.oid))

    def _tree_tasks(self, part: Part) -> Iterator[Callable[[], None]]:
        """Make the directories at once and yield copies in batches, so that listing and copying overlap."""
        skip = self._plan.source.inside_local if part.area is Area.LOCAL else frozenset[str]()
        batch: list[tuple[str, str]] = []
        size = 0
        for name, path, status, kind in walk_tree(part.path, skip=skip):
            target = self._target(part, name, kind)
            if target is None or kind is MemberKind.SYMLINK:
                continue
            if kind is MemberKind.DIRECTORY:
                self._make_directory(target)
                continue
            batch.append((path, target))
            size += status.st_size
            if len(batch) >= _BATCH_FILES or size >= _BATCH_BYTES:
                yield partial(self._copy, batch)
                batch, size = [], 0
        if batch:
            yield partial(self._copy, batch)

    def _target(self, part: Part, name: str, kind: MemberKind) -> str | None:
        # Merged halves share one name space, and where both have a file the shared half's is the real one.
        in_both = part.area is Area.LOCAL and (Area.SHARED, name) in self._plan.inventory.names
        if self._plan.layout.merged and in_both and kind is MemberKind.FILE:
            return None
        return self._router.path(part.area, name, kind, part.tablespace_oid)

    def _copy(self, batch: list[tuple[str, str]]) -> None:
        for source, target in batch:
            if self._stop.is_set():
                raise _Stopped
            try:
                self._make_directory(os.path.dirname(target))
                with open_regular(source) as reading, open(target, "xb", buffering=0) as writing:
                    os.fchmod(writing.fileno(), self.file_mode)
                    size = os.fstat(reading.fileno()).st_size
                    copy_content(reading.fileno(), writing.fileno(), size, self._advance)
                self._own(target)
            except OSError as problem:
                raise storage_failed(problem, "restore", target) from problem

    def _advance(self, size: int) -> None:
        if self._stop.is_set():
            raise _Stopped
        self._progress(size)

    def _unpack(self, part: Part) -> None:
        descriptor, target, sparse = -1, "", False
        try:
            for event in read_tar(part):
                if isinstance(event, MemberBegins):
                    if self._stop.is_set():
                        raise _Stopped
                    target = self._target(part, event.member.name, event.member.kind) or ""
                    descriptor = self._begin(event.member, target)
                    sparse = os.path.basename(os.path.dirname(target)) == "pg_wal"
                elif isinstance(event, MemberData):
                    if self._stop.is_set():
                        raise _Stopped
                    if descriptor >= 0:
                        _write(descriptor, event, sparse=sparse)
                    self._progress(event.size)
                elif descriptor >= 0:
                    descriptor = self._end(descriptor, event)
        except OSError as problem:
            raise storage_failed(problem, "restore", target) from problem
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def _begin(self, member: Member, target: str) -> int:
        """Make what the member is; return a descriptor for a file, else -1."""
        if not target or member.kind is MemberKind.SYMLINK:
            return -1
        if member.kind is MemberKind.DIRECTORY:
            self._make_directory(target)
            return -1
        self._make_directory(os.path.dirname(target))
        # A merged PolarDB tar holds some names twice, and the later one is right: hence truncate, not exclusive.
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, self.file_mode)
        os.fchmod(descriptor, self.file_mode)
        if self._owner:
            os.fchown(descriptor, *self._owner)
        return descriptor

    @staticmethod
    def _end(descriptor: int, event: MemberEnds) -> int:
        # A hole at the end exists only when the length is set.
        os.ftruncate(descriptor, event.member.size)
        os.close(descriptor)
        return -1

    def _make_directory(self, path: str) -> None:
        if os.path.isdir(path):
            return
        self._make_directory(os.path.dirname(path))
        try:
            os.mkdir(path)
            os.chmod(path, self.directory_mode)
            self._own(path)
        except FileExistsError:
            pass  # Another worker was faster.
        except OSError as problem:
            raise storage_failed(problem, "create directory", path) from problem

    def _own(self, path: str) -> None:
        if self._owner:
            os.chown(path, *self._owner, follow_symlinks=False)


def _write(descriptor: int, event: MemberData, *, sparse: bool) -> None:
    """Write a member's data; a WAL segment's zero tail becomes a hole, because a 1 GB segment is mostly that."""
    if not sparse:
        write_all(descriptor, event.views)
        return
    for view in event.views:
        # startswith compares like memcmp and allocates nothing; the first byte decides for almost every page.
        if not view[0] and len(view) <= len(_ZEROS) and _ZEROS.startswith(view):
            os.lseek(descriptor, len(view), os.SEEK_CUR)
        else:
            write_all(descriptor, [view])
