"""What a status file means, given who holds the lock, what the process does, and how old the file is."""

from __future__ import annotations

from typing import Any

import pytest

from polarvault.model.finding import Severity
from polarvault.storage.processes import Moment, Process, look_at_process, own_process
from polarvault.walarchive.judgement import ReceiverStatus, Surroundings, judge

NOW = 1_800_000_000.0
PID, STARTED, BOOT = 77, 4711, "boot"


def written(**changed: Any) -> dict[str, Any]:
    """A receiver that was well a second ago, 500 s after the machine started."""
    return {
        "process_id": PID, "process_started": STARTED, "boot_id": BOOT, "state": "streaming", "state_since": NOW - 100,
        "server": "PostgreSQL 18.0 at db:5432", "slot": "s", "timeline": 1, "received_lsn": "0/300",
        "flushed_lsn": "0/300", "server_lsn": "0/300", "behind_since": None, "slot_state": None, "connections": 1,
        "last_error": None, "last_error_id": None, "last_error_hint": None, "last_error_at": None,
        "server_heard_at": NOW - 3, "news_within_s": 20.0, "started_at": NOW - 101, "updated_at": NOW - 1,
        "updated_uptime_s": 499.0,
    } | changed  # fmt: skip


def judged(
    found: dict[str, Any], *, locked: bool = True, lock_pid: int | None = PID, state: str | None = "S",
    started: int = STARTED, uptime_s: float = 500.0, boot: str = BOOT, now: float = NOW,
) -> ReceiverStatus:  # fmt: skip
    process = None if state is None else Process(PID, state, started)
    around = Surroundings(locked, lock_pid if locked else None, process, Moment(uptime_s, boot), now)
    return judge(found, "/wal", around)


def test_a_receiver_that_is_well() -> None:
    status = judged(written())
    assert (status.state, status.running, status.severity, status.findings) == ("streaming", True, Severity.OK, ())
    assert (status.lag_bytes, status.lag_s, status.lag_since) == (0, 0.0, None)
    behind = judged(written(flushed_lsn="0/100", behind_since=NOW - 7))
    assert (behind.lag_bytes, behind.lag_s, behind.lag_since) == (0x200, 7.0, NOW - 7)


@pytest.mark.parametrize(
    ("found", "how", "state", "check"),
    [
        (written(), {"state": "T"}, "suspended", "receiver-process"),
        (written(), {"state": "t"}, "suspended", "receiver-process"),
        (written(), {"uptime_s": 511.0}, "hung", "receiver-status"),
        (written(), {"uptime_s": 511.0, "state": "D"}, "hung", "receiver-status"),
        # Where processes cannot be seen (another container), the age has to do.
        (written(), {"state": None, "uptime_s": 511.0}, "hung", "receiver-status"),
        (written(server_heard_at=NOW - 25), {}, "silent", "server-heard"),
        (written(state="disconnected"), {}, "disconnected", "connection"),
        (written(state="connecting"), {}, "connecting", "connection"),
        (written(state="disk full"), {}, "disk full", "disk"),
        (written(), {"locked": False, "state": None}, "stopped", "receiver-running"),
        # The number of the dead receiver was given to another process.
        (written(), {"locked": False, "started": STARTED + 1}, "stopped", "receiver-running"),
        (written(), {"locked": False, "boot": "another"}, "stopped", "receiver-running"),
        (written(state="stopped"), {"locked": False, "state": None}, "stopped", "receiver-running"),
        # Another receiver has the lock, and has not said a word.
        (written(), {"lock_pid": PID + 1}, "connecting", "connection"),
    ],
)
def test_whatever_does_not_receive_has_a_finding_and_no_known_lag(
    found: dict[str, Any], how: dict[str, Any], state: str, check: str
) -> None:
    status = judged(found, **how)
    assert status.state == state
    assert [finding.check for finding in status.findings] == [check]
    assert status.severity is not Severity.OK
    assert status.findings[0].advice
    assert status.lag_bytes is None
    assert status.lag_since == found["server_heard_at"]
    assert status.lag_s == NOW - found["server_heard_at"]
    later = judged(found, **how | {"now": NOW + 60, "uptime_s": how.get("uptime_s", 500.0) + 60})
    assert later.lag_s is not None
    assert status.lag_s is not None
    assert later.lag_s - status.lag_s == 60


