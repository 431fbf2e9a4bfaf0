"""Logs are read where the server's account writes them: no link there leads us to another file."""

from __future__ import annotations

from pathlib import Path

import pytest

from polarvault.drill.place.server import copy_log, last_lines
from polarvault.instance.log_files import last_lines_of, log_size, read_log


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "shadow"
    path.write_bytes(b"root:geheim\n")
    return path


def test_a_log_that_is_a_link_is_not_read(tmp_path: Path, secret: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    log = data / "polarvault-start.log"
    log.symlink_to(secret)
    assert log_size(str(data), str(log)) is None
    with pytest.raises(OSError, match="symbolic link"):
        read_log(str(data), str(log))
    assert last_lines(str(data)) is None
    assert copy_log(str(data), str(tmp_path / "copy")) is None
    assert not (tmp_path / "copy").exists()


def test_a_log_directory_that_is_a_link_is_not_read(tmp_path: Path, secret: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "log").symlink_to(tmp_path)
    assert log_size(str(data), str(data / "log" / secret.name)) is None


def test_a_copy_of_a_log_is_for_its_owner_and_replaces_no_linked_file(tmp_path: Path, secret: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "polarvault-start.log").write_bytes(b"LOG:  starting\n")
    copy = tmp_path / "copy"
    copy.symlink_to(secret)
    assert copy_log(str(data), str(copy)) == str(copy)
    assert copy.read_bytes() == b"LOG:  starting\n"
    assert copy.stat().st_mode & 0o777 == 0o600
    assert secret.read_bytes() == b"root:geheim\n"


def test_secrets_in_a_log_are_hidden() -> None:
    content = b"DETAIL:  The failed archive command was: curl -u bob:geheim https://h/x\nLOG:  b\n"
    assert last_lines_of(content, 5) == (
        "DETAIL:  The failed archive command was: curl -u bob:******** https://h/x\nLOG:  b"
    )


def test_only_the_end_of_a_long_log_is_read(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_bytes(b"a" * 1000 + b"end")
    assert read_log(str(tmp_path), str(log), most_bytes=3) == b"end"
    assert read_log(str(tmp_path), str(log), start=1001) == b"nd"
