"""Read the WAL that comes with a backup, as far as the backup needs it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from polarvault.backupset.model import Area, Form, Part
from polarvault.model.finding import Severity
from polarvault.model.relation import BlockId
from polarvault.verify.files.contents import Contents
from polarvault.verify.layout import BackupLayout
from polarvault.verify.manifest.manifests import Manifests
from polarvault.verify.request import VerifyRequest
from polarvault.verify.small_files import NEWER, SmallFiles

if TYPE_CHECKING:
    from polarvault.backupset.wal.tars import SpooledWal
    from polarvault.verify.wal.check import WalVerdict
    from polarvault.wal.page_fates import PageFates
    from polarvault.wal.source import WalSource


class OwnWal:
    """The WAL that a backup brings along, or that --wal-path names; read once, and once more for bad pages."""

    def __init__(
        self,
        request: VerifyRequest,
        layout: BackupLayout,
        manifests: Manifests,
        contents: Sequence[Contents],
        small: SmallFiles,
        spooled: SpooledWal | None,
    ) -> None:
        self._request = request
        self._layout = layout
        self._manifests = manifests
        self._contents = contents
        self._small = small
        self._spooled_wal = spooled

    @property
    def why_not(self) -> str | None:
        """Why WAL is not read; None: it is."""
        if not self._request.check_wal:
            return "WAL, as was asked for"
        return f"WAL: {NEWER}" if self._small.is_newer else None

    def check(self, stop: Callable[[], bool]) -> WalVerdict | None:
        """Read the WAL that the backup needs; None when that is not wanted."""
        if self.why_not is not None:
            return None
        # Here, in a thread of its own: the WAL reader takes its time to load, and files are read meanwhile.
        from polarvault.backupset.wal.tars import TarWal
        from polarvault.verify.facts.history import judge_histories, read_histories

        source = self._wal_source()
        verdict = self._read_wal(source, None, stop)
        half = self._contents[-1].half
        histories: Iterable[tuple[str, bytes | OSError]] = ()
        if isinstance(source, TarWal) and verdict.is_complete:
            histories = source.histories()
        if not self._layout.is_tar and self._request.wal_path is None:
            histories = read_histories(os.path.join(half.directory, "pg_wal"), half.title)
        more = judge_histories(histories, self._small.label, self._manifests.wal_ranges)
        return replace(verdict, findings=[*verdict.findings, *more])

    def fates_of(self, pages: Sequence[BlockId]) -> tuple[PageFates | None, bool]:
        """Look up in the WAL what becomes of pages; None when it is not to be read. Tell whether all of it could be."""
        if self.why_not is not None:
            return None, False
        from polarvault.wal.page_fates import PageFates

        fates = PageFates(pages)
        verdict = self._read_wal(self._wal_source(), fates, lambda: False)
        return fates, all(finding.severity is not Severity.PROBLEM for finding in verdict.findings)

    def _read_wal(self, source: WalSource | None, fates: PageFates | None, stop: Callable[[], bool]) -> WalVerdict:
        from polarvault.verify.wal.check import check_wal

        return check_wal(
            self._manifests.wal_ranges,
            source,
            segment_size_bytes=self._small.control.wal_segment_size if self._small.control else None,
            label=self._small.label,
            control=self._small.control,
            system_identifier=self._manifests.system_identifier,
            fates=fates,
            stop=stop,
        )

    def _wal_source(self) -> WalSource | None:
        from polarvault.backupset.wal.of_backup import tar_wal
        from polarvault.walfiles.directory import WalDirectory

        given = self._request.wal_path
        if given is not None:
            if os.path.isdir(given):
                return WalDirectory(given)
            return tar_wal(Part(Area.WAL, given, True, _compression_of(given)))
        if self._layout.form is Form.TAR_FILE:
            return self._spooled_wal if self._contents[-1].wal_in_data else None
        if self._layout.wal_tars:
            # To open a fifo would wait for ever.
            return tar_wal(self._layout.wal_tars[0]) if os.path.isfile(self._layout.wal_tars[0].path) else None
        data = self._contents[-1]
        if not data.wal_in_data:
            return None
        if not self._layout.is_tar:
            return WalDirectory(os.path.join(data.half.directory, "pg_wal"))
        return next((tar_wal(part) for part in data.half.tars if part.area is not Area.TABLESPACE), None)


def _compression_of(path: str) -> str | None:
    suffix = path.rpartition(".")[2]
    return "gz" if suffix == "tgz" else suffix if suffix in ("gz", "lz4", "zst") else None
