"""Drills on real servers: one that holds in every form, and one for each thing that can be wrong, which says which."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from polarvault.instance.model import Binaries
from support.cluster import Cluster
from support.drills import (
    PAGE_BYTES,
    Drills,
    Stock,
    break_order,
    copied,
    flip,
    make_stock,
    problems,
    relation_file,
    seal_again,
    sql_files,
)
from support.program import run_polarvault
from support.servers import ServerPool, missing_reason
from support.story import RESTORE_POINT, back_up

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="module", params=[18, 15])
def stock(request: pytest.FixtureRequest, servers: ServerPool) -> Iterator[Stock]:
    """One for each version; with checksums."""
    major = request.param
    if major not in servers.installations:
        pytest.skip(missing_reason(major))
    with make_stock(servers, major, "drill") as made:
        yield made


only18 = pytest.mark.parametrize("stock", [18], indirect=True)


# Any name will do for a database.
ODD_NAME = """we ird='1" %d"""


@pytest.fixture(scope="module", params=[15, 13])
def unchecked(request: pytest.FixtureRequest, servers: ServerPool) -> Iterator[tuple[Cluster, Path]]:
    """A server without checksums, and a backup of it in which an index is corrupt; 13 has no pg_amcheck."""
    major = request.param
    if major not in servers.installations:
        pytest.skip(missing_reason(major))
    directory = servers.directory / f"unchecked{major}"
    with Cluster.made(servers.installations[major], directory, checksums=False, fill=False) as source:
        source.query('CREATE DATABASE "' + ODD_NAME.replace('"', '""') + '"')
        with psycopg.connect(source.conninfo(), dbname=ODD_NAME, autocommit=True) as connection:
            connection.execute("CREATE TABLE t AS SELECT n FROM generate_series(1, 1000) n")
            connection.execute("ALTER TABLE t ADD PRIMARY KEY (n)")
            for name, body in (("helper", "n"), ("wrapped", "helper(n)")):
                language = "LANGUAGE plpgsql IMMUTABLE"
                connection.execute(
                    f"CREATE FUNCTION {name}(n int) RETURNS int {language} AS 'BEGIN RETURN {body}; END'"
                )
            connection.execute("CREATE INDEX by_wrapped ON t (wrapped(n))")
            (path,) = connection.execute("SELECT pg_relation_filepath('t_pkey')").fetchone() or ("",)
        backup = back_up(source, directory / "backup")
        break_order(backup / path)
        seal_again(backup)
        yield source, backup


@pytest.fixture
def drills(workspace: Path) -> Drills:
    """Drills in a scratch directory of the test's own."""
    return Drills(workspace)


@pytest.mark.parametrize(("stock", "form"), [(18, "tar"), (15, "plain")], indirect=["stock"])
def test_a_drill_that_holds_says_what_it_proved(stock: Stock, drills: Drills, form: str) -> None:
    rows = stock.story.good[0]
    (right,) = sql_files(
        drills.workspace, right=f"-- the state before the disaster\nSELECT count(*) = {rows} FROM accounts;"
    )
    report = drills.run(
        stock.source, stock.plain if form == "plain" else stock.tar, "--wal", stock.archive,
        "--target-name", RESTORE_POINT, "--amcheck", "--sql", right,
    )  # fmt: skip
    found = {(finding["check"], finding["subject"]) for finding in report["findings"]}
    assert {("amcheck", "postgres"), ("read-database", "template1"), ("assertion", str(right))} <= found
    assert {finding["severity"] for finding in report["findings"]} == {"ok"}
    assert report["recovery"]["ended"] == "promoted"
    assert RESTORE_POINT in report["recovery"]["reason"]
    assert report["recovery"]["timeline"] == 2
    assert [part["part"] for part in report["parts"]] == [
        "plan", "copy", "start and recovery", "amcheck", "reading", "assertions", "stop",
    ]  # fmt: skip
    assert report["recovery_time"]["seconds"] > 0
    facts = report["facts"]
    assert facts["major_version"] == stock.source.installation.major
    assert facts["timeline"] == 1
    assert None not in (facts["start_lsn"], facts["stop_lsn"], facts["system_identifier"])
    assert any("template0" in line for line in report["not_proved"])
    assert not Path(f"{drills.report}.log").exists()


