"""The object of --json and the events of --progress json, apart from any command."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import click
import pytest

from polarvault.cli.json_output import outputs_for
from polarvault.cli.main import group
from polarvault.errors import DiskFull, ServerError
from polarvault.report.events import CopyEvents, EventWriter
from polarvault.report.json_document import envelope, error_json, iso
from polarvault.storage.below import NameRefused

NOON = datetime(2026, 11, 22, 13, 3, tzinfo=timezone(timedelta(hours=1)))


def test_times_are_utc() -> None:
    assert iso(NOON) == "2026-11-22T12:03:00Z"
    assert iso(0.5) == "1970-01-01T00:00:00.500000Z"
    assert iso(None) is None


def test_bytes_that_are_no_text_can_be_had_back() -> None:
    document = envelope(
        "check", {"subject": "a\udcff\u00e9"}, began=NOON, ended=NOON.astimezone(UTC), duration_s=1.23456, exit_status=0
    )
    text = json.dumps(document)
    assert text.isascii()
    assert json.loads(text)["subject"].encode("utf-8", "surrogateescape") == b"a\xff\xc3\xa9"
    assert (document["duration_s"], document["began"], document["error"]) == (1.235, document["ended"], None)


def test_every_kind_of_error_has_the_same_fields() -> None:
    kinds: list[BaseException] = [
        DiskFull("no space", hint="make some"), ServerError("no", sqlstate="42501", detail="d"),
        NameRefused("n", "it is a link"), OSError(5, "Input/output error", "/dev/x"), ZeroDivisionError("z"),
    ]  # fmt: skip
    found = [error_json(one) for one in kinds]
    assert {tuple(one) for one in found} == {("id", "message", "detail", "hint", "sqlstate")}
    assert [one["id"] for one in found] == ["disk-full", "server-error", "name-refused", "system", "internal"]
    assert found[1]["sqlstate"] == "42501"
    assert found[3]["message"] == 'Input/output error "/dev/x"'


def test_no_password_gets_into_an_error() -> None:
    assert "sesame" not in json.dumps(error_json(DiskFull("in postgresql://u:sesame@h/d", hint="password=sesame")))


def test_progress_is_told_once_a_second_and_at_its_end() -> None:
    lines: list[dict[str, Any]] = []
    now = [0.0]
    events = EventWriter("restore", write=lambda line: lines.append(json.loads(line)), clock=lambda: now[0])
    copied = CopyEvents(events, "copy", 100)
    for second, size in ((0.0, 10), (0.5, 10), (1.0, 10), (1.2, 30), (1.3, 40)):
        now[0] = second
        copied(size)
    assert [line["done_bytes"] for line in lines] == [10, 30, 100]
    events.progress("receive", 5, None)
    assert (lines[-1]["phase"], lines[-1]["total_bytes"]) == ("receive", None)


@pytest.mark.parametrize(
    ("words", "document", "events"),
    [
        (["restore", "--json", "b"], True, False),
        (["restore", "b", "--progress", "json"], False, True),
        (["basebackup", "--progress=json", "--json"], True, True),
        (["basebackup", "--progress", "json", "-D", "d"], False, True),
        (["basebackup", "-l", "--json", "-P"], False, False),
        (["basebackup", "-Pl", "--json"], False, False),
        (["basebackup", "--label", "--progress=json"], False, False),
        (["basebackup", "--", "--json"], False, False),
        (["basebackup", "--js"], True, False),
        (["verifybackup", "--progress", "json"], False, False),
        (["verifybackup", "--progress=json", "b"], False, True),
        (["receivewal", "--stat", "-D", "d"], False, False),
        (["receivewal", "--status", "-D", "d"], True, False),
        (["check", "--json"], True, False),
        (["no-such-command", "--json"], False, False),
        ([], False, False),
    ],
)
def test_what_a_command_line_asks_for(words: list[str], document: bool, events: bool) -> None:
    found = outputs_for(group, words)
    assert (found.document is not None, found.events is not None) == (document, events)
    assert isinstance(group, click.Group)


def test_a_backup_on_standard_output_moves_the_object() -> None:
    for words in (["-D", "-"], ["-D-"], ["-PD", "-"], ["--pgdata=-"], ["--pgd", "-"]):
        found = outputs_for(group, ["basebackup", "--json", *words]).document
        assert found is not None
        assert found.is_on_stderr
    found = outputs_for(group, ["basebackup", "--json", "-D", "x"]).document
    assert found is not None
    assert not found.is_on_stderr
