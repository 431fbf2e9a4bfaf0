"""Hooks: which one is run, what it gets, and that nothing of it comes back but a warning."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from polarvault.config.model import ClusterConfiguration, Configuration, Hooks
from polarvault.hooks.run import Event, event_of, run_hook, words_for
from support.waiting import wait_until


def told(script: Path, body: str) -> tuple[str, ...]:
    """Return a hook that is a shell script."""
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    return (str(script),)


def run(hooks: Hooks, event: Event = Event.SUCCESS, **environment: str) -> str | None:
    return run_hook(hooks, event, {"exit_status": 0, "label": "ä"}, environment, command="backup", cluster="shop")


def test_what_the_end_of_a_command_is() -> None:
    assert event_of(0, has_warnings=False) is Event.SUCCESS
    assert event_of(0, has_warnings=True) is Event.WARNING
    assert event_of(1, has_warnings=True) is event_of(130, has_warnings=False) is Event.FAILURE


def test_which_hook_hears_of_it() -> None:
    success, warning, failure = ("/s",), ("/w",), ("/f",)
    every = Hooks(success, warning, failure)
    assert [words_for(every, event) for event in Event] == [success, warning, failure]
    assert words_for(Hooks(on_success=success), Event.WARNING) == success
    assert words_for(Hooks(on_success=success, on_warning=warning), Event.FAILURE) == ()
    shop = ClusterConfiguration("shop", hooks=Hooks(on_failure=failure))
    configuration = Configuration(None, clusters={"shop": shop}, hooks=Hooks(on_success=success))
    assert configuration.hooks_of("shop") == shop.hooks
    assert configuration.hooks_of("other") == configuration.hooks_of(None) == Hooks(on_success=success)


def test_it_gets_the_document_the_words_as_they_are_and_no_secrets(tmp_path: Path) -> None:
    words = told(
        tmp_path / "hook",
        f'cat > {tmp_path}/stdin; env > {tmp_path}/env; pwd > {tmp_path}/pwd; echo "$@" > {tmp_path}/words',
    )
    hooks = Hooks(on_failure=(*words, "$HOME", "; rm -rf x", "`id`"))
    secrets = {"POLARVAULT_PASSPHRASE": "s", "AWS_SECRET_ACCESS_KEY": "s", "PGPASSWORD": "s", "LD_PRELOAD": "s"}
    warning = run(hooks, Event.FAILURE, PATH=os.environ["PATH"], LC_ALL="C", HOME="/h", **secrets)
    assert warning is None
    document = json.loads((tmp_path / "stdin").read_text())
    assert document == {"event": "failure", "cluster": "shop", "exit_status": 0, "label": "ä"}
    assert (tmp_path / "words").read_text() == "$HOME ; rm -rf x `id`\n"
    assert (tmp_path / "pwd").read_text() == "/\n"
    given = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines())
    assert {name: given[name] for name in given if name.startswith("POLARVAULT")} == {
        "POLARVAULT_EVENT": "failure", "POLARVAULT_COMMAND": "backup", "POLARVAULT_CLUSTER": "shop"
    }  # fmt: skip
    assert not secrets.keys() & given.keys()
    assert (given["HOME"], given["LC_ALL"]) == ("/h", "C")


def test_no_hook_is_no_process() -> None:
    assert run(Hooks(on_failure=("/nonexistent",))) is None


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("exit 3", "failed with exit status 3"),
        ("kill -9 $$", "was ended by SIGKILL"),
        # Nothing is read, and more than a pipe holds would have been written.
        ("exit 0", None),
    ],
)
def test_a_hook_that_fails_is_a_warning(tmp_path: Path, body: str, said: str | None) -> None:
    hooks = Hooks(on_success=told(tmp_path / "hook", body))
    document = {"long": "x" * 1_000_000}
    warning = run_hook(hooks, Event.SUCCESS, document, os.environ, command="backup", cluster=None)
    assert warning == (said and f"the hook on_success ({tmp_path}/hook) {said}")


def test_one_that_cannot_be_run_is_a_warning(tmp_path: Path) -> None:
    missing = run(Hooks(on_success=("/nonexistent/hook",)))
    assert missing == "the hook on_success (/nonexistent/hook) could not be run: No such file or directory"
    (tmp_path / "hook").write_text("no program")
    denied = run(Hooks(on_success=(str(tmp_path / "hook"),)))
    assert denied is not None
    assert "Permission denied" in denied


def test_after_its_time_it_is_ended_with_all_that_it_has_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    # It ignores the polite signal, and so does what it has started.
    body = f"trap '' TERM; sleep 600 & echo $$ $! > {pids}; wait; sleep 600"
    warning = run(Hooks(on_success=told(tmp_path / "hook", body), timeout_s=1), PATH=os.environ["PATH"])
    assert warning is not None
    assert "was ended after 1 s, its time limit" in warning
    for pid in map(int, pids.read_text().split()):
        wait_until(lambda pid=pid: not running(pid), f"process {pid} is gone")  # type: ignore[misc]


def running(pid: int) -> bool:
    try:
        # One that has ended and is not waited for yet is a zombie.
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
