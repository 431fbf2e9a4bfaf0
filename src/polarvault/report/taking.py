"""A running base backup in words, on standard error: messages and progress."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Self

from polarvault.errors import ServerError
from polarvault.taking.reporter import BackupProgress

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_BETWEEN_LINES_S = 1.0
_NAME_WIDTH = 35
# A server that says more different things than these has said enough.
_MOST_NOTICES = 1000


class TextReporter:
    """Implements `taking.reporter.BackupReporter`: a rich bar on a terminal, pg_basebackup's lines elsewhere."""

    def __init__(self, *, verbose: bool, progress: bool) -> None:
        self._verbose = verbose
        self._show_progress = progress
        self._notices: set[tuple[str, str | None, str | None]] = set()
        self._last_line = float("-inf")
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._total = 0
        self.warnings: list[str] = []
        self.notes: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, text: str) -> None:
        """Tell a step, with --verbose."""
        if self._verbose:
            self._say(f"polarvault: {text}")

    def note(self, text: str) -> None:
        """Tell something that the user should know."""
        self.notes.append(text)
        self._say(f"polarvault: {text}")

    def notice(self, notice: ServerError) -> None:
        """Tell what the server says, as pg_basebackup does: people look for WARNING in logs.

        Once, although the server walks the data directory twice when it is asked for the size.
        """
        said = (f"{notice.severity}:  {notice.message}", notice.detail, notice.hint)
        if said in self._notices or len(self._notices) >= _MOST_NOTICES:
            return
        self._notices.add(said)
        (self.warnings if notice.severity == "WARNING" else self.notes).append(said[0])
        self._say(said[0])
        for kind, text in (("DETAIL", notice.detail), ("HINT", notice.hint)):
            if text:
                self._say(f"{kind}:  {text}")

    def warning(self, text: str) -> None:
        """Tell what is wrong."""
        self.warnings.append(text)
        self._say(f"polarvault: warning: {text}")

    def progress(self, progress: BackupProgress, *, final: bool = False) -> None:
        """Show progress at most once a second; the final state always."""
        if not self._show_progress:
            return
        now = time.monotonic()
        if not final and now - self._last_line < (0.1 if self._bar else _BETWEEN_LINES_S):
            return
        self._last_line = now
        # The estimate may be short of what is sent; the server's tool raises it in the same way.
        self._total = max(self._total, progress.total_bytes, progress.done_bytes)
        if sys.stderr.isatty():
            self._show_bar(progress, final=final)
        else:
            self._say(self._line(progress, final=final))

    def _line(self, progress: BackupProgress, *, final: bool) -> str:
        done, total = progress.done_bytes // 1024, self._total // 1024
        percent = 100 if final else (done * 100 // total if total else 0)
        complete = progress.archive_count if final else max(progress.archive_number - 1, 0)
        plural = "tablespace" if progress.archive_count == 1 else "tablespaces"
        line = f"{done:>{len(str(total))}}/{total} kB ({percent}%), {complete}/{progress.archive_count} {plural}"
        if self._verbose and not final:
            name = progress.current
            cut = name if len(name) <= _NAME_WIDTH else "..." + name[-(_NAME_WIDTH - 3) :]
            line += f" ({cut:<{_NAME_WIDTH}})"
        return line

    def _show_bar(self, progress: BackupProgress, *, final: bool) -> None:
        if self._bar is None or self._task is None:
            self._bar = _make_bar()
            self._bar.start()
            self._task = self._bar.add_task("backup", total=None)
        self._bar.update(self._task, completed=progress.done_bytes, total=self._total or None)
        if final:
            self._bar.stop()

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)


def _make_bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    return Progress(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(),
        TimeRemainingColumn(), console=Console(stderr=True), transient=False,
    )  # fmt: skip
