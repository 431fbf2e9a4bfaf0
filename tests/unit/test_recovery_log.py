"""The log of a recovering server is read as it grows, from where the server was started on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from polarvault.instance.model import Instance, Role
from polarvault.instance.start import LOG_NAME
from polarvault.recovery import log as recovery_log
from polarvault.recovery.log import RecoveryLog


@pytest.fixture
def instance(tmp_path: Path) -> Instance:
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "old.log").write_text("FATAL:  of the source\n")
    return Instance(
        data_directory=str(tmp_path), control_path=str(tmp_path / "global/pg_control"),
        wal_directory=str(tmp_path / "pg_wal"), role=Role.PRIMARY, signal_path=str(tmp_path / "recovery.signal"),
        is_polardb=False, source_timeline_id=1, segment_size_bytes=16 << 20, superuser=None, timeout_s=60.0,
    )  # fmt: skip


def append(path: Path, text: str) -> None:
    with open(path, "ab") as log:
        log.write(text.encode())


def test_only_what_is_written_after_the_start_counts_and_in_the_order_of_the_files(
    tmp_path: Path, instance: Instance
) -> None:
    log = RecoveryLog(instance)
    assert (log.text, log.fatal, log.stopped, log.paused) == ("", None, None, False)
    append(tmp_path / "log" / "old.log", 'LOG:  recovery stopping before WAL location (LSN) "0/3000148"\n')
    append(tmp_path / LOG_NAME, "LOG:  starting ")
    assert log.text.startswith("LOG:  starting \nLOG:  recovery stopping")
    append(tmp_path / LOG_NAME, "\n")
    append(tmp_path / "log" / "new.log", "LOG:  recovery has paused\n")
    assert log.paused
    assert log.stopped is not None
    assert str(log.stopped.lsn) == "0/3000148"
    assert log.path in {str(tmp_path / "log" / "new.log"), str(tmp_path / LOG_NAME)}
    append(tmp_path / LOG_NAME, "FATAL:  the database system is starting up\nFATAL:  no checkpoint\n")
    assert log.fatal == "no checkpoint"


def test_a_letter_that_was_written_in_two_parts_is_whole(tmp_path: Path, instance: Instance) -> None:
    log, letter = RecoveryLog(instance), "ü".encode()
    (tmp_path / LOG_NAME).write_bytes(letter[:1])
    assert log.text
    (tmp_path / LOG_NAME).write_bytes(letter)
    assert log.text == "ü"


def test_what_was_read_is_not_read_again(tmp_path: Path, instance: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    log, read = RecoveryLog(instance), []

    def counted(root: str, path: str, **how: Any) -> bytes:
        content = read_log(root, path, **how)
        read.append(len(content))
        return content

    read_log = recovery_log.read_log
    monkeypatch.setattr(recovery_log, "read_log", counted)
    append(tmp_path / LOG_NAME, "LOG:  a line\n" * 1000)
    for _ in range(5):
        assert not log.paused
        assert log.fatal is None
    assert sum(read) == 13_000
