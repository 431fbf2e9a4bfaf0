"""`polarvault wal stream` in tests: one running receiver, and what has arrived in its repository."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from polarvault.config.model import RepositoryConfiguration
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.repository.catalogue.opening import open_repository
from polarvault.repository.wal.source import RepositoryWalSource
from polarvault.walfiles.choice import content_of, find
from support.cluster import Cluster
from support.polar_cluster import PolarCluster
from support.program import command_line, program_environment, run_polarvault
from support.waiting import wait_until

WAIT_S = 60


class Stream:
    """One running `wal stream` of cluster `shop`, as the servers' account."""

    def __init__(self, site: StreamSite, *options: str) -> None:
        self._log = site.workspace / "stream.log"
        with open(self._log, "ab") as log:
            self._begin = log.tell()
            self.running = subprocess.Popen(
                command_line("wal", "stream", "shop", *site.options, *options, as_server=True),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=site.workspace, env=site.environment,
                start_new_session=True,
            )  # fmt: skip

    @property
    def said(self) -> str:
        """Everything that it has printed."""
        with open(self._log, errors="replace") as log:
            log.seek(self._begin)
            return log.read()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal to the program, which may run under another one that changes the user; return the status."""
        self._signal(number)
        try:
            return self.running.wait(WAIT_S)
        finally:
            assert "Traceback" not in self.said, self.said

    def kill(self) -> None:
        """Kill it as a power cut would."""
        with suppress(ProcessLookupError):
            self._signal(signal.SIGKILL)
        self.running.wait()

    def _signal(self, number: int) -> None:
        os.killpg(self.running.pid, number)


class StreamSite:
    """A repository of the servers' account, and what streams a server's WAL into it."""

    def __init__(
        self,
        cluster: Cluster,
        workspace: Path,
        *,
        address: str | None = None,
        environment: Mapping[str, str] | None = None,
        encrypted: bool = False,
    ) -> None:
        """address: of the repository, None for a directory of its own; environment: what opens it."""
        self.cluster, self.workspace = cluster, workspace
        self.repository = workspace / "repository"
        self.address = address or str(self.repository)
        self._more = {"XDG_STATE_HOME": str(workspace / "state")} | dict(environment or {})
        self.environment = program_environment(self._more)
        self.options: Sequence[str] = ["--repo", self.address]
        self.stream_options = ["-d", cluster.conninfo()]
        keys = ["--new-key-file", str(workspace / "key")] if encrypted else []
        self.run("repo", "init", self.address, *keys)
        if encrypted:
            self.options = [*self.options, "--key-file", str(workspace / "key")]

    def run(self, *words: Any, check: bool = True, **how: Any) -> subprocess.CompletedProcess[str]:
        """Run a command as the servers' account."""
        return run_polarvault(
            *map(str, words), as_server=True, check=check, directory=self.workspace, environment=self._more, **how
        )

    def back_up(self, server: Cluster | None = None) -> dict[str, Any]:
        """Take a backup; return what it says."""
        done = self.run("backup", "shop", *self.options, "-d", (server or self.cluster).conninfo(), "--json")
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    @contextmanager
    def streaming(self, *options: str) -> Iterator[Stream]:
        """Run a receiver; it is killed at the end if it still runs."""
        made = Stream(self, *self.stream_options, *options)
        try:
            yield made
        finally:
            made.kill()

    def take_away(self) -> None:
        """Have every write into the repository fail, for whoever has it open as well."""
        (self.repository / ".incoming").chmod(0)

    def bring_back(self) -> None:
        """Let it be written to again."""
        (self.repository / ".incoming").chmod(0o700)

    def status(self) -> dict[str, Any]:
        """Return what the receiver tells of itself."""
        done = self.run("wal", "stream", "shop", *self.options, "--status", "--json", check=False)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def wait_durable(self, lsn: str, stream: Stream, *, timeline: int | None = None) -> None:
        """Wait until the receiver says that everything up to an LSN is durable."""

        def is_durable() -> bool:
            assert stream.running.poll() is None, stream.said
            found = self.status()
            return Lsn.parse(found.get("flushed_lsn") or "0/0") >= Lsn.parse(lsn) and (
                timeline is None or found["timeline"] == timeline
            )

        try:
            wait_until(is_durable, f"{lsn} is durable", timeout_s=WAIT_S, interval_s=0.1)
        except AssertionError as problem:
            problem.add_note(f"{stream.said}\n{self.status()}")
            raise

    def wait_stored(self, lsn: str, timeline: int = 1) -> None:
        """Wait until the repository has the byte before an LSN."""
        wait_until(lambda: self.ends(timeline) >= Lsn.parse(lsn), f"{lsn} is in the repository", timeout_s=WAIT_S)

    def ends(self, timeline: int = 1) -> Lsn:
        """Return where the WAL of a timeline in the repository ends."""
        with self.wal() as source:
            ranges = source.ranges(timeline, source.segment_bytes)
            return ranges[-1].end if ranges else Lsn(0)

    @contextmanager
    def wal(self) -> Iterator[RepositoryWalSource]:
        """Open the WAL of the repository, as we read it ourselves."""
        opened = open_repository(RepositoryConfiguration("", str(self.repository)), {})
        try:
            yield RepositoryWalSource(opened.repository.wal_of("shop"), place="the repository")
        finally:
            opened.close()

    def compare(self, server: Cluster, *, least: int, timeline: int = 1) -> None:
        """Compare with the server's own segments: what is in the repository has no gap and no wrong byte."""
        with self.wal() as source:
            size = source.segment_bytes
            stretches = source.ranges(timeline, size)
            assert len(stretches) == 1, stretches
            begin, end = stretches[0].start, stretches[0].end
            compared = 0
            for name in sorted(path.name for path in (server.data / "pg_wal").iterdir() if len(path.name) == 24):
                segment = WalSegment.parse(name, size)
                if segment.timeline_id != timeline or segment.start < begin or segment.end > end:
                    continue
                copy = find(source, segment)
                assert copy is not None
                assert content_of(copy, size) == (server.data / "pg_wal" / name).read_bytes(), name
                compared += 1
            assert compared >= least, (compared, begin, end)

    def restored(self, name: str, *more: str, word: str = "shop") -> Cluster:
        """Restore into a directory, two on PolarDB, and start it; whoever asks for it stops it."""
        server = Cluster(self.cluster.installation, self.workspace)
        server.data = self.workspace / name
        shared = ["--polardata", self.workspace / f"{name}_shared"] if isinstance(self.cluster, PolarCluster) else []
        self.run(
            "restore", word, *self.options, "-D", server.data, *shared, "--port", server.port, "--bindir",
            server.installation.directory, "--set", f"unix_socket_directories={self.workspace}", "--set", "fsync=off",
            "-N", "--start", *more,
        )  # fmt: skip
        return server
