"""`--json`: one object, the last thing that a command prints, also when the command line is wrong or it was stopped.

Whether it was asked for is read from the command line before anything else is: an error in another option must find it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import click

from polarvault.cli.messages import say_error
from polarvault.cli.options.drop_in import DropInCommand
from polarvault.report.events import EventWriter
from polarvault.report.json_document import JsonDocument

_STDOUT, _STDERR = 1, 2
Function = TypeVar("Function", bound=Callable[..., Any])


class JsonOutput(JsonDocument):
    """The object of this run, and where it goes: standard error if the backup itself goes to standard output."""

    __slots__ = ("is_on_stderr",)

    def __init__(self, command: str, *, is_on_stderr: bool) -> None:
        super().__init__(command, datetime.now(UTC))
        self.is_on_stderr = is_on_stderr

    def finish(self, exit_status: int, error: Mapping[str, str | None] | None) -> int:
        """Print the object; return the exit status, which is another one if it could not be printed."""
        # The command is over; half an object would be worse than a late end.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        document = self.ended(exit_status=exit_status, error=error, now=datetime.now(UTC))
        # ASCII: the bytes of a file's name that are no text become lone surrogates (\udcff), which Python turns back.
        # On standard error in one line: the last line is the object.
        text = json.dumps(document) if self.is_on_stderr else json.dumps(document, indent=2)
        try:
            if not self.is_on_stderr:
                sys.stdout.flush()
            _write_all(_STDERR if self.is_on_stderr else _STDOUT, f"{text}\n".encode("ascii"))
        except (OSError, ValueError) as problem:
            words = problem.strerror if isinstance(problem, OSError) else str(problem)
            say_error(f"cannot write the result to standard output: {words}")
            return exit_status or 1
        return exit_status


@dataclass(frozen=True, slots=True)
class Outputs:
    """What programs read of this run: the object at its end, the events on its way; None: not asked for."""

    document: JsonOutput | None = None
    events: EventWriter | None = None


def outputs_for(group: click.Group, arguments: list[str]) -> Outputs:
    """Return what the command line asks for."""
    command = group.get_command(click.Context(group), arguments[0]) if arguments else None
    if command is None or command.name is None:
        return Outputs()
    given = _given(command, arguments[1:])
    document = events = None
    # `status` has a format for each kind of reader.
    as_json = command.name == "status" and given.get("--format") == "json"
    if {"--json", "--status"} & given.keys() or as_json:
        to_stdout = command.name == "basebackup" and "-" in (given.get("--pgdata"), given.get("-D"))
        document = JsonOutput(command.name, is_on_stderr=to_stdout)
    if "--progress-json" in given or given.get("--progress") == "json":
        events = EventWriter(command.name)
    return Outputs(document, events)


def json_option(function: Function) -> Function:
    """Add --json; the command takes its output from `current_output`."""
    return click.option(
        "--json", is_flag=True, expose_value=False,
        help="Print the result as one JSON object, also of a failure (docs/json.md).",
    )(function)  # fmt: skip


def current_output() -> JsonOutput | None:
    """Return where the result of the running command goes as JSON."""
    return _current().document


def current_events() -> EventWriter | None:
    """Return where the events of the running command go."""
    return _current().events


def _current() -> Outputs:
    # Threads have no context of click's.
    context = click.get_current_context(silent=True)
    found = None if context is None else context.find_object(Outputs)
    return found or Outputs()


def progress_option(function: Function) -> Function:
    """Add --progress json to a command that has no --progress of PostgreSQL's; `current_events` is where they go."""
    return click.option(
        "--progress", type=click.Choice(["json"]), expose_value=False,
        help="Report progress as JSON, an object a line, on standard error (docs/json.md).",
    )(function)  # fmt: skip


def _given(command: click.Command, words: list[str]) -> dict[str, str | None]:
    """Return the options that are given, long ones in full, and their values; never fails, whatever the words are."""
    options: dict[str, click.Option] = {}
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            options |= dict.fromkeys(parameter.opts + parameter.secondary_opts, parameter)
    found: dict[str, str | None] = {}
    waiting = deque(words)
    while waiting:
        word = waiting.popleft()
        if word == "--":
            break
        if word.startswith("--"):
            if isinstance(command, DropInCommand):
                word = command.with_events(word, waiting)
            name, equals, value = word.partition("=")
            if isinstance(command, DropInCommand):
                name = command.full_name(name, options)
            takes = name in options and not options[name].is_flag
            found[name] = value if equals else waiting.popleft() if takes and waiting else None
        elif word.startswith("-"):
            _read_short(word, options, waiting, found)
    return found


def _read_short(word: str, options: dict[str, click.Option], waiting: deque[str], found: dict[str, str | None]) -> None:
    """Read a group of short options, the last of which may take the rest of the word, or the next one."""
    for position, letter in enumerate(word[1:], 1):
        name = "-" + letter
        if name in options and not options[name].is_flag:
            found[name] = word[position + 1 :] or (waiting.popleft() if waiting else None)
            return
        found[name] = None


def _write_all(descriptor: int, content: bytes) -> None:
    waiting = memoryview(content)
    while waiting:
        waiting = waiting[os.write(descriptor, waiting) :]