def test_what_was_behind_when_it_was_heard_last_counts_from_then() -> None:
    status = judged(written(state="disconnected", flushed_lsn="0/100", behind_since=NOW - 90))
    assert (status.lag_bytes, status.lag_since, status.lag_s) == (None, NOW - 90, 90.0)


def test_a_disk_that_hangs_is_found_though_the_receiver_streams() -> None:
    behind = written(flushed_lsn="0/100", behind_since=NOW - 100, flushed_at=NOW - 70)
    status = judged(behind)
    assert [(finding.check, finding.severity) for finding in status.findings] == [("disk", Severity.PROBLEM)]
    # One that catches up is behind for as long, but gets on; and who has nothing to write has no hanging disk.
    assert judged(behind | {"flushed_at": NOW - 5}).findings == ()
    assert judged(behind | {"received_lsn": "0/100"}).findings == ()


def test_short_interruptions_are_warnings_and_long_ones_problems() -> None:
    for since, severity in ((NOW - 5, Severity.WARNING), (NOW - 60, Severity.PROBLEM)):
        assert judged(written(state="disconnected", state_since=since)).severity is severity


def test_a_clock_that_was_set_back_makes_no_old_status_new() -> None:
    status = judged(written(), uptime_s=4000.0, now=NOW - 3600)
    assert (status.state, status.age_s, status.is_old) == ("hung", 3501.0, True)
    # And one that was set ahead makes no new status old.
    assert judged(written(), now=NOW + 3600).state == "streaming"


def test_a_lock_file_that_somebody_removed_hides_no_receiver() -> None:
    status = judged(written(), locked=False)
    assert (status.running, status.state) == (True, "streaming")


def test_a_receiver_that_never_got_through_knows_no_positions() -> None:
    status = judged(
        written(state="connecting", received_lsn="0/0", flushed_lsn="0/0", server_lsn="0/0", server_heard_at=None)
    )
    assert (status.received, status.flushed, status.server_end, status.lag_bytes) == (None, None, None, None)
    assert status.lag_since == NOW - 101


@pytest.mark.parametrize(
    ("slot_state", "severity"),
    [
        ({"wal_status": "reserved", "safe_wal_bytes": None}, Severity.OK),
        ({"wal_status": "extended", "safe_wal_bytes": 1 << 20}, Severity.WARNING),
        ({"wal_status": "unreserved", "safe_wal_bytes": 0}, Severity.PROBLEM),
        ({"wal_status": "lost", "safe_wal_bytes": None}, Severity.PROBLEM),
        ({"wal_status": "missing", "safe_wal_bytes": None}, Severity.PROBLEM),
    ],
)
def test_a_slot_in_danger_counts_also_while_wal_arrives(slot_state: dict[str, Any], severity: Severity) -> None:
    status = judged(written(slot_state=slot_state))
    assert (status.state, status.severity) == ("streaming", severity)
    assert [finding.check for finding in status.findings] == ["slot"] * (severity is not Severity.OK)


@pytest.mark.parametrize("found", [{"state": "streaming"}, written(updated_at="x", server_heard_at=[], process_id="1",
                                   timeline=True, received_lsn="?", slot_state=7, connections=None)])  # fmt: skip
def test_a_status_file_that_holds_anything_is_judged_all_the_same(found: dict[str, Any]) -> None:
    status = judged(found)
    assert status.severity is not Severity.OK
    assert status.lag_bytes is None


def test_this_process_is_found_and_one_that_never_was_is_not() -> None:
    own = own_process()
    assert own is not None
    assert not own.is_stopped
    assert look_at_process(own.pid) == Process(own.pid, look_at_process(own.pid).state, own.started)  # type: ignore[union-attr]
    assert look_at_process(2**30) is None
