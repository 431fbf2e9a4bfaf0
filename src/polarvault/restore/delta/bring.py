"""Compare a target with the backup and write what differs: files that do not belong go first, then all at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

from polarvault.backupset.backup import DeliveryStopped
from polarvault.backupset.model import Area
from polarvault.repository.index.files import FileRow
from polarvault.repository.reading.as_backup import BackupInRepository
from polarvault.repository.reading.backup_reader import deliver_extents
from polarvault.repository.reading.difference import Difference, Found, Job, jobs
from polarvault.restore.delta.files import TargetFiles
from polarvault.restore.model import DeltaCounts, RestorePlan
from polarvault.restore.plan.routing import is_hidden
from polarvault.storage.files import storage_failed
from polarvault.storage.waiting import run_bounded

Progress = Callable[[int], None]


class Bringing:
    """One run over all files of a backup; where `files` makes no changes it only counts."""

    def __init__(self, plan: RestorePlan, files: TargetFiles, progress: Progress) -> None:
        assert isinstance(plan.source, BackupInRepository)
        self._plan = plan
        self._source = plan.source
        self._files = files
        self._progress = progress
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._difference = Difference(self._source.reader, self._source.page_key)
        self.counts = DeltaCounts()

    def run(self, workers: int) -> DeltaCounts:
        """Do it; on the first failure the rest is abandoned and the failure raised."""
        removed, size = self._files.remove_strangers(self._files.belonging(self._source))
        self.counts = replace(self.counts, removed_files=removed, removed_bytes=size)
        with ThreadPoolExecutor(workers, thread_name_prefix="delta") as pool:
            try:
                run_bounded(pool, self._calls(), workers=workers)
            except BaseException:
                # Workers look at the event between steps.
                self._stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        return self.counts

    def _calls(self) -> Iterator[Callable[[], None]]:
        for job in jobs(self._source.reader, lambda row: self._path(row) is not None):
            yield partial(self._do, job)

    def _path(self, row: FileRow) -> str | None:
        plan, entry = self._plan, self._source.entry(row)
        if is_hidden(entry, plan.layout, plan.inventory):
            return None
        if entry.area is Area.TABLESPACE and entry.tablespace_oid not in plan.layout.tablespaces:
            return None
        return self._files.router.path(entry.area, entry.name, entry.kind, entry.tablespace_oid)

    def _do(self, job: Job) -> None:
        found = Found()
        path = ""
        writer = self._files.writer()
        try:
            for row in job.rows:
                path = self._path(row) or ""
                with self._files.opened(path, row.size, self._advance) as held:
                    self._difference.find(row, job.start, held, found)
            self._count(found)
            if self._files.changes:
                paths: dict[int, str] = {}

                def put(row: FileRow, offset: int, view: memoryview) -> None:
                    nonlocal path
                    # The job keeps its rows, so that an id stays one row's.
                    path = paths.get(id(row)) or paths.setdefault(id(row), self._path(row) or "")
                    writer.write(path, offset, view)

                deliver_extents(self._source.reader, found.extents, put, self._stop.is_set)
            self._progress(job.size - found.compared_bytes)
        except OSError as problem:
            raise storage_failed(problem, "restore", path) from problem
        finally:
            writer.close()
        if self._stop.is_set():
            raise DeliveryStopped

    def _advance(self, size: int) -> None:
        if self._stop.is_set():
            raise DeliveryStopped
        self._progress(size)

    def _count(self, found: Found) -> None:
        with self._lock:
            self.counts = replace(
                self.counts,
                compared_bytes=self.counts.compared_bytes + found.compared_bytes,
                fetched_bytes=self.counts.fetched_bytes + found.stored_bytes,
                written_bytes=self.counts.written_bytes + found.differing_bytes,
            )