@only18
def test_every_kind_of_relation_is_read_to_its_last_page(stock: Stock, drills: Drills) -> None:
    report = drills.run(stock.source, stock.plain)
    read = {f"{one['schema']}.{one['name']}": one for one in report["relations"] if one["database"] == "postgres"}
    assert read["public.accounts"]["rows"] == stock.story.at_backup[0]
    assert read["public.accounts"]["pages"] > 10
    assert read["public.rich"]["rows"] > 0
    assert read["public.numbers"] == {**read["public.numbers"], "kind": "S", "rows": 1}
    index = read["public.accounts_pkey"]
    assert (index["kind"], index["belongs_to"]) == ("i", "public.accounts")
    (toast,) = (one for one in read.values() if one["belongs_to"] == "public.documents" and one["kind"] == "t")
    assert toast["rows"] > 20
    assert read["pg_catalog.pg_class"]["rows"] > 100
    assert any("amcheck" in line for line in report["not_proved"])
    # Shared catalogs are read once, in one of the databases.
    assert sum(one["name"] == "pg_authid" for one in report["relations"]) == 1


@only18
def test_a_sample_reads_less_and_says_so(stock: Stock, drills: Drills) -> None:
    report = drills.run(stock.source, stock.plain, "--read", "sample", "--sample-percent", "10")
    (accounts,) = (one for one in report["relations"] if one["name"] == "accounts")
    assert 0 <= accounts["rows"] < stock.story.at_backup[0]
    assert any("10 %" in line for line in report["not_proved"])


@only18
def test_a_paused_copy_is_looked_at_where_it_stands(stock: Stock, drills: Drills) -> None:
    report = drills.run(
        stock.source, stock.plain, "--wal", stock.archive, "--target-name", RESTORE_POINT, "--target-action", "pause",
        "--amcheck", status=1,
    )  # fmt: skip
    assert report["recovery"]["ended"] == "paused"
    assert any(one["name"] == "accounts" and one["rows"] == stock.story.good[0] for one in report["relations"])
    assert any("pg_prewarm" in line for line in report["not_proved"])
    # amcheck would have to be installed in the copy, which cannot be written.
    assert {check for check, _, _ in problems(report)} == {"amcheck"}
    assert "not proved" in problems(report)[0][2]


# Damage


def test_a_corrupt_index_without_checksums_is_found_by_amcheck_alone(
    unchecked: tuple[Cluster, Path], drills: Drills
) -> None:
    source, backup = unchecked
    report = drills.run(source, backup, "--amcheck", status=1)
    # It was read all the same, and nothing was seen.
    assert any(one["name"] == "t_pkey" and not one["problems"] for one in report["relations"])
    assert any("no data checksums" in line for line in report["not_proved"])
    ((check, subject, message),) = problems(report)
    assert check == "amcheck"
    assert "t_pkey" in subject
    assert ODD_NAME in subject
    assert "order" in message or "invariant" in message
    # amcheck evaluates expressions without the search_path that this one needs: no damage, but not proved either.
    (warned,) = (finding for finding in report["findings"] if finding["severity"] == "warning")
    assert "by_wrapped" in warned["subject"]
    assert "helper(integer) does not exist (SQLSTATE 42883); its structure is sound" in warned["message"]
    assert any("by_wrapped" in line for line in report["not_proved"])
    assert report["failure"] is None
    assert Path(report["log"]).read_text()


@only18
def test_damaged_maps_are_told_although_the_server_makes_them_anew(stock: Stock, drills: Drills) -> None:
    damaged = copied(stock.plain, drills.workspace / "damaged")
    operators = relation_file(stock.source, damaged, "pg_operator")
    for fork in ("fsm", "vm"):
        flip(Path(f"{operators}_{fork}"), block=0)
    report = drills.run(stock.source, seal_again(damaged))
    found = [(one["check"], one["subject"], one["message"]) for one in report["findings"] if one["severity"] != "ok"]
    assert [found[:2] for found in found] == [("read-map", "postgres.pg_catalog.pg_operator")] * 2
    assert found[0][2].startswith("free space map, block 0: invalid page")
    assert found[1][2].startswith("visibility map, block 0: invalid page")
    assert any(len(one["map_problems"]) == 2 for one in report["relations"])


