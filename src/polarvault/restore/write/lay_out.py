"""Put the files of a backup into their places: copy trees, unpack tars, several at a time. The backup is only read.

The files are made with the rights of the account that is to own them (`storage.identity`): the caller has taken its
identity, and only reading falls back on root's rights.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial

from polarvault.backupset.listing import Key, key_of
from polarvault.backupset.model import Area, Part, area_of
from polarvault.backupset.plain_tree import PlainTree, TreeEntry
from polarvault.backupset.tarstream import read_tar
from polarvault.pgfiles.digest import Digest
from polarvault.pgfiles.tar import Member, MemberBegins, MemberData, MemberEnds, MemberKind
from polarvault.restore.model import RestorePlan
from polarvault.restore.plan.routing import Router
from polarvault.restore.write.content_checks import ContentChecks
from polarvault.storage.copying import copy_content, copy_reading, read_through
from polarvault.storage.files import storage_failed, write_all
from polarvault.storage.waiting import wait_for

# Files copied per task: most files of a cluster are tiny, and a task for each would cost more than the copy.
_BATCH_FILES = 64
_BATCH_BYTES = 64 << 20
_ZEROS = bytes(1 << 20)

Progress = Callable[[int], None]


class _Stopped(Exception):
    """Another worker failed or the user interrupted; the work of this one is no longer wanted."""


class LayOut:
    """One run of laying files out; `progress` is called with bytes done, from several threads.

    move: the files of a plain backup are renamed where that is possible, because they are ours (see `staging`).
    """

    def __init__(self, plan: RestorePlan, router: Router, progress: Progress, *, move: bool = False) -> None:
        self._plan = plan
        self._router = router
        self._progress = progress
        self._move = move
        self._stop = threading.Event()
        self._trees = ExitStack()
        self.checks = ContentChecks(plan)
        group = plan.inventory.group_readable
        self.file_mode = 0o640 if group else 0o600
        self.directory_mode = 0o750 if group else 0o700

    def run(self) -> None:
        """Lay everything out; on the first failure the rest is abandoned and the failure raised."""
        jobs = self._plan.request.jobs or min(8, (os.cpu_count() or 1) + 2)
        with self._trees, ThreadPoolExecutor(jobs, thread_name_prefix="restore") as pool:
            try:
                futures = [pool.submit(task) for task in self._tasks()]
                self._raise_first(wait_for(futures))
            except BaseException:
                # Workers look at the event between steps, so that cleanup never races with a writer for long.
                self._stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        self.checks.finish()

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
        tree = self._trees.enter_context(PlainTree(part.path, skip=skip, tablespace=part.area is Area.TABLESPACE))
        batch: list[tuple[TreeEntry, str]] = []
        size = 0
        for entry in tree.walk():
            target = self._target(part, entry.name, entry.kind)
            if target is None or entry.kind is MemberKind.SYMLINK:
                continue
            if entry.kind is MemberKind.DIRECTORY:
                self._make_directory(target)
                continue
            batch.append((entry, target))
            size += entry.status.st_size
            if len(batch) >= _BATCH_FILES or size >= _BATCH_BYTES:
                yield partial(self._copy_batch, part, tree, batch)
                batch, size = [], 0
        if batch:
            yield partial(self._copy_batch, part, tree, batch)

    def _target(self, part: Part, name: str, kind: MemberKind) -> str | None:
        # Merged halves share one name space, and where both have a file the shared half's is the real one.
        in_both = part.area is Area.LOCAL and (Area.SHARED, name) in self._plan.inventory.names
        if self._plan.layout.merged and in_both and kind is MemberKind.FILE:
            return None
        return self._router.path(part.area, name, kind, part.tablespace_oid)

    def _copy_batch(self, part: Part, tree: PlainTree, batch: list[tuple[TreeEntry, str]]) -> None:
        for entry, target in batch:
            if self._stop.is_set():
                raise _Stopped
            try:
                self._copy(part, tree, entry, target)
            except OSError as problem:
                raise storage_failed(problem, "restore", target) from problem

    def _copy(self, part: Part, tree: PlainTree, entry: TreeEntry, target: str) -> None:
        self._make_directory(os.path.dirname(target))
        key = key_of(part.area, entry.name, part.tablespace_oid)
        digest = None if entry.name.startswith("pg_wal/") else self.checks.digest(key)
        with open(tree.open(entry), "rb", buffering=0) as source:
            size = os.fstat(source.fileno()).st_size
            if self._move and self._moved(os.path.join(tree.root, entry.name), target):
                read = size
                if digest is None:
                    self._advance(size)
                else:
                    read = read_through(source.fileno(), size, digest, self._advance)
            else:
                read = self._copied(source.fileno(), target, size, digest)
        if digest is not None:
            self.checks.judge(key, read, digest)

    def _copied(self, source: int, target: str, size: int, digest: Digest | None) -> int:
        with open(self._new_file(target, os.O_EXCL), "wb", buffering=0) as writing:
            if digest is None:
                copy_content(source, writing.fileno(), size, self._advance)
                return size
            return copy_reading(source, writing.fileno(), size, digest, self._advance)

    def _moved(self, source: str, target: str) -> bool:
        try:
            os.rename(source, target)
        except OSError:
            return False  # Another file system: copied instead, and removed with the rest.
        os.chmod(target, self.file_mode)
        return True

    def _new_file(self, target: str, how: int) -> int:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | how, self.file_mode)
        os.fchmod(descriptor, self.file_mode)
        return descriptor

    def _advance(self, size: int) -> None:
        if self._stop.is_set():
            raise _Stopped
        self._progress(size)

    def _unpack(self, part: Part) -> None:
        descriptor, target, sparse = -1, "", False
        key: Key = (part.area, "")
        digest: Digest | None = None
        try:
            for event in read_tar(part):
                if self._stop.is_set():
                    raise _Stopped
                if isinstance(event, MemberBegins):
                    member = event.member
                    target = self._target(part, member.name, member.kind) or ""
                    descriptor = self._begin(member, target)
                    sparse = os.path.basename(os.path.dirname(target)) == "pg_wal"
                    key, digest = self._check_member(part, member, sparse=sparse)
                elif isinstance(event, MemberData):
                    if descriptor >= 0:
                        _write(descriptor, event, sparse=sparse)
                    if digest is not None:
                        for view in event.views:
                            digest.update(bytes(view))
                    self._progress(event.size)
                else:
                    if digest is not None:
                        self.checks.judge(key, event.member.size, digest)
                    if descriptor >= 0:
                        descriptor = self._end(descriptor, event)
        except OSError as problem:
            raise storage_failed(problem, "restore", target) from problem
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def _check_member(self, part: Part, member: Member, *, sparse: bool) -> tuple[Key, Digest | None]:
        area, name = area_of(part.area, member.name)
        key = key_of(area, name, part.tablespace_oid)
        if member.kind is not MemberKind.FILE or area is Area.WAL or sparse:
            return key, None
        self.checks.note_member(key, member.size)
        return key, self.checks.digest(key)

    def _begin(self, member: Member, target: str) -> int:
        """Make what the member is; return a descriptor for a file, else -1."""
        if not target or member.kind is MemberKind.SYMLINK:
            return -1
        if member.kind is MemberKind.DIRECTORY:
            self._make_directory(target)
            return -1
        self._make_directory(os.path.dirname(target))
        # A merged PolarDB tar holds some names twice, and the later one is right: hence truncate, not exclusive.
        return self._new_file(target, os.O_TRUNC)

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
        except FileExistsError:
            pass  # Another worker was faster.
        except OSError as problem:
            raise storage_failed(problem, "create directory", path) from problem


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
