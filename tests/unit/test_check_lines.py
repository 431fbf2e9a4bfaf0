"""The lines that `check` gives to type: they reach the same server, and mean what they say when they are typed."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest

from polarvault.check.files.contents import ContentFacts, judge_contents
from polarvault.check.files.places import Place, TablespaceFacts, judge_tablespaces
from polarvault.check.run import _with_connection
from polarvault.check.wal.slots import SlotFacts, judge_slots
from polarvault.cli.commands.basebackup import _mappings
from polarvault.cli.commands.check import _words
from polarvault.cli.options.mappings import mapping
from polarvault.model.finding import Finding, Severity, ok
from polarvault.model.tablespace_mapping import mapping_option
from polarvault.server.connection import ConnectionSettings

PATHS = ["/ts", "/sp ace = x", "/a=b=c", "/it's", '/"quoted"', "/back\\slash=", "/dollar$HOME", "/表空间", "/a\\=b"]


@pytest.mark.parametrize("new", ["/new", "/n e=w"])
@pytest.mark.parametrize("old", PATHS)
def test_a_mapping_that_is_printed_is_taken_for_what_it_means(old: str, new: str) -> None:
    option, value = shlex.split(mapping_option(old, new))
    assert option == "-T"
    assert _mappings((value,)) == {old: new}
    assert mapping(value) == (old, new)


@pytest.mark.parametrize("location", PATHS)
@pytest.mark.parametrize("name", ["space", "sp ace", "a/b", 'q"uote'])
def test_the_mapping_that_check_prints_is_accepted_by_basebackup(location: str, name: str) -> None:
    space = TablespaceFacts(oid=16384, name=name, location=location, size_bytes=1, at_server=None, here=Place.TAKEN)
    (finding,) = judge_tablespaces([space], data_directory="/data", target="/back ups/today")
    words = shlex.split((finding.advice or "").partition(" ...")[0])
    assert words[:3] == ["polarvault", "basebackup", "-T"]
    ((old, new),) = _mappings((words[3],)).items()
    assert old == location
    assert new.startswith("/back ups/today.")
    assert "/" not in new.removeprefix("/back ups/today.")


def completed(advice: str, *words: str) -> str:
    return _with_connection(ok("x", "x", "x", advice=advice), words).advice or ""


def test_lines_carry_the_connection_options_that_were_given() -> None:
    words = ["-h", "db 1", "-p", "5433", "-U", "me", "-d", "service=x\\y"]
    line = completed("polarvault basebackup -T /a=/b ...", *words)
    assert shlex.split(line) == ["polarvault", "basebackup", *words, "-T", "/a=/b", "..."]
    both = completed("polarvault receivewal --create-slot -S s\npolarvault receivewal -S s -D WAL", "-p", "1")
    assert both == "polarvault receivewal -p 1 --create-slot -S s\npolarvault receivewal -p 1 -S s -D WAL"


@pytest.mark.parametrize(
    "line",
    [
        "polarvault check -h PRIMARY",
        "polarvault basebackup refuses it",
        "restore copies with: polarvault restore ... --set a=b",
        "SELECT 1;",
    ],
)
def test_lines_that_go_elsewhere_are_left_alone(line: str) -> None:
    assert completed(line, "-p", "1") == line


def test_without_options_lines_are_as_short_as_before() -> None:
    assert completed("polarvault basebackup -T /a=/b ...") == "polarvault basebackup -T /a=/b ..."


@pytest.mark.parametrize(
    ("conninfo", "shown"),
    [
        ("service=prod", ["-d", "service=prod"]),
        ("postgresql://me@db:5433/app?sslmode=require", ["-d", "postgresql://me@db:5433/app?sslmode=require"]),
        ("host=db password=hush", ["-d", "host=db"]),
        ("postgresql://me:hush@db/app", ["-d", "user=me dbname=app host=db"]),
        ("host=db sslkey=/k sslpassword=hush", ["-d", "host=db sslkey=/k"]),
    ],
)
def test_no_password_is_printed_with_them(conninfo: str, shown: list[str]) -> None:
    assert _words(ConnectionSettings(conninfo)) == shown
    assert _words(ConnectionSettings(conninfo, host="h", port="1", user="u"))[2:] == ["-h", "h", "-p", "1", "-U", "u"]


SLOT = SlotFacts(
    name="s", kind="physical", active=False, synced=False, wal_status="reserved", restart_lsn="0/1", held_bytes=5 << 20
)


def one_slot(**changes: object) -> Finding:
    (finding,) = judge_slots([replace(SLOT, **changes)], limit_bytes=1 << 30)  # type: ignore[arg-type]
    return finding


@pytest.mark.parametrize(
    "changes",
    [
        {"wal_status": "lost"},
        {"wal_status": "lost", "active": True},
        {"wal_status": "unreserved"},
        {"wal_status": "unreserved", "active": True},
        {"reason": "wal_removed"},
        {"reason": "rows_removed", "kind": "logical", "restart_lsn": None},
        {"reason": "idle_timeout", "synced": True},
    ],
    ids=str,
)
def test_a_slot_that_lost_its_wal_or_is_about_to_is_a_problem(changes: dict[str, object]) -> None:
    assert one_slot(**changes).severity is Severity.PROBLEM


def test_a_slot_that_is_idle_is_a_warning_only() -> None:
    assert one_slot().severity is Severity.WARNING


def test_the_rest_of_an_interrupted_drop_database_is_a_warning_with_the_line_that_ends_it() -> None:
    facts = ContentFacts(
        databases=1, unlogged=(), indexes=(), foreign_tables=0, extensions=(), libraries=(), logical_slots=(),
        subscriptions=(), prepared_transactions=0, oldest_prepared=None, half_dropped=('in"valid',),
    )  # fmt: skip
    (finding,) = [finding for finding in judge_contents(facts) if finding.check == "interrupted-drop"]
    assert finding.severity is Severity.WARNING
    assert 'DROP DATABASE "in""valid";' in (finding.advice or "").splitlines()
