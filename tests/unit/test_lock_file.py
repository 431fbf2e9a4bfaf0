"""postmaster.pid: where a server listens, how far it has come, and whether it lives at all."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from polarvault.errors import StartFailed
from polarvault.instance.lock_file import ServerStatus, is_running, read_lock_file, server_address


def write(directory: Path, *, pid: int, sockets: str = "/run/pg", address: str = "*", status: str = "ready   ") -> str:
    lines = [str(pid), str(directory), "1795656580", "5433", sockets, address, "  1234  5678", status]
    (directory / "postmaster.pid").write_text("\n".join(lines) + "\n")
    return str(directory)


@pytest.mark.parametrize(
    ("sockets", "expected"),
    [("/run/pg", "/run/pg"), (".", "{}"), ("sock", "{}/sock"), ("../beside", "{}/../beside"), ("@name", "@name"),
     ("", "localhost")],
)  # fmt: skip
def test_a_relative_socket_directory_counts_from_the_data_directory(
    tmp_path: Path, sockets: str, expected: str
) -> None:
    data = write(tmp_path, pid=os.getpid(), sockets=sockets)
    wanted = expected.format(data)
    assert server_address(data) == (os.path.normpath(wanted) if "/" in wanted else wanted, 5433)


@pytest.mark.parametrize("status", list(ServerStatus))
def test_the_status_line_tells_how_far_the_server_is(tmp_path: Path, status: ServerStatus) -> None:
    lock = read_lock_file(write(tmp_path, pid=1, status=status.value.ljust(8)))
    assert lock is not None
    assert lock.status is status
    assert status.takes_connections == (status.value in ("ready", "standby"))


def test_a_server_that_was_killed_does_not_run_although_its_file_is_there(tmp_path: Path) -> None:
    child = subprocess.Popen(["true"])
    # Not waited for: it stays in the process table, as an orphan does where nobody reaps.
    data = write(tmp_path, pid=child.pid)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not is_running(data)
    child.wait()
    assert not is_running(data)
    assert is_running(write(tmp_path, pid=os.getpid()))


@pytest.mark.parametrize("content", [b"", b"\n", b"12\n/x\n", b"\xff\xfe\n\xff\n", b"x\ny\nz\nport\n"])
def test_a_file_that_is_just_being_written_gives_no_address_and_no_traceback(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "postmaster.pid").write_bytes(content)
    assert read_lock_file(str(tmp_path)) is not None
    with pytest.raises(StartFailed, match=r"postmaster\.pid"):
        server_address(str(tmp_path))
