"""`--json` of every command: one object on standard output, of success and failure; docs/json.md has all its fields."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.cluster import Cluster
from support.drills import Drills
from support.json_page import FIELDS, PAGE, ROOT, checked
from support.program import command_line, program_environment, run_polarvault
from support.receiving import end_of_wal, wait_released, write_wal
from support.tcp_proxy import TcpProxy
from support.waiting import wait_until

pytestmark = pytest.mark.postgres


def run(*words: object, status: int = 0, section: str | None = None, **how: Any) -> dict[str, Any]:
    arguments = [os.fspath(word) if isinstance(word, Path) else str(word) for word in words]
    finished = run_polarvault(*arguments, check=False, **how)
    assert finished.returncode == status, finished.stdout + finished.stderr
    assert "Traceback" not in finished.stderr
    return checked(arguments[0], finished.stdout, status=status, section=section)


@pytest.mark.parametrize(
    ("words", "status", "error"),
    [
        (["basebackup", "--json", "--no-such-option"], 1, "usage"),
        (["basebackup", "--bogus", "-D", "x", "--json"], 1, "usage"),
        (["basebackup", "-Fx", "--js", "-D", "x"], 1, "usage"),
        (["basebackup", "--json"], 1, "usage"),
        (["verifybackup", "--json"], 1, "usage"),
        (["verifybackup", "--json", "/nonexistent/backup"], 1, "backup-unusable"),
        (["receivewal", "--json"], 1, "usage"),
        (["receivewal", "--json", "-D", "/nonexistent/wal"], 1, "storage-failed"),
        (["check", "--json", "--target", ""], 2, "usage"),
        (["restore", "--json", "/nonexistent/backup", "-D", "/nonexistent/target"], 1, "backup-unusable"),
        (["restore", "--json", "/nonexistent/backup"], 2, "usage"),
        (["drill", "--json"], 2, "usage"),
        (["drill", "--json", "/nonexistent/backup", "--read", "everything"], 2, "usage"),
    ],
)
def test_a_wrong_command_line_is_an_object_too(words: list[str], status: int, error: str) -> None:
    document = run(*words, status=status)
    assert document["error"]["id"] == error
    assert document["error"]["message"]


def test_what_only_looks_like_the_option_is_none() -> None:
    for words in (["basebackup", "-D", "x", "-l", "--json", "-Fx"], ["basebackup", "-Fx", "--", "--json"]):
        finished = run_polarvault(*words, check=False)
        assert (finished.returncode, finished.stdout) == (1, "")


def test_help_is_help() -> None:
    assert run_polarvault("restore", "--json", "--help").stdout.startswith("Usage: ")


def test_a_failed_connection_names_what_was_to_be_made(workspace: Path) -> None:
    with TcpProxy(1) as closed:
        closed.refuse()
        document = run(
            "basebackup", "-h", "127.0.0.1", "-p", closed.port, "-w", "-D", workspace / "b", "--json", status=1
        )
    assert document["error"]["id"] == "connection-failed"
    assert (document["directory"], document["format"], document["label"]) == (
        str(workspace / "b"), "plain", "pg_basebackup base backup",
    )  # fmt: skip


def test_a_server_error_keeps_its_sqlstate(pg18: Cluster, workspace: Path) -> None:
    document = run(
        "basebackup", "-d", pg18.conninfo(), "-D", workspace / "b", "-S", "no_such_slot", "-c", "fast", "--json",
        status=1,
    )  # fmt: skip
    assert document["error"]["sqlstate"] == "42704"


def test_a_backup_that_is_restored_verified_and_drilled(pg18: Cluster, workspace: Path) -> None:
    backup = workspace / "b"
    made = run("basebackup", "-d", pg18.conninfo(), "-D", backup, "-c", "fast", "-N", "-P", "--json")
    assert made["received_bytes"] > 1 << 20
    assert made["system_identifier"].isdigit()
    occupied = run("basebackup", "-d", pg18.conninfo(), "-D", backup, "--json", status=1)
    assert occupied["error"]["id"] == "target-not-empty"
    assert run("verifybackup", backup, "--json")["good"] is True
    planned = run("restore", backup, "-D", workspace / "r", "--plan", "--json")
    assert planned["planned_only"] is True
    restored = run(
        "restore", backup, "-D", workspace / "r", "-N", "-p", 21801, "--target", "immediate", "--json",
    )  # fmt: skip
    assert (restored["planned_only"], restored["data_directory"]) == (False, str(workspace / "r"))
    assert restored["recovery"]["stop"]["lsn"]
    drills = Drills(workspace)
    drilled = run(*drills.options(pg18, backup, "--json"))
    assert drilled["held"] is True
    assert drilled["parts"]
    failed = run(*drills.options(pg18, backup, "--target-lsn", "F/0", "--json"), status=1)
    assert failed["error"]["id"] == failed["failure"]["error"] == "target-unreachable"
    damaged = next((backup / "base").rglob("1259"))
    with open(damaged, "r+b") as file:
        file.write(b"\xff" * 100)
    bad = run("verifybackup", backup, "--json", status=1)
    assert (bad["good"], bad["error"]) == (False, None)
    assert {finding["severity"] for finding in bad["findings"]} >= {"problem"}
    refused = run("restore", backup, "-D", workspace / "r2", "-N", "--json", status=3)
    assert refused["error"]["id"] == "integrity"


def test_with_the_backup_on_standard_output_the_object_is_the_last_line_on_standard_error(
    pg18: Cluster, workspace: Path
) -> None:
    words = ["basebackup", "-d", pg18.conninfo(), "-D", "-", "-Ft", "-X", "fetch", "-c", "fast", "-v", "--json"]
    with open(workspace / "b.tar", "wb") as tar:
        finished = subprocess.run(
            command_line(*words), stdin=subprocess.DEVNULL, stdout=tar, stderr=subprocess.PIPE, text=True,
            env=program_environment(), check=True,
        )  # fmt: skip
    document = checked("basebackup", finished.stderr.splitlines()[-1], status=0)
    assert document["directory"] == "-"
    assert (workspace / "b.tar").read_bytes()[257:262] == b"ustar"
    wrong = run_polarvault("basebackup", "-D", "-", "-Ft", "-X", "bogus", "--json", check=False)
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert checked("basebackup", wrong.stderr.splitlines()[-1], status=1)["error"]["id"] == "usage"


def test_a_check_says_what_it_found(pg18: Cluster, workspace: Path) -> None:
    document = run("check", "-d", pg18.conninfo(), "--target", workspace / "b", "--json", status=1)
    assert (document["status"], document["target"]) == ("warning", str(workspace / "b"))


def test_a_receiver_says_what_it_received(pg18: Cluster, workspace: Path) -> None:
    archive, slot = workspace / "wal", ["-S", "json", "-d", pg18.conninfo(), "--json"]
    archive.mkdir()
    assert run("receivewal", "--create-slot", "--reserve-wal", *slot)["slot"] == "json"
    assert run("receivewal", "--create-slot", *slot, status=1)["error"]["sqlstate"] == "42710"
    write_wal(pg18, 1 << 20)
    document = run("receivewal", "-D", archive, "-E", end_of_wal(pg18), *slot)
    assert document["flushed_lsn"]
    assert document["timeline"] == 1
    status = run("receivewal", "-D", archive, "--status", status=2, section="receivewal --status")
    assert status["findings"][0]["check"] == "receiver-running"
    wait_released(pg18, "json")
    run("receivewal", "--drop-slot", *slot)


@pytest.mark.parametrize("command", ["basebackup", "receivewal", "check"])
def test_a_command_that_is_interrupted_says_so(pg18: Cluster, workspace: Path, command: str) -> None:
    (workspace / "b").mkdir()
    with TcpProxy(pg18.port) as proxy:
        # It connects, and nobody answers.
        proxy.stall_after(0)
        words = {"check": ["--target", workspace / "c"]}.get(command, ["-D", workspace / "b"])
        running = subprocess.Popen(
            command_line(command, "--json", "-d", pg18.tcp_conninfo(port=proxy.port), *words),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=program_environment({"PGCONNECT_TIMEOUT": "100"}),
        )  # fmt: skip
        wait_until(lambda: proxy.connections_seen, "it has connected")
        running.send_signal(signal.SIGTERM)
        output, errors = running.communicate(timeout=60)
    assert "interrupted by SIGTERM" in errors
    document = checked(command, output, status=128 + signal.SIGTERM)
    assert document["error"]["id"] == "interrupted"
    assert running.returncode in (128 + signal.SIGTERM, -signal.SIGTERM)


def test_a_standard_output_that_is_full_or_closed_fails_the_command(pg18: Cluster) -> None:
    words = command_line("check", "-d", pg18.conninfo(), "--json")
    for redirection in (">/dev/full", ">&-"):
        finished = subprocess.run(
            ["sh", "-c", f'"$@" {redirection}', "sh", *words], capture_output=True, text=True,
            env=program_environment(), check=False,
        )  # fmt: skip
        assert finished.returncode != 0
        assert "cannot write the result to standard output" in finished.stderr
        assert "Traceback" not in finished.stderr


EVENT_COMMON = {"schema", "command", "time", "event"}


def events_of_page() -> dict[str, set[str]]:
    part = PAGE.split("\n## Events\n")[1].split("| event | fields | |")[1]
    found: dict[str, set[str]] = {}
    events: list[str] = []
    for cells in (line.split("|") for line in part.splitlines() if line.startswith("| ")):
        events = re.findall(r"`([^`]+)`", cells[1]) or events
        for event in events:
            found.setdefault(event, set()).update(re.findall(r"`([^`]+)`", cells[2]))
    return found


def events(text: str, command: str) -> list[dict[str, Any]]:
    """Return the events of a run, each of which must be explained; standard error holds nothing else."""
    found: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]
    explained = events_of_page()
    for event in found:
        assert (event["schema"], event["command"]) == (1, command)
        assert event["time"].endswith("Z")
        assert event.keys() - EVENT_COMMON - explained[event["event"]] == set()
    return found


def run_with_events(*words: object, status: int = 0) -> list[dict[str, Any]]:
    arguments = [os.fspath(word) if isinstance(word, Path) else str(word) for word in words]
    finished = run_polarvault(*arguments, check=False)
    assert finished.returncode == status, finished.stderr
    return events(finished.stderr, arguments[0])


def test_running_events_are_lines_of_their_own(pg18: Cluster, workspace: Path) -> None:
    backup, server = workspace / "b", ["-d", pg18.conninfo()]
    made = run_with_events("basebackup", *server, "-D", backup, "-c", "fast", "-N", "--progress", "json")
    last = [event for event in made if event["event"] == "progress"][-1]
    assert (last["phase"], last["done_bytes"]) == ("backup", last["total_bytes"])
    assert "step" in {event["event"] for event in made}
    refused = run_with_events("basebackup", *server, "-D", backup, "--progress=json", status=1)
    assert refused[-1]["event"] == "error"
    assert refused[-1]["error"]["id"] == "target-not-empty"
    assert run_with_events("verifybackup", "--progress=json", backup)[-1]["phase"] == "verify"
    restored = run_with_events("restore", backup, "-D", workspace / "r", "-N", "--progress", "json")
    assert {(event["event"], event.get("phase")) for event in restored} >= {("progress", "copy")}
    drilled = run_with_events(*Drills(workspace).options(pg18, backup, "--progress", "json"))
    assert len([event for event in drilled if event["event"] == "part"]) > 3
    archive = workspace / "wal"
    archive.mkdir()
    write_wal(pg18, 1 << 20)
    end = end_of_wal(pg18)
    pg18.query("SELECT pg_switch_wal()")
    received = run_with_events("receivewal", *server, "-D", archive, "-E", end, "--progress", "json")
    assert [event["event"] for event in received if event["event"] in ("start", "stop")] == ["start", "stop"]
    assert any(event["event"] == "status" for event in received)
    wrong = run_with_events("restore", "/nonexistent/backup", "-D", workspace / "n", "--progress", "json", status=1)
    assert [event["event"] for event in wrong] == ["error"]


def test_a_backup_that_is_called_json_is_verified_as_any_other(workspace: Path) -> None:
    (workspace / "json").mkdir()
    for words in (["--progress", "json"], ["-P", "json"]):
        finished = run_polarvault("verifybackup", *words, directory=workspace, check=False)
        assert finished.returncode == 1
        assert not finished.stderr.startswith("{")
        assert "json" in finished.stderr


def test_every_event_that_the_program_can_write_is_on_the_page() -> None:
    written: set[str] = set()
    for path in (ROOT / "src/polarvault").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            if (
                isinstance(node.func, ast.Attribute)
                and node.func.attr == "emit"
                and node.args
                and isinstance(node.args[0], ast.Constant)
            ):
                written.add(node.args[0].value)
            if isinstance(node.func, ast.Attribute) and node.func.attr == "step":
                written |= {word.value.value for word in node.keywords if word.arg == "event"}
    written.add("step")
    assert written == set(events_of_page())


def literal_keys(node: ast.AST) -> Iterator[str]:
    for inner in ast.walk(node):
        if isinstance(inner, ast.Dict):
            yield from (key.value for key in inner.keys if isinstance(key, ast.Constant) and isinstance(key.value, str))


def test_every_field_that_the_program_can_print_is_on_the_page_and_no_other() -> None:
    """Those that no run above has printed, too: by their last words, from the source."""
    printed: set[str] = set()
    for path in sorted((ROOT / "src/polarvault/report").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and re.search(r"_json\Z|_fields\Z|\Aenvelope\Z", node.name):
                printed |= set(literal_keys(node))
            if isinstance(node, ast.Assign) and [ast.unparse(one) for one in node.targets] == ["_FIELDS"]:
                printed |= set(ast.literal_eval(node.value))
    # Given as arguments where they are known.
    printed |= {"planned_only", "data_directory", "backup", "slot", "directory", "target", "text"}
    printed |= {"area", "clone", "clones", "snapshot", "snapshots", "image", "images", "removed", "taken", "failed"}
    on_page = {name.rpartition(".")[2].removesuffix("[]") for names in FIELDS.values() for name in names}
    assert printed - on_page == set()
    assert on_page - printed == set()
