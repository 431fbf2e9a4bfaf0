"""`basebackup -R` beside the real programs: what a standby gets to know of its primary, and how we log in ourselves."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from psycopg import pq

from polarvault.basebackup.recovery_settings import encode_settings
from polarvault.instance.account import server_account
from polarvault.instance.model import Binaries
from polarvault.pgconf.grammar import decode, parse_line
from polarvault.server.conninfo import format_conninfo, parse_conninfo
from support.cluster import Cluster
from support.program import command_line, program_environment, run_polarvault
from support.servers import BINDIRS_VARIABLE, ServerPool, has_program

pytestmark = pytest.mark.postgres

# Words of a shell; what stands before -- is environment.
VARIANTS = {
    "address": "-h 127.0.0.1 -p {port} -U postgres",
    "name": "-h localhost -p {port} -U postgres",
    "socket": "-h {socket} -p {port} -U postgres",
    "several hosts": "-d 'host=127.0.0.1,localhost port=1,{port} user=postgres target_session_attrs=read-write'",
    "one port for all": "-d 'host=/nowhere,localhost port={port} user=postgres'",
    "dbname": "-d 'host=127.0.0.1 port={port} user=postgres dbname=abc'",
    "dbname replication": "-d 'host=127.0.0.1 port={port} user=postgres dbname=replication'",
    "PGDATABASE": "PGDATABASE=envdb -- -h 127.0.0.1 -p {port} -U postgres",
    "service": "-d service=s",
    "PGSERVICE": "PGSERVICE=s --",
    "service before PGHOST": "PGHOST=127.0.0.2 PGPORT=1 -- -d service=s",
    "service and PGDATABASE": "PGDATABASE=envdb -- -d service=s",
    "PGSERVICE and PGDATABASE": "PGSERVICE=s PGDATABASE=envdb --",
    "service and dbname": "-d 'service=s dbname=other'",
    "environment": "PGHOST=127.0.0.1 PGPORT={port} PGUSER=postgres PGSSLMODE=disable PGAPPNAME=me --",
    "URI": "-d 'postgresql://postgres@127.0.0.1:{port}/udb?application_name=me&connect_timeout=7'",
    "URI of several": "-d 'postgres://postgres@127.0.0.1:1,localhost:{port}/?target_session_attrs=any'",
    "password": """PGPASSWORD="q'u\\\\o te" -- -h 127.0.0.1 -p {port} -U postgres""",
    "password in string": """-d "host=127.0.0.1 port={port} user=postgres password='a b\\\\'c'" """,
    "passfile": """-d "host=127.0.0.1 port={port} user=postgres passfile='/tmp/my pass'" """,
    "hostaddr": "-d 'host=foo.example hostaddr=127.0.0.1 port={port} user=postgres'",
    "options": """-d "host=127.0.0.1 port={port} user=postgres options='-c geqo=off' application_name='x y'" """,
    "empty values": """-d "host=127.0.0.1 port={port} user=postgres sslrootcert='' application_name=''" """,
    "over the string": "-d 'host=/nowhere port=1 user=nobody' -h 127.0.0.1 -p {port} -U postgres",
}
# Where the versions differ.
OF_EVERY_VERSION = [name for name in VARIANTS if "dbname" in name or "service" in name.lower() or "PGDATA" in name]
CASES = [(17, name) for name in VARIANTS] + [(major, name) for major in (15, 18) for name in OF_EVERY_VERSION]
# Ours leaves these away where nobody asked for them; the second libpq of a test may have other defaults than the first.
_DEFAULTS = {
    "channel_binding", "gssdelegation", "gssencmode", "krbsrvname", "load_balance_hosts", "max_protocol_version",
    "min_protocol_version", "ssl_min_protocol_version", "sslcertmode", "sslcompression", "sslmode", "sslnegotiation",
    "sslsni", "target_session_attrs",
}  # fmt: skip


def written(command: list[str], target: Path, environment: dict[str, str]) -> dict[str, str]:
    """Take a backup with -R; return what libpq parses from what the server will read."""
    words = [*command, "-D", str(target), "-c", "fast", "-N", "-X", "none", "--no-manifest", "-R"]
    finished = subprocess.run(
        words, env=environment, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    lines = (target / "postgresql.auto.conf").read_bytes().splitlines()
    (value,) = [line.value for line in map(parse_line, lines) if line is not None and line.name == "primary_conninfo"]
    return parse_conninfo(value)


def asked_for(words: dict[str, str]) -> dict[str, str]:
    """Leave out what is the default of a libpq, and the name of a service, which stands for what it says."""
    compiled = {found.keyword.decode(): found.compiled for found in pq.Conninfo.get_defaults()}

    def is_default(name: str, value: str) -> bool:
        return name in _DEFAULTS and value.encode() in {compiled.get(name), b"prefer", b"allow", b"disable", b"0"}

    # The real program of 18 writes the service's name, too, and the standby must then have the same service file.
    return {
        name: value
        for name, value in words.items()
        if name not in ("service", "servicefile") and not is_default(name, value)
    }


@pytest.fixture(scope="module")
def small_cluster(servers: ServerPool) -> Iterator[Callable[[int], Cluster]]:
    """A function that returns a server of a version with its client programs: with nothing in it, since many copies are
    made."""
    made: dict[int, Cluster] = {}

    def find(major: int) -> Cluster:
        if major not in servers.installations or not has_program(servers.installations[major], "pg_basebackup"):
            pytest.skip(f"pg_basebackup {major} is not installed: name its directory in {BINDIRS_VARIABLE}")
        if major not in made:
            made[major] = Cluster.made(servers.installations[major], servers.directory / f"small{major}", fill=False)
        return made[major]

    yield find
    for cluster in made.values():
        cluster.remove()


@pytest.mark.parametrize(("major", "variant"), CASES, ids=lambda value: str(value))
def test_a_standby_gets_what_the_real_program_would_have_written(
    small_cluster: Callable[[int], Cluster], workspace: Path, major: int, variant: str
) -> None:
    cluster = small_cluster(major)
    (workspace / "services").write_text(f"[s]\nhost=127.0.0.1\nport={cluster.port}\nuser=postgres\ndbname=svc\n")
    socket = cluster.query("SHOW unix_socket_directories")[0][0].split(",")[0]
    words = shlex.split(VARIANTS[variant].format(port=cluster.port, socket=socket))
    split = words.index("--") + 1 if "--" in words else 0
    named, options = dict(word.split("=", 1) for word in words[: max(split - 1, 0)]), words[split:]
    environment = program_environment({"PGSERVICEFILE": str(workspace / "services"), "HOME": str(workspace), **named})
    ours = written([*command_line("basebackup"), *options], workspace / "ours", environment)
    real = str(cluster.installation.program("pg_basebackup"))
    theirs = written([real, *options], workspace / "theirs", environment)
    assert asked_for(ours) == asked_for(theirs)
    assert ("hostaddr" in ours) == (variant == "hostaddr")


@pytest.mark.parametrize("major", [15, 17, 18])
def test_the_servers_own_reading_is_what_went_in(
    installation: Callable[[int], Binaries], workspace: Path, major: int
) -> None:
    programs, account = installation(major), server_account()
    data = workspace / "data"

    def run(*words: str) -> bytes:
        environment = account.environment(workspace)
        return subprocess.run(words, check=True, capture_output=True, cwd="/", env=environment, **account.run_as).stdout

    run(str(programs.program("initdb")), "-D", str(data), "-N", "-A", "trust")
    before = (data / "postgresql.auto.conf").read_bytes()
    for password in (
        b"pa'ss",
        b"pa\\ss",
        b"a\\",
        b"\\n\\'",
        b"new\nline",
        b"\xff\xfe",
        b"tab\t #x",
        b"''",
        b"\xc3\xa4",
    ):
        words = {"host": "/a b,c.example", "port": "1,2", "password": decode(password), "application_name": "x'y"}
        settings = {"primary_conninfo": format_conninfo(words), "primary_slot_name": "s"}
        (data / "postgresql.auto.conf").write_bytes(before + encode_settings(settings))
        read = run(str(programs.program("postgres")), "-C", "primary_conninfo", "-D", str(data))
        assert parse_conninfo(decode(read.removesuffix(b"\n"))) == words


def test_abstract_sockets_are_reached_as_the_real_programs_reach_them(
    make_cluster: Callable[..., Cluster], workspace: Path
) -> None:
    name = f"@polarvault-{os.getpid()}"
    cluster = make_cluster(18, fill=False)
    cluster.configure({"unix_socket_directories": f"{cluster.directory},{name}"})
    cluster.restart()
    words = ("-h", name, "-p", str(cluster.port), "-U", "postgres")
    run_polarvault("basebackup", *words, "-D", workspace / "backup", "-c", "fast", "-N", "-R")
    assert name in (workspace / "backup" / "postgresql.auto.conf").read_text()
    refused = run_polarvault("basebackup", "-h", "@nobody-listens", "-D", workspace / "other", check=False)
    assert "@nobody-listens" in refused.stderr
    assert refused.returncode == 1


@pytest.mark.parametrize("host", ["no.such.host.invalid", "a..b", "x" * 70])
def test_a_name_that_cannot_be_resolved_is_named(workspace: Path, host: str) -> None:
    refused = run_polarvault("basebackup", "-h", host, "-D", workspace / "backup", check=False)
    assert f'could not translate host name "{host}" to address' in refused.stderr
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr
