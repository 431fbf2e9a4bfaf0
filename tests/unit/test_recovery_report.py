"""Replay for people: lines, the estimate, and what a log and the small files say."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from polarvault.model.lsn import Lsn
from polarvault.recovery.wal.span import parse_backup_history, parse_time
from polarvault.recovery.watch import ReplayState
from polarvault.report.recovery import ReplayPrinter

NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
MB = 1 << 20


def state(at: int, time: datetime | None = NOON) -> ReplayState:
    return ReplayState(Lsn(at), time, Lsn(0), Lsn(100 * MB))


def test_lines_come_every_few_seconds_with_rate_and_estimate() -> None:
    said: list[str] = []
    clock = iter([0.0, 1.0, 5.0, 10.0])
    printer = ReplayPrinter(said.append, zone=UTC, clock=lambda: next(clock))
    for at in (0, 10 * MB, 50 * MB, 100 * MB):
        printer(state(at))
    assert said == [
        "polarvault: replayed up to LSN 0/0 of 0/6400000, transactions up to 2026-11-22 12:00:00+00",
        "polarvault: replayed up to LSN 0/3200000 of 0/6400000, transactions up to 2026-11-22 12:00:00+00, 10.0 MB/s, "
        "about 0:00:05 left",
        "polarvault: replayed up to LSN 0/6400000 of 0/6400000, transactions up to 2026-11-22 12:00:00+00, 10.0 MB/s",
    ]


def test_a_bar_gets_what_is_done_of_what_there_is() -> None:
    drawn: list[tuple[int, int]] = []
    printer = ReplayPrinter(print, bar=lambda done, total, words: drawn.append((done, total)), clock=lambda: 0.0)
    printer(ReplayState(None, None, Lsn(40), Lsn(140)))
    printer(ReplayState(Lsn(90), None, Lsn(40), Lsn(140)))
    assert drawn == [(50, 100)]


def test_a_target_that_is_not_known_gives_no_estimate() -> None:
    said: list[str] = []
    clock = iter([0.0, 9.0])
    printer = ReplayPrinter(said.append, zone=UTC, clock=lambda: next(clock))
    printer(ReplayState(Lsn(0), None, None, None))
    printer(ReplayState(Lsn(9 * MB), None, None, None))
    assert said[1] == "polarvault: replayed up to LSN 0/900000, 1.0 MB/s"


BACKUP_HISTORY = """START WAL LOCATION: 0/2000028 (file 000000010000000000000002)
STOP WAL LOCATION: 0/2000120 (file 000000010000000000000002)
CHECKPOINT LOCATION: 0/2000080
BACKUP METHOD: streamed
BACKUP FROM: primary
START TIME: 2026-11-22 12:00:00 UTC
LABEL: pg_basebackup base backup
START TIMELINE: 1
STOP TIME: 2026-11-22 12:00:07 UTC
STOP TIMELINE: 1
"""


def test_a_backup_history_file_tells_where_and_when_the_backup_ended() -> None:
    assert parse_backup_history(BACKUP_HISTORY) == (Lsn(0x2000120), 1, NOON.replace(second=7))
    assert parse_backup_history("nonsense") is None


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2026-11-22 12:00:00 UTC", NOON),
        ("2026-11-22 12:00:00 GMT", NOON),
        ("2026-11-22 13:00:00 +01", NOON),
        ("2026-11-22 12:00:00 IST", None),
        ("2026-11-22 12:00:00 CET", None),
        ("soon", None),
    ],
)
def test_only_certain_zones_of_labels_are_trusted(text: str, time: datetime | None) -> None:
    assert parse_time(text) == time
