"""A verification in words: findings as they come, progress, and at the end what was checked and what was not."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self

from polarvault.model.finding import Finding, Severity
from polarvault.report.findings import findings_json
from polarvault.report.units import format_bytes, printable
from polarvault.verify.run import VerifyResult

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_BETWEEN_LINES_S = 1.0
_LABELS = {Severity.WARNING: "warning", Severity.PROBLEM: "error"}


class TextReporter:
    """Implements `verify.run.Reporter`: findings and progress on standard error.

    What a finding means and what to do is said with the first one of its kind: a damaged backup can have thousands.
    """

    def __init__(self, *, progress: bool, silent: bool) -> None:
        self._show_progress = progress
        self._silent = silent
        self._explained: set[str] = set()
        self._last_line = float("-inf")
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def finding(self, finding: Finding) -> None:
        """Print what is not as it should be."""
        if finding.is_ok or self._silent:
            return
        message = finding.message
        if finding.subject not in message:
            message = f"{finding.subject}: {message}"
        self._say(f"polarvault: {_LABELS[finding.severity]}: {message}")
        if finding.check in self._explained:
            return
        self._explained.add(finding.check)
        if finding.meaning:
            self._say(f"polarvault: detail: {finding.meaning}")
        if finding.advice:
            self._say(f"polarvault: hint: {finding.advice}")

    def progress(self, done_bytes: int, total_bytes: int) -> None:
        """Show progress at most once a second."""
        if not self._show_progress:
            return
        now, is_final = time.monotonic(), 0 < total_bytes <= done_bytes
        if not is_final and now - self._last_line < (0.1 if self._bar else _BETWEEN_LINES_S):
            return
        self._last_line = now
        if sys.stderr.isatty():
            self._show_bar(done_bytes, total_bytes)
            return
        done, total = done_bytes // 1024, total_bytes // 1024
        percent = f"/{total} kB ({done * 100 // total if total else 100}%)" if total_bytes else " kB"
        self._say(f"{done:>{len(str(total))}}{percent} verified")

    def _show_bar(self, done_bytes: int, total_bytes: int) -> None:
        if self._bar is None or self._task is None:
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

            columns = (BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task("verify", total=None)
        self._bar.update(self._task, completed=done_bytes, total=total_bytes or None)

    def _say(self, text: str) -> None:
        line = printable(text.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, markup=False)
        else:
            print(line, file=sys.stderr, flush=True)


def result_lines(result: VerifyResult) -> Iterator[str]:
    """Yield what was checked, what was not, and how many problems there are."""
    checked = [f"{result.file_count} files, {format_bytes(result.bytes_read)}"]
    if result.checked_pages:
        checked.append(f"{result.checked_pages} page checksums")
    if result.wal_records:
        checked.append(f"{result.wal_records} WAL records")
    yield "checked: " + "; ".join(checked)
    if result.repaired_pages:
        yield f"{result.repaired_pages} pages were copied while the server wrote them; WAL repairs them at the restore"
    for reason in result.not_checked:
        yield f"not checked: {reason}"
    count = sum(finding.severity is Severity.PROBLEM for finding in result.findings)
    if count:
        yield f"{count} problem{'' if count == 1 else 's'} found: do not rely on this backup"


def result_json(result: VerifyResult) -> dict[str, Any]:
    """Return the result for --json; sizes are bytes."""
    return {
        "backup": result.layout.path,
        "format": result.layout.form.value,
        "halves": [{"area": half.area.value, "directory": half.directory} for half in result.layout.halves],
        "good": result.is_good,
        "files": result.file_count,
        "bytes_read": result.bytes_read,
        "pages_checked": result.checked_pages,
        "pages_repaired_by_wal": result.repaired_pages,
        "wal_records": result.wal_records,
        "wal_bytes_read": result.wal_bytes,
        "not_checked": result.not_checked,
        "findings": findings_json(result.findings),
    }