def test_corrupt_pages_with_checksums_are_found_by_reading(stock: Stock, drills: Drills) -> None:
    damaged = copied(stock.plain, drills.workspace / "damaged")
    break_order(relation_file(stock.source, damaged, "accounts_pkey"))
    heap = relation_file(stock.source, damaged, "accounts")
    flip(heap, block=3)
    flip(heap, block=7)
    report = drills.run(stock.source, seal_again(damaged), status=1)
    found = {(check, subject, message.partition(":")[0]) for check, subject, message in problems(report)}
    assert found == {
        ("read-index", "postgres.public.accounts_pkey", "block 1"),
        ("read-table", "postgres.public.accounts", "block 3"),
        ("read-table", "postgres.public.accounts", "block 7"),
    }
    assert "page verification failed" in Path(report["log"]).read_text()
    assert "block 7" in Path(f"{drills.report}.html").read_text()


@only18
def test_what_has_changed_since_the_backup_is_told_although_it_is_sound(stock: Stock, drills: Drills) -> None:
    changed = copied(stock.plain, drills.workspace / "changed")
    index = relation_file(stock.source, changed, "accounts_pkey")
    break_order(index)
    report = drills.run(stock.source, changed, "--read", "none", status=1)
    assert [(check, changed / subject) for check, subject, _ in problems(report)] == [("checksum-mismatch", index)]


@only18
def test_a_table_that_was_cut_is_found_although_what_is_left_is_sound(stock: Stock, drills: Drills) -> None:
    damaged = copied(stock.plain, drills.workspace / "damaged")
    heap = relation_file(stock.source, damaged, "accounts")
    os.truncate(heap, 3 * PAGE_BYTES)
    relation_file(stock.source, damaged, "rich").unlink()
    with open(damaged / "postgresql.conf", "a", encoding="utf-8") as settings:
        settings.write("# edited\n")
    report = drills.run(stock.source, damaged, "--amcheck", status=1)
    found = {(check, damaged / subject) for check, subject, _ in problems(report)}
    assert {("wrong-size", heap), ("missing-file", relation_file(stock.source, damaged, "rich"))} <= found
    assert not any(subject == damaged / "postgresql.conf" for _, subject in found)
    (damaged / "backup_manifest").unlink()
    relation_file(stock.source, damaged, "rich").write_bytes(b"")
    report = drills.run(stock.source, damaged)
    assert any("no manifest" in line for line in report["not_proved"])


@pytest.mark.parametrize("stock", [15], indirect=True)
def test_a_missing_segment_is_named_before_anything_is_copied(stock: Stock, drills: Drills) -> None:
    damaged = copied(stock.plain, drills.workspace / "damaged")
    (segment,) = (path for path in (damaged / "pg_wal").iterdir() if len(path.name) == 24)
    segment.unlink()
    report = drills.run(stock.source, damaged, status=1)
    assert report["failure"]["part"] == "plan"
    assert segment.name in report["failure"]["message"]
    # The archive has it.
    assert drills.run(stock.source, damaged, "--wal", stock.archive, "--read", "none")["held"]


@only18
def test_a_lost_control_file_is_named(stock: Stock, drills: Drills) -> None:
    damaged = copied(stock.plain, drills.workspace / "damaged")
    (damaged / "global" / "pg_control").unlink()
    report = drills.run(stock.source, damaged, status=1)
    assert report["failure"]["part"] == "plan"
    assert "pg_control" in report["failure"]["message"]
    assert [check for check, _, _ in problems(report)] == ["plan"]


@only18
def test_a_damaged_control_file_is_an_integrity_error(stock: Stock, drills: Drills) -> None:
    damaged = copied(stock.plain, drills.workspace / "damaged")
    with open(damaged / "global" / "pg_control", "r+b") as stream:
        stream.seek(48)
        stream.write(b"\xff")
    report = drills.run(stock.source, damaged, status=3)
    assert "pg_control" in report["failure"]["message"]


@only18
def test_programs_of_another_version_are_refused(
    stock: Stock, drills: Drills, installation: Callable[[int], Binaries]
) -> None:
    report = drills.run(stock.source, stock.plain, "--bindir", installation(15).directory, status=4)
    assert report["failure"]["part"] == "plan"
    assert "PostgreSQL 18" in report["failure"]["message"]
    assert "version 15" in report["failure"]["detail"]


