"""Receivers of WAL in tests: ours or PostgreSQL's own, and what they must have received.

What is on disk is compared with the server's own segments; nothing here uses the program's own code for that.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import subprocess
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lz4.frame
import zstandard

from polarvault.instance.model import Binaries
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from support.backups import run_program
from support.cluster import Cluster
from support.program import command_line, program_environment
from support.waiting import wait_until

END_S = 120
# Enough for the longest pause of a receiver, 10 s, several times.
WAIT_S = 60
STATUS_FILE = ".polarvault-receivewal.json"
SEGMENT_FILE = re.compile(r"([0-9A-F]{24})(\.gz|\.lz4|\.zst)?(\.partial)?\Z")
# Keeps every segment, so that there is something to compare with.
KEEP_WAL = {"wal_keep_size": "4GB", "max_wal_senders": "10"}


class Receiver:
    """One running receiver: `polarvault receivewal`, or the pg_receivewal of an installation."""

    def __init__(
        self, directory: Path, conninfo: str, *options: str, theirs: Binaries | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.directory = directory
        words = ["-D", str(directory), "-d", conninfo, *options]
        if theirs is None:
            command = command_line("receivewal", *words)
        else:
            command = [str(theirs.program("pg_receivewal")), *words]
        self._log = directory.with_name(directory.name + ".log")
        with open(self._log, "ab") as log:
            self._log_start = log.tell()
            self.running = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/",
                env=program_environment(environment),
            )  # fmt: skip

    @property
    def said(self) -> str:
        """Everything that it has printed."""
        with open(self._log, errors="replace") as log:
            log.seek(self._log_start)
            return log.read()

    @property
    def status(self) -> dict[str, Any]:
        """What it tells of itself; ours only."""
        try:
            found: dict[str, Any] = json.loads((self.directory / STATUS_FILE).read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return found if found["process_id"] == self.running.pid else {}

    def wait_for(self, words: str) -> None:
        """Wait until it says something."""
        self.wait_until(lambda: words in self.said, f"the receiver says {words!r}")

    def wait_streaming(self) -> None:
        """Wait until it receives."""
        self.wait_until(lambda: self.status.get("state") == "streaming", "the receiver streams")

    def wait_flushed(self, lsn: Lsn, *, timeline: int | None = None) -> None:
        """Wait until it says that everything up to an LSN, on a timeline if given, is durable."""

        def is_flushed() -> bool:
            found = self.status
            on_it = timeline is None or found.get("timeline") == timeline
            return on_it and Lsn.parse(found.get("flushed_lsn", "0/0")) >= lsn

        self.wait_until(is_flushed, f"{lsn} is durable here")

    def wait_segments(self, count: int) -> None:
        """Wait until so many whole segments have been received."""
        self.wait_until(lambda: len(segments(self.directory, partial=False)) >= count, f"{count} segments are here")

    def wait_until(self, condition: Callable[[], object], what: str) -> None:
        """Wait until something is so; fail at once, with all that was said, when the receiver ends before."""
        try:
            wait_until(lambda: condition() or self.running.poll() is not None, what, timeout_s=WAIT_S, interval_s=0.05)
        except AssertionError as problem:
            problem.add_note(f"{self.said}\n{self.status}")
            raise
        assert condition(), f"ended before {what}:\n{self.said}"

    def stop(self, number: int = signal.SIGTERM, *, status: int = 0) -> str:
        """Send a signal, wait for the end, and return what it said; the exit status must be as given."""
        self.running.send_signal(number)
        return self.ended(status)

    def ended(self, status: int) -> str:
        """Wait for the end and return what it said; the exit status must be as given."""
        assert self.running.wait(END_S) == status, self.said
        assert "Traceback" not in self.said
        return self.said

    def kill(self) -> None:
        """Kill it as a power cut would."""
        self.running.kill()
        self.running.wait()


@contextmanager
def receiver(directory: Path, conninfo: str, *options: str, **how: Any) -> Iterator[Receiver]:
    """Run a receiver; it is killed at the end if it still runs. The directory is made if it is not there."""
    directory.mkdir(exist_ok=True)
    made = Receiver(directory, conninfo, *options, **how)
    try:
        yield made
    finally:
        made.kill()


def segments(directory: Path, *, partial: bool | None = None) -> list[str]:
    """Return the names of the segment files, sorted; only partial or only whole ones if asked."""
    matches = (SEGMENT_FILE.match(name) for name in os.listdir(directory))
    return sorted(match[0] for match in matches if match and (partial is None or bool(match[3]) == partial))


def content_of(path: Path) -> bytes:
    """Return the WAL in a file, as far as it can be decoded."""
    raw = path.read_bytes()
    if ".gz" in path.suffixes:
        if not path.name.endswith(".partial"):
            return gzip.decompress(raw)
        return zlib.decompressobj(wbits=31).decompress(raw)
    if ".lz4" in path.suffixes:
        decoder = lz4.frame.LZ4FrameDecompressor()
        return bytes(decoder.decompress(raw, max_length=1 << 30))
    if ".zst" in path.suffixes:
        return zstandard.ZstdDecompressor().decompressobj().decompress(raw)
    return raw


def wal_directory(cluster: Cluster) -> Path:
    return getattr(cluster, "shared", cluster.data) / "pg_wal"


def segment_bytes(cluster: Cluster) -> int:
    return int(cluster.query("SELECT setting FROM pg_settings WHERE name = 'wal_segment_size'")[0][0])


def end_of_wal(cluster: Cluster) -> Lsn:
    """Return up to where the server's WAL is flushed, after having that done."""
    cluster.query("SELECT pg_logical_emit_message(true, 'test', 'flush')")
    return Lsn.parse(cluster.query("SELECT pg_current_wal_flush_lsn()")[0][0])


