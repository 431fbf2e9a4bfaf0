"""Bars and lines for a terminal of 80 columns."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from polarvault.report.bars import Bar, CopyBar, copy_words, fitted


@pytest.mark.parametrize(
    ("done", "total", "elapsed", "words"),
    [
        (0, 1 << 30, 0.0, "0 bytes of 1.0 GB"),
        (1 << 29, 1 << 30, 2.0, "512 MB of 1.0 GB, 256 MB/s, 0:00:02 left"),
        (1 << 30, 1 << 30, 4.0, "1.0 GB of 1.0 GB, 256 MB/s"),
    ],
)
def test_a_copy_says_how_much_how_fast_and_how_long(done: int, total: int, elapsed: float, words: str) -> None:
    assert copy_words(done, total, elapsed) == words


def test_a_bar_fits_a_line_of_80_columns_and_counts_to_its_total() -> None:
    written = io.StringIO()
    now = iter(range(1000))
    console = Console(file=written, force_terminal=True, width=80)
    with CopyBar(900 << 30, clock=lambda: float(next(now)), console=console) as bar:
        for _ in range(10):
            bar(100 << 30)
    assert "900 GB of 900 GB" in written.getvalue()
    assert "…" not in written.getvalue()


def test_a_bar_that_has_nothing_to_show_is_not_shown() -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=80)
    with Bar("recovery", console=console) as bar:
        pass
    bar.show(1, 2, "too late")
    assert written.getvalue() == ""


def test_text_is_broken_behind_its_label_and_lines_to_type_are_not() -> None:
    path = "/srv/" + "a" * 70
    command = f"  su postgres -c 'pg_ctl -D {path} -l {path}/log -w start'"
    lines = list(fitted([f"  data directory    {path} and more words after it", command, "short"], 80))
    assert lines == ["  data directory", " " * 20 + path, " " * 20 + "and more words after it", command, "short"]
