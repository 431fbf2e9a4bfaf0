"""Put the files of a backup into their places: copy trees, unpack tars, several at a time. The backup is only read.

The files are made with the rights of the account that is to own them (`storage.identity`): the caller has taken its
identity, and only reading falls back on root's rights.
"""

from __future__ import annotations

import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

from polarvault.backupset.backup import DeliveryStopped, Entry, LocalFile, Share
from polarvault.backupset.listing import Key, key_of
from polarvault.backupset.model import Area, area_of
from polarvault.pgfiles.digest import Digest
from polarvault.pgfiles.tar import MemberKind
from polarvault.restore.model import RestorePlan
from polarvault.restore.plan.routing import Router, is_hidden
from polarvault.restore.write.content_checks import ContentChecks
from polarvault.storage.copying import copy_content, copy_reading, read_through
from polarvault.storage.files import storage_failed, write_all
from polarvault.storage.trees.laying import AppendedInPfs, PfsFiles
from polarvault.storage.trees.model import WritableTree
from polarvault.storage.waiting import run_bounded
from polarvault.storage.writeback import Writeback, start_aside

_ZEROS = bytes(1 << 20)
# Descriptors that one worker holds for files that it goes back to.
_MOST_OPEN = 32

Progress = Callable[[int], None]


class LayOut:
    """One run of laying files out; `progress` is called with bytes done, from several threads.

    move: the files of a plain backup are renamed where that is possible, because they are ours (see `staging`).
    data: the tree in PFS that the shared half goes to; None where all places are directories of this machine.
    """

    def __init__(
        self,
        plan: RestorePlan,
        router: Router,
        progress: Progress,
        *,
        move: bool = False,
        data: WritableTree | None = None,
    ) -> None:
        self._plan = plan
        self._router = router
        self._progress = progress
        self.moves = move
        self._stop = threading.Event()
        self._made: set[str] = set()
        # Directories in which a new file has the mode it is made with: umask and default ACLs take nothing away.
        self._keep_modes: set[str] = set()
        self.checks = ContentChecks(plan)
        group = plan.inventory.group_readable
        self.file_mode = 0o640 if group else 0o600
        self.directory_mode = 0o750 if group else 0o700
        self.pfs = None
        if data is not None:
            self.pfs = PfsFiles(data, file_mode=self.file_mode, directory_mode=self.directory_mode)

    def run(self) -> None:
        """Lay everything out; on the first failure the rest is abandoned and the failure raised."""
        source, inventory, layout = self._plan.source, self._plan.inventory, self._plan.layout
        with source.shares(inventory, self.is_wanted, tablespaces=layout.tablespaces) as shares:
            try:
                self.deliver(shares)
            finally:
                if self.pfs is not None:
                    self.pfs.close()
        self.checks.finish()

    @property
    def jobs(self) -> int:
        """How many files are copied at a time."""
        return self._plan.request.jobs or min(8, (os.cpu_count() or 1) + 2)

    def deliver(self, shares: Iterator[Share]) -> None:
        """Write what shares deliver, several at a time; on the first failure raise it."""
        with ThreadPoolExecutor(self.jobs, thread_name_prefix="restore") as pool:
            try:
                calls = (partial(share.deliver, _Placing(self), self._stop) for share in shares)
                run_bounded(pool, calls, workers=self.jobs)
            except BaseException:
                # Workers look at the event between steps, so that cleanup never races with a writer for long.
                self._stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def is_wanted(self, entry: Entry) -> bool:
        """Tell whether a file that was listed has a place; a directory is made at once."""
        target = self.target(entry)
        if target is None or entry.kind is MemberKind.DIRECTORY:
            if target is not None:
                self.make_directory(target)
            return False
        if self._plan.left_out is not None and self._plan.left_out.covers(entry):
            self._make_hole(target, entry.size)
            return False
        return True

    def name_in_pfs(self, target: str) -> str | None:
        """Return the name of a target below the directory in PFS; None for a path of this machine."""
        return None if self.pfs is None else self.pfs.name(target)

    def _make_hole(self, target: str, size: int) -> None:
        """Make a file of zeros that takes no room: one of a database that is left out."""
        name = self.name_in_pfs(target)
        try:
            if self.pfs is not None and name is not None:
                self.pfs.make_hole(name, size)
                return
            self.make_directory(os.path.dirname(target))
            descriptor = self.new_file(target, os.O_TRUNC)
            try:
                os.ftruncate(descriptor, size)
            finally:
                os.close(descriptor)
        except OSError as problem:
            raise storage_failed(problem, "restore", target) from problem

    def target(self, entry: Entry) -> str | None:
        """Return the path that an entry goes to; None for one that stays behind."""
        if is_hidden(entry, self._plan.layout, self._plan.inventory):
            return None
        return self._router.path(entry.area, entry.name, entry.kind, entry.tablespace_oid)

    def new_file(self, target: str, how: int) -> int:
        """Open a new file for writing; return its descriptor."""
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | how, self.file_mode)
        directory = target.rpartition("/")[0]
        if how & os.O_EXCL and directory in self._keep_modes:
            return descriptor
        if how & os.O_EXCL and stat.S_IMODE(os.fstat(descriptor).st_mode) == self.file_mode:
            self._keep_modes.add(directory)
        else:
            os.fchmod(descriptor, self.file_mode)
        return descriptor

    def advance(self, size: int) -> None:
        """Tell how many more bytes are done; raise DeliveryStopped when they are no longer wanted."""
        if self._stop.is_set():
            raise DeliveryStopped
        self._progress(size)

    def make_directory(self, path: str) -> None:
        """Make a directory and what is missing above it; nothing is done about one that was asked for before."""
        if path in self._made:
            return
        self._make_directory(path)
        self._made.add(path)

    def _make_directory(self, path: str) -> None:
        if self.pfs is not None and (name := self.pfs.name(path)) is not None:
            try:
                self.pfs.make_directory(name)
            except OSError as problem:
                raise storage_failed(problem, "create directory", path) from problem
            return
        if os.path.isdir(path):
            return
        self.make_directory(os.path.dirname(path))
        try:
            os.mkdir(path)
            os.chmod(path, self.directory_mode)
        except FileExistsError:
            pass  # Another worker was faster.
        except OSError as problem:
            raise storage_failed(problem, "create directory", path) from problem


