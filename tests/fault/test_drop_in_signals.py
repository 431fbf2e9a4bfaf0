"""SIGHUP, SIGINT and SIGTERM at several moments: the end that the real programs have, and nothing left behind."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from polarvault.instance.model import Binaries
from support.cluster import Cluster
from support.program import command_line, program_environment, run_polarvault
from support.receiving import receiver
from support.servers import has_program
from support.waiting import wait_until

pytestmark = pytest.mark.postgres

SIGNALS = pytest.mark.parametrize(
    "number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name
)
END_S = 60


@pytest.fixture
def silent_server() -> Iterator[socket.socket]:
    """A port that takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def ended_by(command: list[str], number: int, silent: socket.socket) -> int:
    """Run a command against the silent server, signal it once it is connected, and return its exit status."""
    port = str(silent.getsockname()[1])
    running = subprocess.Popen(
        [*command, "-h", "127.0.0.1", "-p", port], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, env=program_environment(), cwd="/",
    )  # fmt: skip
    silent.settimeout(END_S)
    with silent.accept()[0] as connected:
        # Its first words: it waits for an answer now.
        connected.settimeout(END_S)
        assert connected.recv(8)
        running.send_signal(number)
        _, errors = running.communicate(timeout=END_S)
    assert b"Traceback" not in errors
    return running.returncode


@SIGNALS
@pytest.mark.parametrize("name", ["basebackup", "receivewal"])
def test_a_signal_before_the_first_connection_ends_as_the_real_program(
    installation: Callable[[int], Binaries],
    silent_server: socket.socket,
    tmp_path: Path,
    name: str,
    number: signal.Signals,
) -> None:
    target = tmp_path / "target"
    if name == "receivewal":
        target.mkdir()
    ours = ended_by([*command_line(name), "-D", str(target)], number, silent_server)
    assert not target.exists() or list(target.iterdir()) == []
    programs = installation(15)
    if not has_program(programs, f"pg_{name}"):
        pytest.skip(f"pg_{name} 15 is not installed")
    assert ours == ended_by([str(programs.program(f"pg_{name}")), "-D", str(target)], number, silent_server) == -number


@SIGNALS
def test_a_receiver_at_work_ends_as_the_real_program(pg18: Cluster, workspace: Path, number: signal.Signals) -> None:
    ends = []
    theirs = [pg18.installation] if has_program(pg18.installation, "pg_receivewal") else []
    for program in [None, *theirs]:
        # Until 15, pg_receivewal died by SIGTERM, too.
        directory = workspace / f"wal{len(ends)}"
        with receiver(directory, pg18.conninfo(), theirs=program) as running:
            wait_until(lambda running=running: any(running.directory.glob("*.partial")), "it receives", timeout_s=END_S)
            running.running.send_signal(number)
            ends.append(running.running.wait(END_S))
    assert ends == [-number if number == signal.SIGHUP else 0] * len(ends)


def test_an_ignored_signal_stays_ignored(pg18: Cluster, workspace: Path) -> None:
    command = command_line("receivewal", "-D", workspace / "wal", "-d", pg18.conninfo())
    (workspace / "wal").mkdir()
    running = subprocess.Popen(
        ["nohup", *command], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=program_environment(), cwd=workspace,
    )  # fmt: skip
    try:
        wait_until(lambda: any((workspace / "wal").glob("*.partial")), "it receives", timeout_s=END_S)
        running.send_signal(signal.SIGHUP)
        # It would have ended by the first signal before it looks at the second one.
        running.send_signal(signal.SIGTERM)
        assert running.wait(END_S) == 0
    finally:
        running.kill()


WRONG = {
    "no such slot": ["-S", "missing", "-n"],
    "no such slot, in a loop": ["-S", "missing"],
    "wrong role": ["-U", "humble", "-n"],
    "no such role": ["-U", "nobody_of_this_name", "-n"],
    "no such host": ["-h", "/nowhere"],
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_receiver_that_fails_at_the_start_leaves_no_files(pg15: Cluster, workspace: Path, mistake: str) -> None:
    pg15.query("DROP ROLE IF EXISTS humble; CREATE ROLE humble LOGIN")
    (workspace / "wal").mkdir()
    words = ["-D", str(workspace / "wal"), "-d", pg15.conninfo(), *WRONG[mistake]]
    refused = run_polarvault("receivewal", *words, check=False)
    assert refused.returncode == 1
    assert "error: " in refused.stderr
    assert list((workspace / "wal").iterdir()) == []
    # What was there before stays, and so does what tells of an earlier receiver.
    with receiver(workspace / "wal", pg15.conninfo()) as running:
        running.wait_streaming()
        running.stop()
    before = sorted(path.name for path in (workspace / "wal").iterdir())
    run_polarvault("receivewal", *words, check=False)
    assert sorted(path.name for path in (workspace / "wal").iterdir()) == before
