"""Tell the story: numbered steps and commands, with colour on a terminal and as plain lines elsewhere."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table


class Narrator:
    """Prints steps; everything goes to stdout, for the story is what the demo was asked for."""

    def __init__(self, steps: int) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._steps = steps
        self._step = 0
        self._started = time.monotonic()

    def step(self, title: str) -> None:
        """Begin the next step."""
        self._step += 1
        elapsed_s = time.monotonic() - self._started
        heading = f"Step {self._step} of {self._steps}: {title}"
        if self._console.is_terminal:
            self._console.rule(f"[bold cyan]{escape(heading)}[/] [dim]{elapsed_s:.0f} s[/]", align="left")
        else:
            self._print(f"\n== {heading} ({elapsed_s:.0f} s) ==")

    def say(self, text: str) -> None:
        """Say one thing."""
        self._print(escape(text))

    def command(self, words: Sequence[str]) -> None:
        """Show a command as it can be typed."""
        self._print(f"[bold green]$ {escape(shlex.join(words))}[/]")

    def good(self, text: str) -> None:
        """Say that something turned out well."""
        self._print(f"[bold green]{escape(text)}[/]")

    def bad(self, text: str) -> None:
        """Say that something turned out badly."""
        self._print(f"[bold red]{escape(text)}[/]")

    def table(self, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Show a small table."""
        if self._console.is_terminal:
            table = Table(*headings)
            for row in rows:
                table.add_row(*row)
            self._console.print(table)
            return
        widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
        for row in (headings, *rows):
            self._print(escape("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()))

    @property
    def elapsed_s(self) -> float:
        """Seconds since the story began."""
        return time.monotonic() - self._started

    def _print(self, markup: str) -> None:
        self._console.print(markup)
        # The commands we run write to the same place; without this their lines would come first in a file.
        self._console.file.flush()
