"""Run the program of a file system: a deadline, bounded output, no shell, words that no locale changes."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from typing import IO

from polarvault.snapshots.errors import SnapshotFailed

# Nothing that these programs print in earnest is longer; a list of ten thousand snapshots has one megabyte.
_MOST_OUTPUT_BYTES = 16 << 20
_SHOWN_CHARACTERS = 400
_GRACE_S = 2.0
# Administrators' programs are not on the PATH of everybody.
_ADMIN_PATH = "/usr/local/sbin:/usr/sbin:/sbin"
_KEPT = ("PATH", "HOME", "USER", "LOGNAME", "TZ", "TMPDIR")


class ProgramRefused(SnapshotFailed):
    """The program of a file system, or a command of the configuration, ended with an error."""

    id = "snapshot-program"

    def __init__(self, message: str, said: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.said = said


def run(words: Sequence[str], *, timeout_s: float) -> str:
    """Return what a program prints; raise ProgramRefused if it fails, SnapshotFailed if it cannot be run or hangs.

    One that hangs is ended with all that it has started. Names that are no UTF-8 come back as they went out.
    """
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
    environment |= {"PATH": f"{environment.get('PATH', os.defpath)}:{_ADMIN_PATH}", "LC_ALL": "C"}
    line = " ".join(words)
    # Files, not pipes: a program that goes on in the background keeps a pipe open, and nobody would see that it ended.
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                list(words), stdin=subprocess.DEVNULL, stdout=output, stderr=errors, cwd="/", env=environment,
                start_new_session=True,
            )  # fmt: skip
        except (OSError, ValueError) as problem:
            reason = problem.strerror if isinstance(problem, OSError) else str(problem)
            raise SnapshotFailed(
                f"{words[0]} could not be run: {reason}", hint=f"install it, or see its rights: command -v {words[0]}"
            ) from problem
        try:
            status = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            _end(process)
            raise SnapshotFailed(
                f"`{line}` was ended after {timeout_s:g} s without an answer",
                hint="see what keeps it: dmesg, and the state of the pool or of the storage",
            ) from None
        except BaseException:
            _end(process)
            raise
        said = _read(errors)
        if status != 0:
            how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"failed with exit status {status}"
            shown = " ".join(said.split())[:_SHOWN_CHARACTERS] or "it said nothing"
            raise ProgramRefused(f"`{line}` {how}: {shown}", said, hint=f"as the same user: {line}")
        return _read(output)


def _read(stream: IO[bytes]) -> str:
    stream.seek(0)
    content = stream.read(_MOST_OUTPUT_BYTES + 1)
    if len(content) > _MOST_OUTPUT_BYTES:
        raise SnapshotFailed(f"a program printed more than {_MOST_OUTPUT_BYTES} bytes")
    return content.decode("utf-8", "surrogateescape")


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        # One that waits for a disk dies only when that answers; nobody can wait for it.
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
