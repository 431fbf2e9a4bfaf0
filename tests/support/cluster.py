"""One PostgreSQL cluster for tests: created, filled, loaded, broken, restored and removed.

Usable by hand: ``cd tests && python -m support.cluster 18`` starts one and prints how to connect to it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psycopg

from polarvault.demo.server import SUPERUSER, ThrowawayServer
from polarvault.errors import StartFailed
from polarvault.instance.account import ServerAccount
from polarvault.instance.model import Binaries
from polarvault.storage.processes import look_at_process
from support.ports import hold_port
from support.waiting import wait_until

PASSWORD = "correct horse"
ROWS = 5000
# Durability of the throw-away server itself does not matter, and nothing but a test writes; everything else is as in
# production.
QUICK = {
    "fsync": "off",
    "autovacuum": "off",
    "shared_buffers": "32MB",
    "wal_level": "replica",
    "max_wal_senders": "10",
    "max_replication_slots": "10",
    "log_replication_commands": "on",
}


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """A certificate authority and the server certificate it signed."""

    authority: Path
    certificate: Path
    key: Path


class Cluster(ThrowawayServer):
    """A ThrowawayServer with what tests need on top."""

    def __init__(
        self,
        installation: Binaries,
        directory: Path,
        *,
        port: int | None = None,
        account: ServerAccount | None = None,
    ) -> None:
        # Its own for good: a server that a test stops for a moment finds its port free again.
        super().__init__(installation, directory, port=port or hold_port(self), account=account)

    @classmethod
    def made(
        cls,
        installation: Binaries,
        directory: Path,
        *,
        wal_segment_mb: int = 16,
        checksums: bool = True,
        auth: str = "trust",
        settings: dict[str, str] | None = None,
        start: bool = True,
        fill: bool = True,
        initdb_options: Sequence[str] = (),
    ) -> Self:
        """Create a cluster; auth is the method for TCP connections (sockets are always trusted)."""
        cluster = cls(installation, directory)
        options = [f"--wal-segsize={wal_segment_mb}", *initdb_options]
        if checksums and installation.major < 18:
            options.append("--data-checksums")
        if not checksums and installation.major >= 18:
            options.append("--no-data-checksums")
        # Small segments would otherwise keep no WAL between the checkpoints of a test.
        wal = {"max_wal_size": f"{max(64, 3 * wal_segment_mb)}MB", "min_wal_size": f"{2 * max(wal_segment_mb, 16)}MB"}
        # The server's own incremental backup needs WAL summaries.
        summaries = {"summarize_wal": "on"} if installation.major >= 17 else {}
        cluster.create(options=options, settings=QUICK | wal | summaries | (settings or {}))
        cluster.set_hba(auth=auth)
        if start:
            cluster.start()
            cluster.query(f"ALTER USER {SUPERUSER} PASSWORD '{PASSWORD}'")
            if fill:
                cluster.fill()
        return cluster

    @classmethod
    def adopt(cls, installation: Binaries, data: Path, directory: Path, *, port: int | None = None) -> Self:
        """Take over an existing data directory, such as a restored one; `directory` gets log and socket.

        The port and the socket directory are appended to its postgresql.conf; everything else stays.
        """
        cluster = cls(installation, directory, port=port)
        if not directory.exists():
            cluster.account.make_directory(directory)
        cluster.data = data
        cluster.configure(
            {
                "port": str(cluster.port),
                "listen_addresses": "127.0.0.1",
                "unix_socket_directories": str(directory),
            }
        )
        cluster.account.own(data)
        return cluster

    # Contents

    def fill(self, rows: int = ROWS) -> None:
        """Create `accounts` (id, owner, balance) with an index, and the unlogged table `scratch`."""
        self.query(
            f"""
            CREATE TABLE accounts (id int PRIMARY KEY, owner text NOT NULL, balance bigint NOT NULL);
            INSERT INTO accounts SELECT n, md5(n::text), n * 7 FROM generate_series(1, {rows}) n;
            CREATE UNLOGGED TABLE scratch AS SELECT n FROM generate_series(1, 100) n;
            CHECKPOINT
            """
        )

    def hash_of(self, table: str, dbname: str = "postgres") -> tuple[int, str]:
        """Return the row count of a table and a hash of its contents that does not depend on the order of rows."""
        ((count, digest),) = self.query(
            "SELECT count(*), coalesce(md5(string_agg(line, ',' ORDER BY line)), '')"
            f" FROM (SELECT t::text AS line FROM {table} t) s",
            dbname=dbname,
        )
        return count, digest

    def hashes(self) -> dict[str, tuple[int, str]]:
        """Return `hash_of` for every permanent table of the database `postgres`."""
        tables = self.query(
            "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND relpersistence = 'p'"
            " AND relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace) ORDER BY 1"
        )
        return {name: self.hash_of(name) for (name,) in tables}

    def add_tablespace(self, name: str, rows: int = ROWS) -> Path:
        """Create a tablespace beside the data directory and a filled table `in_<name>` in it; return its directory."""
        location = self.account.make_directory(self.directory / f"tablespace_{name}")
        # CREATE TABLESPACE does not run inside the transaction that several statements in one query would form.
        self.query(f"CREATE TABLESPACE {name} LOCATION '{location}'")
        self.query(
            f"CREATE TABLE in_{name} (id int PRIMARY KEY, note text) TABLESPACE {name};"
            f"INSERT INTO in_{name} SELECT n, md5(n::text) FROM generate_series(1, {rows}) n"
        )
        return location

    @contextmanager
    def pgbench(self, *, clients: int = 2, scale: int = 1, rate_per_s: int | None = None) -> Iterator[None]:
        """Keep the server under pgbench load; the tables are made on first use."""
        if not self.query("SELECT to_regclass('pgbench_accounts')")[0][0]:
            self.run("pgbench", *self._socket_options(), "-i", "-q", "-s", str(scale), "postgres")
        limit = ["-R", str(rate_per_s)] if rate_per_s else []
        with tempfile.TemporaryFile("w+") as output:
            load = subprocess.Popen(
                [
                    str(self.installation.program("pgbench")),
                    *self._socket_options(),
                    *("-n", "-c", str(clients), "-T", "3600", *limit, "postgres"),
                ],
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=self.directory,
                env=self.account.environment(self.directory), **self.account.run_as,
            )  # fmt: skip
            try:
                written = "SELECT count(*) FROM pgbench_history"
                before = self.query(written)
                wait_until(lambda: load.poll() is not None or self.query(written) > before, "pgbench writes")
                if load.poll() is not None:
                    output.seek(0)
                    raise StartFailed("pgbench ended at once", detail=output.read())
                yield
            finally:
                load.terminate()
                load.wait(60)
                # A COMMIT that was sent is still carried out.
                gone = "SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'pgbench'"
                wait_until(lambda: not self.is_running() or self.query(gone) == [(True,)], "pgbench's sessions end")

    def _socket_options(self) -> list[str]:
        return ["-h", str(self.directory), "-p", str(self.port), "-U", SUPERUSER]

    # Life and death

    def restart(self) -> None:
        """Stop and start again."""
        self.stop()
        self.start()

    def reload(self) -> None:
        """Read configuration again, and wait until the server has done so."""
        before = self.query("SELECT pg_conf_load_time()")
        self.run("pg_ctl", "-D", str(self.data), "reload")
        wait_until(lambda: self.query("SELECT pg_conf_load_time()") > before, "the configuration is loaded")

    def kill(self) -> None:
        """Kill every process of the server with SIGKILL, as a power cut would, and wait until they are gone."""
        postmaster = self.postmaster_pid()
        if postmaster is None:
            return
        # The postmaster first, so that it starts no crash recovery for the children that die after it.
        children = _children_of(postmaster)
        for pid in (postmaster, *children):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not any(map(look_at_process, (postmaster, *children))), "the killed server is gone")
        # Where nobody reaps orphans the dead postmaster keeps its number, and the next one would refuse to start.
        if Path(f"/proc/{postmaster}").exists():
            for lock in (self.data / "postmaster.pid", *self.directory.glob(".s.PGSQL.*")):
                lock.unlink(missing_ok=True)

    def promote(self) -> None:
        """Promote a standby and wait until it accepts writes."""
        self.run("pg_ctl", "-D", str(self.data), "-w", "promote")
        wait_until(lambda: self.query("SELECT pg_is_in_recovery()") == [(False,)], "the standby is promoted")

    def wait_until_consistent(self) -> None:
        """Wait until the server answers queries, in recovery or not."""

        def answers() -> bool:
            try:
                self.query("SELECT 1")
            except psycopg.OperationalError:
                return False
            return True

        wait_until(answers, f"{self} answers", timeout_s=60)

    def backends(self, kind: str) -> int:
        """Count the server processes of a backend type, such as ``walsender``."""
        return int(self.query("SELECT count(*) FROM pg_stat_activity WHERE backend_type = %s", [kind])[0][0])

    def slots(self) -> list[str]:
        """Return the names of all replication slots that last; temporary ones go with their WAL senders."""
        lasting = "SELECT slot_name FROM pg_replication_slots WHERE NOT temporary ORDER BY 1"
        return [name for (name,) in self.query(lasting)]

    def settle(self) -> None:
        """Make sure that a test finds nothing of the one before: running, no WAL senders, no slots."""
        if not self.is_running():
            self.start()
        wait_until(lambda: self.backends("walsender") == 0, "earlier WAL senders are gone")
        for name in self.slots():
            self.query("SELECT pg_drop_replication_slot(%s)", [name])

    # Access

    def set_hba(self, *first: str, auth: str = "trust", transport: str = "host") -> None:
        """Rewrite pg_hba.conf: the given lines, then sockets trusted, TCP from this machine by `auth`; reload."""
        lines = [
            *first,
            "local all all trust",
            "local replication all trust",
            *(f"{transport} {who} all {where} {auth}"
              for who in ("all", "replication") for where in ("127.0.0.1/32", "::1/128")),
        ]  # fmt: skip
        (self.data / "pg_hba.conf").write_text("\n".join(lines) + "\n")
        if self.is_running():
            self.reload()

    def tcp_conninfo(self, *, user: str = SUPERUSER, port: int | None = None, **more: str) -> str:
        """Return a connection string over TCP, for any port, such as a proxy's."""
        words: dict[str, Any] = {"host": "127.0.0.1", "port": port or self.port, "user": user, **more}
        return psycopg.conninfo.make_conninfo(**words)

    def enable_tls(self, *, only_tls: bool = False) -> TlsFiles:
        """Make certificates for localhost, switch TLS on and restart; with only_tls pg_hba.conf demands it."""
        files = make_certificates(self.directory / "tls")
        self.account.own(self.directory / "tls")
        self.configure({"ssl": "on", "ssl_cert_file": str(files.certificate), "ssl_key_file": str(files.key)})
        if only_tls:
            self.set_hba(auth="scram-sha-256", transport="hostssl")
        self.restart()
        return files

    def log_text(self) -> str:
        """Return the whole server log."""
        return self.log.read_text(errors="replace")


