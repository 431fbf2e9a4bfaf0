"""Drills and checks of a server that is full of traps, or merely odd: nothing goes off, everything is read."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.cluster import Cluster
from support.drills import Drills, copied, with_settings
from support.program import run_polarvault
from support.servers import ServerPool, missing_reason
from support.story import back_up

pytestmark = pytest.mark.postgres

# What a trap does outside of the database, where it can be seen.
SPRING = "EXECUTE 'COPY (SELECT 1) TO PROGRAM ''touch {}'''; RAISE EXCEPTION 'trapped'"


@pytest.fixture(scope="module", params=[18, 15])
def odd(request: pytest.FixtureRequest, servers: ServerPool) -> Iterator[tuple[Cluster, Path, Path]]:
    """A server, a backup of it, and the file that appears when one of its traps goes off."""
    major = request.param
    if major not in servers.installations:
        pytest.skip(missing_reason(major))
    directory = servers.directory / f"odd{major}"
    settings = {"max_connections": "4", "superuser_reserved_connections": "1"}
    with Cluster.made(servers.installations[major], directory, settings=settings) as source:
        sprung = directory / "sprung"
        spring = SPRING.format(sprung)
        source.query("CREATE DATABASE bytes TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'")
        source.query("CREATE DATABASE mule TEMPLATE template0 ENCODING 'MULE_INTERNAL' LC_COLLATE 'C' LC_CTYPE 'C'")
        run_sql_bytes(source, "bytes", b'CREATE TABLE "caf\xe9" (n int primary key); INSERT INTO "caf\xe9" VALUES (1)')
        run_sql_bytes(source, "bytes", b'CREATE UNLOGGED TABLE "caf\xe8" (n int)')
        # Somebody's operators and functions stand before the server's own, which owners of databases can arrange.
        source.query("CREATE DATABASE trapped")
        source.query(
            f"""
            ALTER DATABASE trapped SET search_path = public, pg_catalog;
            CREATE FUNCTION pg_relation_size(oid) RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN {spring}; END $$;
            CREATE FUNCTION same(text, text) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN {spring}; END $$;
            CREATE FUNCTION same(name, text) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN {spring}; END $$;
            CREATE OPERATOR public.= (LEFTARG = text, RIGHTARG = text, FUNCTION = same);
            CREATE OPERATOR public.= (LEFTARG = name, RIGHTARG = text, FUNCTION = same);
            CREATE FUNCTION on_ddl() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN {spring}; END $$;
            CREATE EVENT TRIGGER on_ddl ON ddl_command_start EXECUTE FUNCTION on_ddl();
            ALTER EVENT TRIGGER on_ddl ENABLE ALWAYS
            """,
            dbname="trapped",
        )
        source.query("ALTER ROLE postgres SET statement_timeout = 1")
        if major >= 17:
            source.query("ALTER DATABASE mule SET transaction_timeout = 1")
        yield source, back_up(source, directory / "backup"), sprung


def run_sql_bytes(source: Cluster, dbname: str, sql: bytes) -> None:
    """Run SQL whose text has no encoding."""
    conninfo = f"{source.conninfo()} dbname={dbname} client_encoding=SQL_ASCII options='-c statement_timeout=0'"
    psql = str(source.installation.program("psql"))
    subprocess.run([psql, "-X", "-d", conninfo, "-c", sql], check=True, capture_output=True)


def test_a_drill_sets_off_none_of_the_traps_in_its_copy(odd: tuple[Cluster, Path, Path], workspace: Path) -> None:
    source, backup, sprung = odd
    report = Drills(workspace).run(source, backup, "--amcheck", "-j", "8")
    assert not sprung.exists()
    read = {(one["database"], one["schema"], one["name"]): one for one in report["relations"]}
    assert read["bytes", "public", r"caf\xe9"]["rows"] == 1
    assert {one["database"] for one in report["relations"] if one["kind"] == "i"} >= {"bytes", "mule", "trapped"}
    assert not any("pg_prewarm" in line for line in report["not_proved"])


@pytest.mark.parametrize("odd", [18], indirect=True)
def test_a_library_that_is_not_on_this_host_is_told_from_a_missing_role(
    odd: tuple[Cluster, Path, Path], workspace: Path
) -> None:
    source, backup, _ = odd
    damaged = with_settings(copied(backup, workspace / "lacking"), "session_preload_libraries = 'no_such_library'\n")
    drills = Drills(workspace)
    report = drills.run(source, damaged, "--read", "none", status=4)
    assert "no_such_library" in report["failure"]["message"]
    typed = report["failure"]["hint"].partition("do without: ")[2].split()
    drills.run(source, damaged, "--read", "none", *typed)


def test_a_check_sets_off_no_trap_and_bears_names_without_encoding(odd: tuple[Cluster, Path, Path]) -> None:
    source, _, sprung = odd
    run_sql_bytes(source, "bytes", b"CREATE DATABASE \"caf\xe9\" TEMPLATE template0 ENCODING 'SQL_ASCII'")
    try:
        run_sql_bytes(source, "caf\udce9", b'CREATE UNLOGGED TABLE "th\xe9" (n int)')
        finished = run_polarvault("check", "-d", f"{source.conninfo()} dbname=trapped", check=False)
    finally:
        run_sql_bytes(source, "bytes", b'DROP DATABASE "caf\xe9"')
    assert "Traceback" not in finished.stderr
    # It is looked into like any other, by the bytes of its name.
    assert finished.returncode == 1, finished.stdout
    assert "unanswered" not in finished.stdout
    assert 'caf?: public."th?"' in finished.stdout
    assert not sprung.exists()
