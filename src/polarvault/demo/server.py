"""A server to throw away: initdb, start, query, stop, in a directory of its own.

Works for root (server programs run as another user) and for everybody else. The socket lies in the server's
directory, whose path must therefore be short: a socket's path may have 107 bytes.
"""

from __future__ import annotations

import random
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import psycopg

from polarvault.errors import StartFailed
from polarvault.instance.account import ServerAccount, server_account
from polarvault.instance.lock_file import is_running, read_lock_file
from polarvault.instance.model import Binaries
from polarvault.instance.programs import run_program

SUPERUSER = "postgres"
_LOG_TAIL_LINES = 25


def free_port() -> int:
    """Return a TCP port on which nobody listens; from below the range that the kernel hands to outgoing connections."""
    while True:
        port = random.randint(20000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


class ThrowawayServer:
    """One cluster and its instance below `directory`: data/, server.log and the socket."""

    def __init__(
        self,
        installation: Binaries,
        directory: Path,
        *,
        port: int | None = None,
        account: ServerAccount | None = None,
    ) -> None:
        self.installation = installation
        self.directory = directory
        self.data = directory / "data"
        self.log = directory / "server.log"
        self.port = free_port() if port is None else port
        self.account = account or server_account()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def __str__(self) -> str:
        return f"{self.installation} on port {self.port}"

    def create(self, *, options: Sequence[str] = (), settings: Mapping[str, str] | None = None) -> None:
        """Run initdb and write the settings; the directory is made when it does not exist."""
        if not self.directory.exists():
            self.account.make_directory(self.directory)
        self.run("initdb", "-D", str(self.data), "-U", SUPERUSER, "-A", "trust", "-E", "UTF8", "--no-sync", *options)
        self.configure(
            {
                "port": str(self.port),
                "listen_addresses": "127.0.0.1",
                "unix_socket_directories": str(self.directory),
                **(settings or {}),
            }
        )

    def configure(self, settings: Mapping[str, str]) -> None:
        """Append settings to postgresql.conf; the last mention of a setting wins."""
        with open(self.data / "postgresql.conf", "a", encoding="utf-8") as configuration:
            for name, value in settings.items():
                quoted = value.replace("'", "''")
                configuration.write(f"{name} = '{quoted}'\n")

    def start(self, *, timeout_s: int = 60) -> None:
        """Start the server and wait until it answers; raise StartFailed with the end of its log."""
        finished = self.run(
            "pg_ctl", "-D", str(self.data), "-l", str(self.log), "-w", "-t", str(timeout_s), "start", check=False
        )
        if finished.returncode != 0:
            raise _failed(f"{self} in {self.data} did not start", f"{finished.stderr}\n{self.log_tail()}")

    def stop(self, mode: str = "fast") -> None:
        """Stop the server and wait for its end; a server that does not run is left alone."""
        if self.is_running():
            self.run("pg_ctl", "-D", str(self.data), "-m", mode, "-w", "-t", "60", "stop")

    def postmaster_pid(self) -> int | None:
        """Return the process id of the server, None when no server owns the data directory."""
        lock = read_lock_file(str(self.data)) if self.is_running() else None
        return None if lock is None else lock.pid

    def is_running(self) -> bool:
        """Tell whether a server owns the data directory."""
        return is_running(str(self.data))

    def remove(self) -> None:
        """Stop the server and delete the directory; calling it twice is safe."""
        if self.is_running():
            self.run("pg_ctl", "-D", str(self.data), "-m", "immediate", "-w", "stop", check=False)
        shutil.rmtree(self.directory, ignore_errors=True)

    def log_tail(self, lines: int = _LOG_TAIL_LINES) -> str:
        """Return the last lines of the server's log."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return "(no server log)"

    def conninfo(self, dbname: str = "postgres") -> str:
        """Return a connection string over the socket."""
        return f"host={self.directory} port={self.port} user={SUPERUSER} dbname={dbname}"

    def connect(self, dbname: str = "postgres") -> psycopg.Connection[tuple[Any, ...]]:
        """Connect over the socket, in autocommit."""
        return psycopg.connect(self.conninfo(dbname), autocommit=True)

    def query(
        self, sql: str, parameters: Sequence[object] | None = None, *, dbname: str = "postgres"
    ) -> list[tuple[Any, ...]]:
        """Run one statement, or several separated by semicolons; return the rows of the last one, if any."""
        with self.connect(dbname) as connection, connection.cursor() as cursor:
            cursor.execute(sql.encode(), parameters)
            while cursor.nextset():
                pass
            return cursor.fetchall() if cursor.description else []

    def run(
        self, program: str, *arguments: str, check: bool = True, timeout_s: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """Run one of the installation's programs as the server's user; its output is in the result."""
        finished = run_program(
            [self.installation.program(program), *arguments],
            self.account,
            cwd=str(self.directory),
            timeout_s=timeout_s,
            environment=self.account.environment(self.directory),
        )
        if check and finished.returncode != 0:
            said = f"{finished.stdout}{finished.stderr}{self.log_tail()}"
            raise _failed(f"{program} failed with status {finished.returncode}", said)
        return finished


def _failed(message: str, said: str) -> StartFailed:
    problem = StartFailed(message, detail=said)
    # A note is shown with a traceback, where a test's reader looks; the command line shows `detail`.
    problem.add_note(said)
    return problem