@only18
def test_a_server_that_does_not_start_leaves_its_log(stock: Stock, drills: Drills) -> None:
    library = "shared_preload_libraries=not_installed_here"
    report = drills.run(stock.source, stock.plain, "--set", library, status=4)
    assert report["failure"]["part"] == "start and recovery"
    assert "not_installed_here" in report["failure"]["message"]
    assert "not_installed_here" in Path(report["log"]).read_text()
    assert "not_installed_here" in report["log_end"]
    assert "not_installed_here" in Path(f"{drills.report}.html").read_text()


@only18
def test_a_target_that_cannot_be_reached_is_refused(stock: Stock, drills: Drills) -> None:
    report = drills.run(stock.source, stock.plain, "--target-name", "never_made", "--wal", stock.archive, status=1)
    assert report["failure"]["error"] == report["error"]["id"] == "target-unreachable"
    assert "never_made" in report["failure"]["message"]


# Assertions


@only18
def test_an_assertion_that_is_not_true_is_shown_with_what_it_returned(stock: Stock, drills: Drills) -> None:
    texts = {
        "true": "BEGIN; SELECT 1; SELECT true",
        "false": "SELECT count(*) = 1 FROM accounts",
        "null": "SELECT NULL::boolean",
        "text": "SELECT 't'::text",
        "rows": "SELECT true FROM generate_series(1, 3)",
        "none": "SELECT true WHERE false",
        "columns": "SELECT true, true",
        "command": "SELECT true; SET work_mem = '1MB'",
        "syntax": "SELECT count(* FROM accounts",
        "writes": "DELETE FROM accounts; SELECT true",
        "empty": "\n",
    }
    files = list(sql_files(drills.workspace, **texts))
    options = [word for path in files for word in ("--sql", str(path))]
    report = drills.run(stock.source, stock.plain, "--read", "none", *options, status=1)
    said = {Path(subject).stem: message for check, subject, message in problems(report) if check == "assertion"}
    assert "true" not in said
    assert said["false"] == "the last statement returned false"
    assert said["null"] == "the last statement returned null"
    assert "not of type boolean" in said["text"]
    assert "3 row(s) with 1 column(s)" in said["rows"]
    assert "0 row(s)" in said["none"]
    assert "(t, t)" in said["columns"]
    assert "no rows (SET)" in said["command"]
    assert "at character 16: syntax error" in said["syntax"]
    assert "read-only transaction" in said["writes"]
    assert "empty" in said["empty"]


@only18
def test_an_assertion_file_that_is_not_there_is_found_before_the_drill(stock: Stock, drills: Drills) -> None:
    finished = run_polarvault(*drills.options(stock.source, stock.plain, "--sql", "/nonexistent.sql"), check=False)
    assert finished.returncode == 2
    assert not Path(f"{drills.report}.json").exists()


# Sound, and odd


def test_what_is_odd_and_sound_is_not_called_a_problem(make_cluster: Callable[..., Cluster], drills: Drills) -> None:
    # Names of any bytes, limits that end our own statements, and a prepared change that locks a table.
    source = make_cluster(
        15, settings={"max_prepared_transactions": "5"}, initdb_options=["-E", "SQL_ASCII", "--locale=C"]
    )
    with psycopg.connect(source.conninfo(), autocommit=True) as connection:
        for statement in (
            b'CREATE TABLE "b\xe4d" (n int)',
            b"BEGIN",
            b"ALTER TABLE accounts ADD COLUMN more int",
            b"PREPARE TRANSACTION 'it''s held'",
            b"ALTER ROLE postgres SET statement_timeout = '1ms'",
            b"ALTER ROLE postgres SET search_path = ''",
            b"ALTER ROLE postgres SET default_transaction_read_only = on",
        ):
            connection.execute(statement)
    backup = drills.workspace / "backup"
    source.run("pg_basebackup", "-d", source.conninfo(), "-c", "fast", "-N", "-D", str(backup))
    report = drills.run(source, backup, "--amcheck")
    assert {finding["severity"] for finding in report["findings"]} == {"ok"}
    assert any(finding["check"] == "prepared-transactions" for finding in report["findings"])
    assert {r"b\xe4d", "accounts"} <= {one["name"] for one in report["relations"]}
    assert any("unlogged" in line for line in report["not_proved"])
