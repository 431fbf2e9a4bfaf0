"""What a receiver knows of itself: lag, the slot's state, the lock and the status file."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from polarvault.errors import DiskFull, UsageError
from polarvault.model.compression import Compression
from polarvault.model.lsn import Lsn
from polarvault.storage.processes import own_process
from polarvault.walarchive.receive.state import ReceiverState
from polarvault.walarchive.receive.watch import SlotState
from polarvault.walarchive.store.directory import DirectoryStore
from polarvault.walarchive.store.status_file import (
    LOCK_NAME,
    STATUS_NAME,
    DirectoryLock,
    is_locked,
    lock_owner,
    read_status,
    write_status,
)
from support.program import program_environment

MB = 1 << 20


def test_lag_is_what_the_server_has_and_is_not_durable_here() -> None:
    state = ReceiverState(0.0)
    assert (state.lag_bytes, state.lag_s(5.0)) == (0, 0.0)
    state.server_said(Lsn(100), 10.0)
    state.server_said(Lsn(300), 12.0)
    assert (state.lag_bytes, state.lag_s(15.0)) == (300, 5.0)
    # Up to the middle of what the server had at 12: that is the oldest that is missing.
    state.flushed_up_to(Lsn(200), 0.0)
    assert (state.lag_bytes, state.lag_s(15.0)) == (100, 3.0)
    state.server_said(Lsn(300), 14.0)
    assert state.lag_s(15.0) == 3.0
    state.flushed_up_to(Lsn(300), 0.0)
    assert (state.lag_bytes, state.lag_s(99.0)) == (0, 0.0)
    # The clock may be set back.
    state.server_said(Lsn(400), 50.0)
    assert state.lag_s(20.0) == 0.0


def test_a_long_lag_keeps_its_age_in_bounded_memory() -> None:
    state = ReceiverState(0.0)
    for second in range(1, 20_001):
        state.server_said(Lsn(second), float(second))
    assert len(state._reached) < 5000
    assert (state.lag_bytes, state.lag_s(20_000.0)) == (20_000, 19_999.0)
    state.flushed_up_to(Lsn(19_999), 0.0)
    assert state.lag_bytes == 1
    state.flushed_up_to(Lsn(20_000), 0.0)
    assert state.lag_s(30_000.0) == 0.0


def test_the_status_file_holds_all_that_is_judged_later() -> None:
    state = ReceiverState(1.0, slot="s")
    state.received, state.timeline_id = Lsn(0x1_0000_0000), 3
    state.failed(DiskFull("no space", hint="make some"), 1.5)
    found = json.loads(json.dumps(state.as_json(2.0)))
    assert (found["received_lsn"], found["timeline"], found["slot"], found["updated_at"]) == ("1/0", 3, "s", 2.0)
    assert (found["last_error"], found["last_error_id"], found["last_error_hint"]) == (
        "no space", "disk-full", "make some",
    )  # fmt: skip
    assert found["process_id"] == os.getpid()
    own = own_process()
    assert own is not None
    assert found["process_started"] == own.started


def test_connecting_again_and_again_is_one_time_without_wal() -> None:
    state = ReceiverState(1.0)
    state.enter("streaming", 5.0)
    for moment, name in enumerate(("disconnected", "connecting", "disconnected", "disk full", "connecting")):
        state.enter(name, 10.0 + moment)
    assert (state.state, state.state_since) == ("connecting", 10.0)
    state.enter("streaming", 20.0)
    assert state.state_since == 20.0


@pytest.mark.parametrize(
    ("status", "safe_bytes", "words"),
    [
        ("reserved", None, None),
        ("extended", None, None),
        ("reserved", 4 * 16 * MB, None),
        ("extended", 4 * 16 * MB - 1, "loses WAL when the server has written another 63 MB"),
        ("reserved", 0, "another 0 MB"),
        ("unreserved", -MB, "about to lose WAL at the next checkpoint"),
        ("unreserved", None, "about to lose WAL at the next checkpoint"),
        ("lost", None, "has lost WAL that is needed: take a new base backup"),
        (None, None, None),
    ],
)
def test_a_slot_in_danger_is_warned_of(status: str | None, safe_bytes: int | None, words: str | None) -> None:
    warning = SlotState(status, safe_bytes, "0/0").warning("mine", 16 * MB)
    assert (warning is None) == (words is None)
    if words and warning:
        assert words in warning
        assert '"mine"' in warning
        assert "max_slot_wal_keep_size" in warning or "drop and create" in warning


@pytest.mark.parametrize("content", ["1", "-1", "0", "1 2", "1; rm -rf /", "\x1b[2J", "\u0661\u0662", ""])
def test_no_command_is_made_of_what_a_stranger_wrote_into_the_lock_file(tmp_path: Path, content: str) -> None:
    lock = DirectoryLock(str(tmp_path))
    (tmp_path / LOCK_NAME).write_text(content)
    with pytest.raises(UsageError, match="process unknown") as caught:
        DirectoryLock(str(tmp_path))
    assert caught.value.hint is not None
    assert "kill" not in caught.value.hint
    lock.release()


def test_hints_can_be_pasted_whatever_the_directory_is_called(tmp_path: Path) -> None:
    directory = tmp_path / "a b'c$d"
    directory.mkdir()
    with pytest.raises(UsageError) as caught:
        read_status(str(directory))
    assert caught.value.hint is not None
    assert str(directory) in shlex.split(caught.value.hint)


def test_one_receiver_locks_a_directory(tmp_path: Path) -> None:
    assert not is_locked(str(tmp_path))
    lock = DirectoryLock(str(tmp_path))
    assert is_locked(str(tmp_path))
    with pytest.raises(UsageError, match=f"another receivewal \\(process {os.getpid()}\\) writes to") as caught:
        DirectoryLock(str(tmp_path))
    assert caught.value.hint is not None
    assert f"kill {os.getpid()}" in caught.value.hint
    lock.release()
    assert not is_locked(str(tmp_path))
    DirectoryLock(str(tmp_path)).release()


def test_the_lock_of_a_dead_process_does_not_count(tmp_path: Path) -> None:
    taking = (
        f"from polarvault.walarchive.store.status_file import DirectoryLock as Lock; import os; Lock({str(tmp_path)!r})"
    )
    subprocess.run([sys.executable, "-c", f"{taking}; os._exit(1)"], env=program_environment(), check=False)
    assert (tmp_path / LOCK_NAME).read_text().strip() != str(os.getpid())
    assert not is_locked(str(tmp_path))
    DirectoryLock(str(tmp_path)).release()
    assert (tmp_path / LOCK_NAME).read_text() == f"{os.getpid()}\n"


def test_a_status_file_is_read_back_and_the_lock_says_whether_its_writer_lives(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no receiver has written to"):
        read_status(str(tmp_path))
    lock = DirectoryLock(str(tmp_path))
    write_status(str(tmp_path), {"state": "streaming"}, 0o600)
    assert read_status(str(tmp_path)) == {"state": "streaming"}
    assert lock_owner(str(tmp_path)) == (True, os.getpid())
    lock.release()
    assert lock_owner(str(tmp_path)) == (False, None)
    for damaged in ('{"state": ', "[]", "{}", "1"):
        (tmp_path / STATUS_NAME).write_text(damaged)
        with pytest.raises(UsageError, match="is damaged"):
            read_status(str(tmp_path))


def test_a_nearly_full_disk_is_warned_of(tmp_path: Path) -> None:
    found = os.statvfs(tmp_path)
    free = found.f_bavail * found.f_frsize
    store = DirectoryStore(str(tmp_path), compression=Compression())
    assert store.has_space(MB)
    assert not store.has_space(2 * free)
    warning = store.space_warning(free)
    assert warning is not None
    assert f'the disk of "{tmp_path}" is nearly full' in warning
