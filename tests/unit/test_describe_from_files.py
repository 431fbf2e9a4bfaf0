"""What the files tell of a server that lets nobody log in."""

from __future__ import annotations

from pathlib import Path

from polarvault.instance.model import Instance, Role
from polarvault.instance.start import describe_from_files
from support.small_files import control_bytes


def instance(directory: Path) -> Instance:
    (directory / "pg_wal").mkdir()
    (directory / "pg_control").write_bytes(control_bytes(timeline=3))
    return Instance(
        data_directory=str(directory), control_path=str(directory / "pg_control"),
        wal_directory=str(directory / "pg_wal"), role=Role.PRIMARY, signal_path=str(directory / "recovery.signal"),
        is_polardb=False, source_timeline_id=3, segment_size_bytes=16 << 20, superuser=None, timeout_s=1,
    )  # fmt: skip


def test_a_promoted_server_writes_the_timeline_of_its_newest_history_before_its_next_checkpoint(tmp_path: Path) -> None:
    made = instance(tmp_path)
    for name in ("00000003.history", "00000005.history", "0000000500000000000000AA", "archive_status"):
        (tmp_path / "pg_wal" / name).touch()
    server = describe_from_files(made, "localhost", 5432, "log", "no")
    assert (server.in_recovery, server.timeline_id) == (False, 5)


def test_a_server_that_recovers_is_on_the_timeline_that_pg_control_says(tmp_path: Path) -> None:
    made = instance(tmp_path)
    (tmp_path / "recovery.signal").touch()
    # Restored from the archive on the way, and not followed.
    (tmp_path / "pg_wal" / "00000005.history").touch()
    server = describe_from_files(made, "localhost", 5432, "log", "no")
    assert (server.in_recovery, server.timeline_id) == (True, 3)
