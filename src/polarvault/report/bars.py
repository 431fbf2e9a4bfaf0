"""Bars on a terminal: one at a time, on one line of 80 columns; a bar appears when it has something to show."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Self

from polarvault.report.units import format_bytes

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

_BAR_WIDTH = 20
_INDENT = 20
_STEP_S = 0.05
# Lines to type are never broken, whatever their length.
_COMMANDS = ("psql ", "pg_ctl", "su ", "polarvault ", "pg_ctlcluster")


class Bar:
    """A bar with a title, and words behind it. Use it as a context manager; `stop` takes it away before that."""

    def __init__(self, title: str, *, console: Console | None = None) -> None:
        self._title = title
        self._console = console
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._is_over = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def show(self, done: int, total: int, words: str) -> None:
        """Show how far it is; total 0: not known."""
        if self._is_over:
            return
        if self._progress is None:
            self._start()
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, total=total or None, words=words)

    def stop(self) -> None:
        """Take the bar away; safe to call twice."""
        self._is_over = True
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _start(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (TextColumn(self._title), BarColumn(_BAR_WIDTH), TextColumn("{task.fields[words]}"))
        console = self._console or Console(stderr=True)
        progress = Progress(*columns, console=console, transient=True)
        self._task = progress.add_task(self._title, total=None, words="")
        progress.start()
        self._progress = progress


class CopyBar(Bar):
    """How much has been copied, of a size that is known; called with the bytes of each step, from several threads."""

    def __init__(
        self,
        total_bytes: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        console: Console | None = None,
    ) -> None:
        super().__init__("copying", console=console)
        self._total = total_bytes
        self._clock = clock
        self._began = self._due = clock()
        self._done = 0

    def __call__(self, size: int) -> None:
        """Take a step; one that is lost between threads does no harm."""
        self._done += size
        now = self._clock()
        # Of a hundred thousand small files nobody wants to see each.
        if self._is_over or (now < self._due and self._done < self._total):
            return
        self._due = now + _STEP_S
        # A file may have grown since it was listed.
        done = min(self._done, self._total)
        self.show(done, self._total, copy_words(done, self._total, now - self._began))


@contextmanager
def received_printer(say: Callable[[str], None], *, is_terminal: bool) -> Iterator[Callable[[int], None]]:
    """Show how much has come through a pipe, whose end nobody knows: words on a terminal, two lines elsewhere."""
    done = 0
    began = time.monotonic()
    if not is_terminal:
        say("polarvault: receiving a tar from standard input")

    def advance(size: int) -> None:
        nonlocal done
        done += size
        if is_terminal:
            bar.show(done, 0, f"{format_bytes(done)}, {format_bytes(int(done / max(time.monotonic() - began, 1)))}/s")

    with Bar("receiving") as bar:
        yield advance
    if not is_terminal:
        say(f"polarvault: received {format_bytes(done)}")


def copy_words(done: int, total: int, elapsed_s: float) -> str:
    """Say how much is done, how fast, and how long it still takes."""
    words = f"{format_bytes(done)} of {format_bytes(total)}"
    if elapsed_s > 0 and done > 0:
        rate = done / elapsed_s
        words += f", {format_bytes(int(rate))}/s"
        if done < total:
            words += f", {timedelta(seconds=int((total - done) / rate))} left"
    return words


def fitted(lines: Iterable[str], columns: int) -> Iterator[str]:
    """Break lines of text that are longer than a terminal is wide; what is to be typed stays in one line."""
    for line in lines:
        text = line.strip()
        if len(line) <= columns or any(word in text for word in _COMMANDS):
            yield line
            continue
        own = len(line) - len(line.lstrip())
        # Behind a label, where there is one: "  data directory    /srv/..."
        indent = _INDENT if line[:2] == "  " and "  " in line[2:_INDENT] and own == 2 else own + 2
        yield from textwrap.wrap(
            line, columns, subsequent_indent=" " * indent, drop_whitespace=True, break_long_words=False,
            break_on_hyphens=False, replace_whitespace=False,
        )  # fmt: skip
