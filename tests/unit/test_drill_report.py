"""The report of a drill: exit status, escaping, what is said of times; and what a drill refuses to set."""

from __future__ import annotations

from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any

import pytest

from polarvault.drill.look.structure import parse_program_output
from polarvault.drill.model import DrillReport, Failure, Part, PartTime, RelationRead
from polarvault.drill.place.isolation import (
    SOCKET_PATH_BYTES,
    check_settings,
    choose_port,
    fits_socket,
    private_settings,
)
from polarvault.errors import UsageError
from polarvault.model.finding import Finding, Severity
from polarvault.report.drill import drill_json, drill_text, format_seconds, verdict
from polarvault.report.drill_page import drill_page

BEGAN = datetime(2026, 11, 23, 3, 0, tzinfo=UTC)


def finding(severity: Severity, message: str = "m") -> Finding:
    return Finding(severity=severity, check="read-table", subject="db.s.t", message=message, meaning="x", advice="y")


def report(*findings: Finding, **more: Any) -> DrillReport:
    values: dict[str, Any] = {
        "backup": "/backup/monday", "began": BEGAN, "ended": BEGAN, "findings": findings,
        "not_proved": ("that it rains",), "times": (PartTime(Part.COPY, 2.0, 4 << 20), PartTime(Part.RECOVERY, 3.0)),
        "relations": (), "server_version": "PostgreSQL 18.0",
    }  # fmt: skip
    return DrillReport(**{**values, **more})


class Balanced(HTMLParser):
    """Checks that every element is closed in its turn, and collects what a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br"):
            self.open.append(tag)
        self.scripts += tag == "script"
        self.fetched += [str(value) for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_warnings_do_not_make_a_drill_fail_and_problems_do() -> None:
    assert report(finding(Severity.OK), finding(Severity.WARNING)).exit_status == 0
    assert report(finding(Severity.WARNING), finding(Severity.PROBLEM)).exit_status == 1


def test_a_failure_keeps_its_own_exit_status() -> None:
    failure = Failure(Part.COPY, "integrity", "bad bytes", None, None, 3)
    made = report(finding(Severity.PROBLEM), failure=failure)
    assert (made.exit_status, made.held) == (3, False)
    assert '"copy"' in verdict(made)
    assert drill_json(made)["failure"]["part"] == "copy"


def test_the_recovery_time_needs_a_server_that_came_up() -> None:
    assert report().recovery_time_s == 5.0
    assert report(server_version=None).recovery_time_s is None
    assert drill_json(report())["parts"][0]["bytes_per_s"] == 2 << 20


def test_the_page_is_whole_and_fetches_nothing_whatever_names_say() -> None:
    evil = '</style><script>alert("x")</script>'
    made = report(
        finding(Severity.PROBLEM, evil), finding(Severity.OK), finding(Severity.WARNING, "\udcff"),
        backup=f"/backup/{evil}", not_proved=(evil,), log_end=evil, log_copy="/x.log",
        relations=tuple(RelationRead("db", evil, f"t{n}", "r", n, n, ((3, evil),) * (n == 7)) for n in range(80)),
    )  # fmt: skip
    page = Balanced()
    page.feed(drill_page(made))
    page.close()
    assert (page.open, page.fetched, page.scripts) == ([], [], 0)
    assert "the 50 largest of 80 relations" in drill_page(made)
    drill_page(made).encode()


def test_the_text_says_what_was_not_proved_and_ends_with_the_verdict() -> None:
    lines = list(drill_text(report(finding(Severity.OK)), ["/r.json"]))
    assert lines[-1] == "the backup restores: everything that was looked at held"
    assert "  that it rains" in lines
    assert "report: /r.json" in lines


@pytest.mark.parametrize(("seconds", "text"), [(0.04, "0.0 s"), (9.96, "10.0 s"), (42, "42 s"), (3753, "1:02:33")])
def test_durations_are_written_as_people_read_them(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_pg_amcheck_is_understood_object_by_object() -> None:
    text = (
        'btree index "db.public.t_pkey":\n'
        '    ERROR:  item order invariant violated for index "t_pkey"\n'
        "    DETAIL:  Lower index tid=(1,10)\n"
        'heap table "db.public.t", block 3, offset 5, attribute 2:\n'
        "    xmax 17 precedes freeze threshold 0:700\n"
    )
    assert list(parse_program_output(text)) == [
        (
            'btree index "db.public.t_pkey"',
            'ERROR:  item order invariant violated for index "t_pkey" DETAIL:  Lower index tid=(1,10)',
        ),
        (
            'heap table "db.public.t", block 3, offset 5, attribute 2',
            "xmax 17 precedes freeze threshold 0:700",
        ),
    ]
    assert list(parse_program_output("")) == []


def test_settings_of_the_user_count_but_not_those_that_open_the_copy() -> None:
    wanted = [("shared_buffers", "1GB"), ("work_mem", "1GB")]
    made = private_settings(socket_directory="/s", hba_file="/h", ident_file="/i", wanted=wanted)
    assert [value for name, value in made if name == "shared_buffers"] == ["1GB"]
    assert ("listen_addresses", "") in made
    check_settings(wanted)
    for name in ("SSL", "archive_command", "max_logical_replication_workers", "recovery_target_time"):
        with pytest.raises(UsageError, match=name):
            check_settings([(name, "x")])


def test_a_sockets_path_must_fit() -> None:
    longest = SOCKET_PATH_BYTES - len("/.s.PGSQL.65535")
    assert fits_socket("/" * longest)
    assert not fits_socket("/" * (longest + 1))
    assert {choose_port(draw) for draw in range(0, 60000, 7)} <= set(range(20000, 32000))
