"""Logs of a server that we started: read where they are, never through a link that the server's account has planted."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from polarvault.drill.place.server import copy_log, last_lines
from polarvault.instance.start import LOG_NAME


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text("a secret\n")
    return path


def test_a_log_that_is_a_link_is_not_read(tmp_path: Path, secret: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / LOG_NAME).symlink_to(secret)
    (data / "log").symlink_to(tmp_path)
    assert last_lines(str(data)) is None
    assert copy_log(str(data), str(tmp_path / "copy")) is None
    assert not (tmp_path / "copy").exists()
    # Who opens a FIFO waits for ever.
    (data / LOG_NAME).unlink()
    os.mkfifo(data / LOG_NAME)
    assert last_lines(str(data)) is None
    assert copy_log(str(data), str(tmp_path / "copy")) is None


def test_a_copy_of_a_log_is_for_who_asked_for_it_and_follows_no_link(tmp_path: Path, secret: Path) -> None:
    (tmp_path / LOG_NAME).write_text("said\n")
    copy = tmp_path / "copy"
    copy.symlink_to(secret)
    assert copy_log(str(tmp_path), str(copy)) == str(copy)
    assert copy.read_text() == "said\n"
    assert secret.read_text() == "a secret\n"
    assert stat.S_IMODE(copy.lstat().st_mode) == 0o600