class _Placing:
    """Writes what one share delivers into its places. Implements `backupset.backup.FileSink`."""

    def __init__(self, run: LayOut) -> None:
        self._run = run
        self._target = ""
        self._descriptor = -1
        self._size = 0
        self._sparse = False
        self._key: Key = (Area.LOCAL, "")
        self._digest: Digest | None = None
        # Of files whose pieces come in any order: those that were written to last.
        self._placed: OrderedDict[Entry, _PlacedFile] = OrderedDict()
        self._appended: AppendedInPfs | None = None

    def begin(self, entry: Entry, local: LocalFile | None) -> bool:
        """Make what the entry is; copy a file that is here at once."""
        run = self._run
        self._target = run.target(entry) or ""
        if entry.kind is MemberKind.DIRECTORY:
            if self._target:
                run.make_directory(self._target)
            return False
        try:
            if self._target:
                run.make_directory(self._target.rpartition("/")[0])
            if local is not None:
                self._copy(entry, local)
                return False
            self._check_member(entry)
            name = run.name_in_pfs(self._target)
            if run.pfs is not None and name is not None:
                file = run.pfs.create(name, replace=True)
                self._appended = AppendedInPfs(file, sparse=self._sparse)
            elif self._target:
                # A merged PolarDB tar holds some names twice, and the later one is right: truncate, not exclusive.
                self._descriptor = run.new_file(self._target, os.O_TRUNC)
        except OSError as problem:
            raise storage_failed(problem, "restore", self._target) from problem
        return True

    def data(self, views: Sequence[memoryview]) -> None:
        """Write and digest the next bytes."""
        try:
            if self._appended is not None:
                self._appended.append(views)
            elif self._descriptor >= 0:
                _write(self._descriptor, views, sparse=self._sparse)
        except OSError as problem:
            raise storage_failed(problem, "restore", self._target) from problem
        if self._digest is not None:
            for view in views:
                self._digest.update(bytes(view))
        self._run.advance(sum(map(len, views)))

    def end(self) -> None:
        """Compare with the manifest and close."""
        if self._digest is not None:
            self._run.checks.judge(self._key, self._size, self._digest)
        try:
            if self._appended is not None:
                self._appended.finish(self._size)
                self._appended = None
            if self._descriptor >= 0:
                # A hole at the end exists only when the length is set.
                os.ftruncate(self._descriptor, self._size)
                self.close()
        except OSError as problem:
            raise storage_failed(problem, "restore", self._target) from problem

    def place(self, entry: Entry, offset: int, view: memoryview) -> None:
        """Write a piece of a file at its place."""
        run = self._run
        if run.pfs is not None and (target := run.target(entry)) and (name := run.pfs.name(target)) is not None:
            try:
                run.pfs.placed(name, entry.size).write(offset, view)
            except OSError as problem:
                raise storage_failed(problem, "restore", target) from problem
            run.advance(len(view))
            return
        try:
            placed = self._placed.get(entry)
            if placed is None:
                placed = self._open_placed(entry)
            else:
                self._placed.move_to_end(entry)
            placed.write(offset, view)
            if len(view) == entry.size:
                self._placed.pop(entry).close()
        except OSError as problem:
            raise storage_failed(problem, "restore", self._target) from problem
        self._run.advance(len(view))

    def _open_placed(self, entry: Entry) -> _PlacedFile:
        """Make the file with its whole length, unless it stays behind. Another share may have made it."""
        run = self._run
        self._target = run.target(entry) or ""
        descriptor = -1
        if self._target:
            run.make_directory(os.path.dirname(self._target))
            descriptor = run.new_file(self._target, 0)
            os.ftruncate(descriptor, entry.size)
        placed = self._placed[entry] = _PlacedFile(descriptor)
        if len(self._placed) > _MOST_OPEN:
            self._placed.popitem(last=False)[1].close()
        return placed

    def close(self) -> None:
        """Close what is open."""
        if self._appended is not None:
            # Of a file that was not finished; what made that so is the failure to report.
            with suppress(OSError):
                self._appended.close()
            self._appended = None
        descriptor, placed = self._descriptor, [*self._placed.values()]
        self._descriptor = -1
        self._placed.clear()
        if descriptor >= 0:
            os.close(descriptor)
        for one in placed:
            one.close()

    def _check_member(self, entry: Entry) -> None:
        self._sparse = os.path.basename(os.path.dirname(self._target)) == "pg_wal"
        area, name = area_of(entry.area, entry.name)
        self._key, self._size, self._digest = key_of(area, name, entry.tablespace_oid), entry.size, None
        if area is not Area.WAL and not self._sparse:
            self._run.checks.note_member(self._key, entry.size)
            self._digest = self._run.checks.digest(self._key)

    def _copy(self, entry: Entry, local: LocalFile) -> None:
        run, size = self._run, local.size
        key = key_of(entry.area, entry.name, entry.tablespace_oid)
        digest = None if entry.name.startswith("pg_wal/") else run.checks.digest(key)
        name = run.name_in_pfs(self._target)
        if run.pfs is not None and name is not None:
            size = run.pfs.copy(name, local.descriptor, size, digest, run.advance)
        elif run.moves and self._moved(local.path):
            if digest is None:
                run.advance(size)
            else:
                size = read_through(local.descriptor, size, digest, run.advance)
        else:
            writing = run.new_file(self._target, os.O_EXCL)
            try:
                if digest is None:
                    copy_content(local.descriptor, writing, size, run.advance)
                else:
                    size = copy_reading(local.descriptor, writing, size, digest, run.advance)
                start_aside(writing, 0, size)
            finally:
                os.close(writing)
        if digest is not None:
            run.checks.judge(key, size, digest)

    def _moved(self, source: str) -> bool:
        try:
            os.rename(source, self._target)
        except OSError:
            return False  # Another file system: copied instead, and removed with the rest.
        os.chmod(self._target, self._run.file_mode)
        return True


class _PlacedFile:
    """A file whose pieces come in any order; descriptor: -1 if it stays behind."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._writeback = Writeback(descriptor)

    def write(self, offset: int, view: memoryview) -> None:
        """Write a piece at its place; raise OSError."""
        if self._descriptor < 0:
            return
        end = offset + len(view)
        at = offset
        while at < end:
            at += os.pwrite(self._descriptor, view[at - offset :], at)
        self._writeback.wrote(offset, len(view))

    def close(self) -> None:
        """Close it."""
        if self._descriptor >= 0:
            self._writeback.finish()
            os.close(self._descriptor)
            self._descriptor = -1


def _write(descriptor: int, views: Sequence[memoryview], *, sparse: bool) -> None:
    """Write a member's data; a WAL segment's zero tail becomes a hole, because a 1 GB segment is mostly that."""
    if not sparse:
        write_all(descriptor, list(views))
        return
    for view in views:
        # startswith compares like memcmp and allocates nothing; the first byte decides for almost every page.
        if not view[0] and len(view) <= len(_ZEROS) and _ZEROS.startswith(view):
            os.lseek(descriptor, len(view), os.SEEK_CUR)
        else:
            write_all(descriptor, [view])