def assert_same_wal(directory: Path, cluster: Cluster, *, up_to: Lsn, since: Lsn | None = None) -> int:
    """Compare everything up to an LSN, byte for byte, with the server's own segments; return how many there are.

    Whole segments must be equal to their last byte; of a partial one, what lies before the LSN.
    """
    size, own = segment_bytes(cluster), wal_directory(cluster)
    names = segments(directory)
    assert names
    by_number: dict[str, Path] = {}
    for name in names:
        by_number.setdefault(name[:24], directory / name)
    timeline = max(name[:8] for name in by_number)
    of_timeline = {name: path for name, path in by_number.items() if name.startswith(timeline)}
    first = WalSegment.parse(min(of_timeline), size)
    if since is not None:
        assert first.start <= since
    count = 0
    for number in range(first.number, (up_to - 1) // size + 1):
        segment = WalSegment(first.timeline_id, number, size)
        path = of_timeline.get(segment.file_name)
        assert path is not None, f"{segment.file_name} is missing among {names}"
        end = min(size, up_to - segment.start)
        partial = path.name.endswith(".partial")
        assert not partial or end < size or segment.end == up_to, f"{path.name} was never finished: {names}"
        theirs = (own / segment.file_name).read_bytes()
        found = content_of(path)
        if not partial:
            assert found == theirs, path
        assert found[:end] == theirs[:end], f"{path} differs from the server's"
        count += 1
    return count


def wait_same(running: Receiver, cluster: Cluster, up_to: Lsn) -> None:
    """Wait until everything up to an LSN is here, and the same as the server's; it need not be durable yet.

    Quicker than waiting for news: a receiver tells what is durable once a second.
    """

    def same() -> bool:
        try:
            assert_same_wal(running.directory, cluster, up_to=up_to)
        except (AssertionError, FileNotFoundError):
            return False
        return True

    try:
        running.wait_until(same, f"WAL up to {up_to} is here")
    except AssertionError:
        assert_same_wal(running.directory, cluster, up_to=up_to)
        raise


def valid_end(installation: Binaries, path: Path) -> Lsn:
    """Return where the valid WAL of one segment file ends, as pg_waldump finds it."""
    finished = run_program(installation, "pg_waldump", "-q", str(path))
    found = re.findall(r" (?:at|after) ([0-9A-F]+/[0-9A-F]+)", finished.stderr)
    if not found:
        assert finished.returncode == 0, finished.stderr
        return WalSegment.parse(path.name, path.stat().st_size).end
    return Lsn.parse(found[-1])


def make_standby(primary: Cluster, directory: Path, *, settings: dict[str, str] | None = None, slot: str) -> Cluster:
    """Make and start a streaming standby with PostgreSQL's own means."""
    primary.account.make_directory(directory)
    data = directory / "data"
    primary.run("pg_basebackup", "-d", primary.conninfo(), "-D", str(data), "-c", "fast", "-N", "-R", "-C", "-S", slot)
    standby = Cluster.adopt(primary.installation, data, directory)
    standby.configure(settings or {})
    standby.start()
    return standby


def wait_replayed(standby: Cluster, lsn: Lsn) -> None:
    """Wait until a standby has replayed WAL up to an LSN."""
    wait_until(lambda: Lsn.parse(standby.query("SELECT pg_last_wal_replay_lsn()")[0][0]) >= lsn, f"{lsn} is replayed")


# A whole number of 32-digit hashes.
_FILLER_BYTES = 249_600


def write_wal(cluster: Cluster, size_bytes: int) -> Lsn:
    """Have the server write at least so much WAL that nobody needs; return its end."""
    pieces = -(-size_bytes // _FILLER_BYTES)
    cluster.query(
        f"SELECT count(pg_logical_emit_message(false, 'filler', repeat(md5(n::text), {_FILLER_BYTES // 32})))"
        f" FROM generate_series(1, {pieces}) n"
    )
    return end_of_wal(cluster)


# What PostgreSQL's manual would have one write: no program of ours takes part in the recovery.
_FETCH = """#!/bin/sh
d="{archive}"
if [ -f "$d/$1" ]; then exec cp "$d/$1" "$2"; fi
if [ -f "$d/$1.gz" ]; then gzip -dc "$d/$1.gz" > "$2"; exit $?; fi
if [ -f "$d/$1.partial" ]; then exec cp "$d/$1.partial" "$2"; fi
if [ -f "$d/$1.gz.partial" ]; then gzip -dc "$d/$1.gz.partial" > "$2" 2>/dev/null; exec truncate -s 1M "$2"; fi
exit 1
"""


def recover(cluster: Cluster, backup: Path, archive: Path, directory: Path) -> Cluster:
    """Start a copy of a server with segments of 1 MB from a base backup and a WAL directory alone; return it promoted.

    The server itself may be gone.
    """
    cluster.account.make_directory(directory)
    script = directory / "fetch"
    script.write_text(_FETCH.format(archive=archive))
    script.chmod(0o755)
    cluster.account.own(archive)
    copy = Cluster.adopt(cluster.installation, backup, directory)
    copy.configure({"restore_command": f"{script} %f %p", "recovery_target_timeline": "latest"})
    (backup / "recovery.signal").touch()
    cluster.account.own(backup)
    cluster.account.own(directory)
    copy.start()
    wait_until(lambda: copy.query("SELECT pg_is_in_recovery()") == [(False,)], "recovery has ended", timeout_s=END_S)
    return copy


def wait_released(cluster: Cluster, slot: str) -> None:
    """Wait until nobody uses a slot: its WAL sender may end a moment later than the receiver."""
    wait_until(
        lambda: not cluster.query("SELECT 1 FROM pg_replication_slots WHERE slot_name = %s AND active", [slot]),
        f"nobody uses slot {slot}",
    )


def forget_slot(cluster: Cluster, name: str) -> None:
    """Drop a slot if it is there, once nobody uses it."""
    wait_released(cluster, name)
    with suppress(Exception):
        cluster.query("SELECT pg_drop_replication_slot(%s)", [name])
