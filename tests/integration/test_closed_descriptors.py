"""Standard descriptors that are closed or full: every command ends at once, and nothing is written elsewhere."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from support.cluster import Cluster
from support.program import command_line, program_environment

END_S = 60
COMMANDS = [
    "--help", "--version", "basebackup --help", "basebackup --version", "receivewal --help", "receivewal -V",
    "verifybackup --help", "verifybackup --version", "restore --help", "check --help", "drill --help", "wal --help",
    "wal fetch --help", "demo --help", "",
]  # fmt: skip


def ended(words: str, redirection: str, directory: Path) -> tuple[int, str]:
    """Run a command line of ours in a shell; return its exit status and what it said on standard error."""
    program = " ".join(command_line())
    finished = subprocess.run(
        ["sh", "-c", f"exec {program} {words} {redirection}"], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        env=program_environment(), cwd=directory, timeout=END_S, check=False,
    )  # fmt: skip
    assert "Traceback" not in finished.stderr
    assert "Exception ignored" not in finished.stderr
    assert list(directory.iterdir()) == []
    return finished.returncode, finished.stderr


@pytest.mark.parametrize("words", COMMANDS)
def test_an_output_that_cannot_be_written_is_said(tmp_path: Path, words: str) -> None:
    for redirection, why in (("1>&-", "Bad file descriptor"), (">/dev/full", "No space left on device")):
        status, said = ended(words, redirection, tmp_path)
        if words:
            assert status == 1
            assert why in said
        else:
            # The help is on standard error then.
            assert (status, "error" in said) == (2, False)


@pytest.mark.parametrize("words", ["--help", "check -h /nowhere", "basebackup -D x -h /nowhere", "receivewal -D ."])
@pytest.mark.parametrize("redirection", ["2>&-", "<&-", "<&- >&- 2>&-", ">&- 2>&-"])
def test_closed_descriptors_do_not_stop_a_command_from_ending(tmp_path: Path, words: str, redirection: str) -> None:
    status, _ = ended(words, redirection, tmp_path)
    assert status == 0 if words == "--help" and redirection in ("2>&-", "<&-") else status in (1, 2)


@pytest.mark.postgres
@pytest.mark.parametrize("redirection", [">&-", ">/dev/full"])
def test_a_backup_to_an_output_that_cannot_be_written_ends_at_once(
    pg18: Cluster, workspace: Path, redirection: str
) -> None:
    words = f"basebackup -D - -Ft -X none -c fast -d '{pg18.conninfo()}'"
    status, said = ended(words, redirection, workspace)
    assert status == 1
    assert "standard output" in said
