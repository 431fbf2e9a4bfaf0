"""The drill's running server: how it is reached, how it is stopped, what its log says."""

from __future__ import annotations

import os
import re
import shlex
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import psycopg
from psycopg import sql
from psycopg.abc import Buffer
from psycopg.adapt import Loader
from psycopg.conninfo import make_conninfo

from polarvault.backupset.backup import verify_command
from polarvault.errors import StartFailed
from polarvault.instance.log_files import last_lines_of, read_log
from polarvault.instance.model import Account, Binaries
from polarvault.instance.programs import run_program
from polarvault.instance.session import likely_superusers
from polarvault.instance.start import LOG_NAME, StartedServer, log_end
from polarvault.model import versions
from polarvault.pgfiles.control import ClusterState, parse_control
from polarvault.restore.model import RestorePlan
from polarvault.server.session_settings import (
    SESSION_SETTINGS,
    SPELLING_SETTINGS,
    startup_options,
)

Connection = psycopg.Connection[tuple[Any, ...]]

# They outrank what ALTER ROLE and ALTER DATABASE set: nothing may end or change what we do. Triggers do not fire for a
# replica's role, unless they are to fire always.
_SESSION = {
    **{name: value for name, value in SESSION_SETTINGS.items() if name != "search_path"},
    "role": "none",
    "lock_timeout": "10s",
    "session_replication_role": "replica",
    "client_min_messages": "error",
    "jit": "off",
    "row_security": "off",
}
# Functions and operators of somebody else's, put in front of the server's own, would run as the superuser that we are.
_TRUSTED_PATH = "pg_catalog,pg_temp"
_ALWAYS_FIRING = """
    SELECT 'ALTER EVENT TRIGGER ' || quote_ident(evtname) || ' DISABLE' FROM pg_event_trigger
     WHERE evtenabled IN ('A', 'R')
"""
# A database that does not know its encoding gives bytes, and would refuse those that are no UTF-8; the other one cannot
# be converted to it.
_CHOOSE_ENCODING = """
    SELECT pg_catalog.set_config('client_encoding', 'UTF8', false)
     WHERE pg_catalog.getdatabaseencoding() OPERATOR(pg_catalog.<>) ALL (ARRAY['SQL_ASCII'::name, 'MULE_INTERNAL'])
"""
# What a login says when it is not the role that is missing: files, pages, the relation map.
_BROKEN_CATALOG = re.compile(
    r"could not (?:open|read) (?:file|block)|could not access status|subdirectory .* is missing|invalid page"
    r"|relation mapping file|catalog is missing|cache lookup failed"
)
_STOP_WAIT_S = 600
_FREE_SLOT_WAIT_S = 20.0
_FREE_SLOT_POLL_S = 0.05
# One that is still going away, one for a program of its own.
_SPARE_CONNECTIONS = 2


