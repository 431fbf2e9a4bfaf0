"""What --target-... means, and which values and combinations are refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest

from polarvault.cli.options.recovery import recovery_request
from polarvault.errors import UsageError
from polarvault.model.lsn import Lsn
from polarvault.recovery.target import (
    RecoveryRequest,
    TargetAction,
    TargetKind,
    format_time,
    parse_target_lsn,
    parse_target_name,
    parse_target_time,
    parse_target_xid,
    parse_timeline,
)

NOTHING = {
    "target_time": None, "target_xid": None, "target_lsn": None, "target_name": None, "target_word": None,
    "target_inclusive": None, "target_timeline": "latest", "target_action": None, "wal_directories": (),
    "keep_archiving": False, "archive_is_unknown": False,
}  # fmt: skip


def request(**options: object) -> RecoveryRequest:
    return recovery_request(**NOTHING | options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("2026-11-22 14:03:00+01", "2026-11-22 13:03:00+00"),
        ("2026-11-22T14:03:00Z", "2026-11-22 14:03:00+00"),
        ("2026-11-22 14:03:00.25+0530", "2026-11-22 08:33:00.25+00"),
        ("2026-11-22 14:03 +05:30", "2026-11-22 08:33:00+00"),
        ("2026-11-22 14:03:00 UTC", "2026-11-22 14:03:00+00"),
        ("2026-07-22 14:03:00 Europe/Berlin", "2026-07-22 12:03:00+00"),
        ("2026-11-22 14:03:00 Europe/Berlin", "2026-11-22 13:03:00+00"),
        ("20261122T140300Z", "2026-11-22 14:03:00+00"),
    ],
)
def test_a_time_with_a_zone_is_written_in_utc_with_its_offset(text: str, written: str) -> None:
    target = parse_target_time(text)
    assert target.value == written
    assert target.assumed_zone is None


def test_a_time_without_a_zone_is_local_and_names_the_zone() -> None:
    target = parse_target_time("2026-11-22 14:03", local=ZoneInfo("Asia/Shanghai"))
    assert target.value == "2026-11-22 06:03:00+00"
    assert target.assumed_zone == "UTC+08:00 (CST)"
    assert str(target) == "time 2026-11-22 14:03:00+08"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("2026-10-25 02:30 Europe/Berlin", "happens twice"),
        ("2026-03-29 02:30 Europe/Berlin", "is skipped"),
        ("2026-11-22 14:03 Middle/Earth", "no time zone that this machine knows"),
        ("2026-11-22", "not a date and time"),
        ("yesterday 14:03", "not a date and time"),
        ("2026-13-22 14:03", "not a date and time"),
        ("2026-11-22 14:03+01 Europe/Berlin", "not a date and time"),
        ("", "not a date and time"),
    ],
)
def test_what_is_no_moment_is_refused_with_an_example(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        parse_target_time(text)
    assert caught.value.hint


def test_a_local_time_that_happens_twice_is_refused_with_both_offsets() -> None:
    with pytest.raises(UsageError, match="happens twice") as caught:
        parse_target_time("2026-10-25 02:30", local=ZoneInfo("Europe/Berlin"))
    assert "+02 or +01" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("offset", "written"),
    [(timedelta(0), "+00"), (timedelta(hours=-3, minutes=-30), "-03:30"), (timedelta(hours=14), "+14")],
)
def test_times_are_shown_as_postgresql_shows_them(offset: timedelta, written: str) -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, 60, tzinfo=timezone(offset))
    assert format_time(moment) == "2026-01-02 03:04:05.00006" + written


def test_of_a_64_bit_transaction_number_the_low_half_counts() -> None:
    assert parse_target_xid(str((7 << 32) + 1234)).xid == 1234
    assert parse_target_xid("3").value == "3"


@pytest.mark.parametrize("text", ["", "2", "-5", "abc", "1.5", str(1 << 64), str(1 << 32)])
def test_what_is_no_transaction_number_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no transaction number"):
        parse_target_xid(text)


def test_lsns_and_names_are_checked() -> None:
    assert parse_target_lsn("16/B374D848").lsn == Lsn.parse("16/B374D848")
    with pytest.raises(UsageError, match="is not an LSN"):
        parse_target_lsn("16-B374D848")
    assert parse_target_name("ä" * 31).name == "ä" * 31
    # The server takes every byte but zero; a file name from a terminal may be no UTF-8.
    for name in ("two\nlines", "caf\udce9", "tab\there"):
        assert parse_target_name(name).name == name
    for name in ("", "x" * 64, "ä" * 32):
        with pytest.raises(UsageError, match="no restore point's name"):
            parse_target_name(name)


def test_timelines_are_latest_current_or_a_number() -> None:
    assert [parse_timeline(text) for text in ("latest", "current", "7")] == ["latest", "current", 7]
    for text in ("0", "newest", "-1", "0x2", "", str(1 << 32)):
        with pytest.raises(UsageError, match="--target-timeline"):
            parse_timeline(text)


def test_without_a_target_nothing_is_planned_and_with_one_the_server_pauses() -> None:
    assert not request().is_wanted
    assert request().effective_action is TargetAction.PROMOTE
    assert request(target_xid="5").effective_action is TargetAction.PAUSE
    assert request(target_xid="5", target_action="shutdown").effective_action is TargetAction.SHUTDOWN
    assert request(target_word="latest").effective_action is TargetAction.PROMOTE
    assert request(target_word="latest", target_action="promote") == request(target_word="latest")
    assert request(target_action="promote") == request()
    assert request(wal_directories=("/tmp",)).effective_target.kind is TargetKind.LATEST
    assert request(wal_directories=("/tmp",)).is_wanted
    assert request(target_timeline="2").is_wanted


@pytest.mark.parametrize(
    "options",
    [
        {"target_time": "2026-11-22 14:03Z", "target_xid": "5"},
        {"target_lsn": "0/5", "target_word": "latest"},
        {"target_name": "x", "target_inclusive": False},
        {"target_word": "immediate", "target_inclusive": True},
        {"target_inclusive": True},
        {"target_word": "latest", "target_action": "pause"},
        {"target_action": "shutdown"},
        {"wal_directories": ("/no/such/directory",)},
        {"wal_directories": ("/tmp",), "archive_is_unknown": True},
        {"target_timeline": "x"},
    ],
    ids=str,
)
def test_options_that_mean_nothing_together_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="--"):
        request(**options)


def test_exclusive_is_said_and_kept() -> None:
    target = request(target_time="2026-11-22 14:03Z", target_inclusive=False).target
    assert target is not None
    assert target.time == datetime(2026, 11, 22, 14, 3, tzinfo=UTC)
    assert (target.inclusive, str(target)) == (False, "time 2026-11-22 14:03:00+00, exclusive")
