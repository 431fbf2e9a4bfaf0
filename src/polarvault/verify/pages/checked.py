"""Which pages of a backup can be checked, and how."""

from __future__ import annotations

from polarvault.model.finding import Finding, Severity
from polarvault.model.lsn import Lsn
from polarvault.pgfiles.pages import PAGE_BYTES, relation_segment
from polarvault.verify.layout import BackupLayout
from polarvault.verify.manifest.manifests import Manifests
from polarvault.verify.pages.findings import PageJudge
from polarvault.verify.request import VerifyRequest
from polarvault.verify.small_files import NEWER, SmallFiles

# Relation segments of PostgreSQL and of PolarDB, until pg_control says it.
_USUAL_BLOCKS, _POLARDB_BLOCKS = 131072, 16777216


def usual_blocks_per_segment(layout: BackupLayout) -> int:
    """Return the pages of a relation segment, where pg_control was not read yet."""
    return _POLARDB_BLOCKS if layout.is_polardb else _USUAL_BLOCKS


def page_judge_of(
    request: VerifyRequest, layout: BackupLayout, manifests: Manifests, small: SmallFiles
) -> tuple[PageJudge | None, str | None]:
    """Return what judges pages; None when they are not checked, with the reason unless that was wanted."""
    wanted, control = request.pages, small.control
    if wanted is False or (wanted is None and not request.check_checksums):
        return None, "page checksums, as was asked for"
    if small.is_newer:
        return None, f"page checksums: {NEWER}"
    if control is None:
        return None, "page checksums: pg_control does not say whether there are any"
    if not control.has_data_checksums:
        return None, "page checksums: the cluster has none (initdb --data-checksums, or pg_checksums --enable)"
    if control.block_size != PAGE_BYTES:
        return None, f"page checksums: pages of {control.block_size} bytes"
    ends = [wal_range.end for wal_range in manifests.wal_ranges if wal_range.end is not None]
    # Only PolarDB leaves full pages out of the WAL of a backup (facts 5.4).
    repairs = control.full_page_writes or not layout.is_polardb
    start: Lsn | None = small.label.start_lsn if small.label is not None else None
    return PageJudge(start, max(ends, default=None), repairs), None


def first_block_of(path: str, small: SmallFiles) -> int | None:
    """Return the number of the first page in a relation file; None for a file whose pages carry no checksums."""
    segment = relation_segment(path)
    if segment is None or small.control is None:
        return None
    return segment * small.control.relation_segment_blocks


def pages_not_checked(reason: str) -> Finding:
    """Return the warning that pages are not checked although it was asked for."""
    return Finding(
        severity=Severity.WARNING,
        check="page-checksums",
        subject="pages",
        message=f"--pages was given, but nothing could be checked: {reason}",
        meaning="damage that pages had before the backup cannot be seen",
        advice="polarvault drill BACKUP --amcheck reads every page and row of a restored copy",
    )