class _TextLoader(Loader):
    """Reads names as UTF-8 and keeps what is none of it, so that the object can still be named to the server."""

    def load(self, data: Buffer) -> str:
        return bytes(data).decode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class DrillServer:
    """A server that is up: how to connect as its superuser, and what it is."""

    plan: RestorePlan
    binaries: Binaries
    account: Account
    host: str
    port: int
    user: str
    in_recovery: bool
    version: str | None

    def conninfo(self, dbname: str, settings: Mapping[str, str] | None = None) -> str:
        """Return a connection string, for libpq and for the server's own programs."""
        words: dict[str, Any] = {"host": self.host, "port": self.port, "user": self.user, "dbname": dbname}
        return make_conninfo(**words, options=startup_options(settings) if settings else None)

    def connect(self, dbname: str, *, writable: bool = False, settings: Mapping[str, str] | None = None) -> Connection:
        """Connect in autocommit, read-only unless asked otherwise; raise psycopg.Error.

        Names mean the server's own objects only. A writable connection is for CREATE EXTENSION: no event trigger fires.
        """
        path = {"search_path": _TRUSTED_PATH, "default_transaction_read_only": "off" if writable else "on"}
        connection = self._connect(dbname, {**path, **(settings or {})})
        if writable and not self._version.can_disable_event_triggers:
            # From 17 on a setting switches them off. They must not do in the copy what they do at the source.
            for (command,) in connection.execute(_ALWAYS_FIRING).fetchall():
                connection.execute(command)
        return connection

    def connect_like_a_user(self, dbname: str) -> Connection:
        """Connect read-only with the search_path and spellings that the database has for everybody.

        Raises psycopg.Error.
        """
        return self._connect(dbname, {"default_transaction_read_only": "on"}, without=SPELLING_SETTINGS)

    @property
    def _version(self) -> versions.ServerVersion:
        return versions.of_server(self.binaries.major * 10000)

    def session(self) -> dict[str, str]:
        """Return the settings of every connection to the copy, also of programs."""
        no_triggers = {"event_triggers": "off"} if self._version.can_disable_event_triggers else {}
        return {**_SESSION, **self._version.session_settings, **no_triggers}

    def _connect(
        self, dbname: str, settings: Mapping[str, str], *, without: Collection[str] = frozenset()
    ) -> Connection:
        ours = {name: value for name, value in self.session().items() if name not in without}
        connection = self._open(self.conninfo(dbname, {**ours, **settings}))
        connection.prepare_threshold = None
        for type_name in ("text", "name"):
            connection.adapters.register_loader(type_name, _TextLoader)
        connection.execute(_CHOOSE_ENCODING)
        return connection

    @staticmethod
    def _open(conninfo: str) -> Connection:
        deadline = time.monotonic() + _FREE_SLOT_WAIT_S
        while True:
            try:
                # Of all encodings only this one is never refused.
                return psycopg.connect(conninfo, connect_timeout=60, autocommit=True, client_encoding="SQL_ASCII")
            except psycopg.OperationalError as refused:
                # The process behind a connection that we have closed counts until it has ended.
                if "too many clients" not in str(refused) or time.monotonic() > deadline:
                    raise
                time.sleep(_FREE_SLOT_POLL_S)

    def most_jobs(self, wanted: int) -> int:
        """Return how many connections may be used at a time; raise psycopg.Error. The copy has its source's limit."""
        with self.connect("template1") as connection:
            row = connection.execute("SELECT current_setting('max_connections')::int4").fetchone()
        return max(1, min(wanted, row[0] - _SPARE_CONNECTIONS)) if row else wanted

    def databases(self) -> list[tuple[str, str | None]]:
        """Return every database, and why it cannot be read where that is so; raise psycopg.Error."""
        with self.connect("template1") as connection:
            rows = connection.execute(
                "SELECT datname, datallowconn, datconnlimit FROM pg_database ORDER BY datname"
            ).fetchall()
        reasons = {True: None, False: "it admits no connections (datallowconn is false)"}
        # A DROP DATABASE that was interrupted leaves -2 (server: DATCONNLIMIT_INVALID_DB).
        return [(printable(name), "it is what an interrupted DROP DATABASE left" if limit == -2 else
                 "its name is not UTF-8" if printable(name) != name else reasons[allowed])
                for name, allowed, limit in rows]  # fmt: skip

    def roll_back_prepared(self) -> int:
        """Roll back the transactions that were prepared on the source; return how many; raise psycopg.Error.

        Nobody will ever finish them here, and until then they keep their locks.
        """
        if self.in_recovery:
            return 0
        with self.connect("template1") as connection:
            prepared = connection.execute("SELECT gid, database FROM pg_prepared_xacts").fetchall()
        for gid, dbname in prepared:
            # Only a connection to its own database may do it.
            with self.connect(dbname, writable=True) as connection:
                connection.execute(sql.SQL("ROLLBACK PREPARED {}").format(sql.Literal(gid)))
        return len(prepared)

    def stop(self) -> str:
        """Stop the server in an orderly way and return the state in pg_control; raise StartFailed if it does not end.

        Only a fast stop is a proof: it writes everything out and a shutdown checkpoint.
        """
        pg_ctl = self.binaries.program("pg_ctl")
        local = self.plan.layout.local
        words = [pg_ctl, "-D", local, "-m", "fast", "-w", "-t", str(_STOP_WAIT_S), "stop"]
        outcome = run_program(words, self.account, timeout_s=_STOP_WAIT_S + 60)
        with open(self.plan.layout.control_path, "rb") as stream:
            state = parse_control(stream.read()).state
        wanted = ClusterState.SHUT_DOWN_IN_RECOVERY if self.in_recovery else ClusterState.SHUT_DOWN
        if outcome.returncode != 0 or state is not wanted:
            raise StartFailed(
                f"the copy's server did not stop in an orderly way: pg_ctl stop ended with {outcome.returncode}, "
                f"pg_control says {state.name.lower().replace('_', ' ')}",
                detail=log_end(self.plan.instance, os.path.join(local, LOG_NAME)),
            )
        return state.name.lower().replace("_", " ")


def printable(name: str) -> str:
    """Return a name as it can be shown: bytes that are no UTF-8 become escapes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def reach(plan: RestorePlan, binaries: Binaries, account: Account, started: StartedServer) -> DrillServer:
    """Find out as whom to log in; raise StartFailed when no superuser can be found."""
    problem: psycopg.Error | None = None
    for user in likely_superusers(account, plan.request.superuser):
        in_recovery = bool(started.in_recovery)
        server = DrillServer(plan, binaries, account, started.host, started.port, user, in_recovery, started.version)
        try:
            with server.connect("template1") as connection:
                row = connection.execute(
                    "SELECT rolsuper, pg_is_in_recovery(), version() FROM pg_roles WHERE rolname = current_user"
                ).fetchone()
        except psycopg.Error as refused:
            problem = problem or refused
            continue
        if row and row[0]:
            return replace(server, in_recovery=bool(row[1]), version=str(row[2]).split(" on ")[0])
    raise StartFailed(
        "the restored server is up, but no superuser of it could be found to look inside"
        + (f": {str(problem).strip()}" if problem else ""),
        hint=way_in(str(problem), plan.source.path),
    ) from problem


def way_in(refusal: str, backup: str) -> str:
    """Return what to do when no login succeeds; refusal: what the server said."""
    if _BROKEN_CATALOG.search(refusal):
        return f"its catalogs are damaged; see which files: {verify_command(backup)}"
    if "could not access file" in refusal:
        return (
            "install the library beside the server programs, or do without: "
            "--set session_preload_libraries= --set local_preload_libraries="
        )
    return "name one: --username ROLE"


def last_lines(data: str, lines: int = 40) -> str | None:
    """Return the end of the server's log; None when there is none."""
    try:
        return last_lines_of(read_log(data, os.path.join(data, LOG_NAME), most_bytes=40_000), lines) or None
    except OSError:
        return None


def copy_log(data: str, target: str) -> str | None:
    """Copy the server's log out of the scratch place; return the copy's path, None when there is no log.

    Nobody else may read the copy: SQL and data of the source stand in such a log.
    """
    with suppress(OSError):
        content = read_log(data, os.path.join(data, LOG_NAME))
        with suppress(FileNotFoundError):
            os.unlink(target)
        with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as stream:
            stream.write(content)
        return target
    return None


def command_line(words: Sequence[str], account: Account) -> str:
    """Return a line to type; root runs server programs as the account."""
    line = shlex.join(words)
    return f"su {account.name} -s /bin/sh -c {shlex.quote(line)}" if os.geteuid() == 0 else line