def make_certificates(directory: Path) -> TlsFiles:
    """Make a certificate authority and a server certificate for localhost and 127.0.0.1, with the openssl program."""
    directory.mkdir()
    authority, authority_key = directory / "ca.crt", directory / "ca.key"
    certificate, key, request = directory / "server.crt", directory / "server.key", directory / "server.csr"
    extensions = directory / "server.ext"
    extensions.write_text("subjectAltName = DNS:localhost, IP:127.0.0.1\n")
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    sign = ["-CA", str(authority), "-CAkey", str(authority_key), "-CAcreateserial", "-extfile", str(extensions)]
    whose = "/CN=polarvault test authority"
    for arguments in (
        ["req", "-x509", *new_key, "-days", "2", "-subj", whose, "-keyout", str(authority_key), "-out", str(authority)],
        ["req", *new_key, "-subj", "/CN=localhost", "-keyout", str(key), "-out", str(request)],
        ["x509", "-req", "-days", "2", "-in", str(request), *sign, "-out", str(certificate)],
    ):
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)
    key.chmod(0o600)
    return TlsFiles(authority, certificate, key)


def _children_of(pid: int) -> list[int]:
    children = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            # The fields after the program name, which is in parentheses and may hold blanks: state, parent, ...
            if entry.name.isdigit() and int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                children.append(int(entry.name))
    return children


def main() -> None:
    from support.servers import installations, session_directory

    major = int(sys.argv[1]) if len(sys.argv) > 1 else 18
    with session_directory() as directory, Cluster.made(installations(directory)[major], directory / "c") as cluster:
        print(f"{cluster}; psql '{cluster.conninfo()}'\nlog: {cluster.log}\npress Enter to remove it", flush=True)
        sys.stdin.readline()


if __name__ == "__main__":
    main()
