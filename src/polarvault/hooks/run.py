"""Run a hook: a list of words, no shell, an environment without secrets, what happened as JSON on standard input.

Whatever becomes of it changes nothing about what it is told of: the worst is a warning.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from enum import Enum
from typing import Any

from polarvault.config.model import Hooks

# Passwords, keys and where they are stand in variables of ours, of PostgreSQL and of the clouds: only what a program
# needs to run at all is handed on.
_KEPT = frozenset({"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR"})
_KEPT_PREFIX = "LC_"
# After SIGTERM, before SIGKILL.
_GRACE_S = 2.0
_STDERR = 2


class Event(Enum):
    """What a hook is told of."""

    SUCCESS = "success"
    WARNING = "warning"
    FAILURE = "failure"


def event_of(exit_status: int, *, has_warnings: bool) -> Event:
    """Return what the end of a command is: a warning is something that was said of a success."""
    if exit_status:
        return Event.FAILURE
    return Event.WARNING if has_warnings else Event.SUCCESS


def words_for(hooks: Hooks, event: Event) -> tuple[str, ...]:
    """Return the words of the command for an event, none if there is none.

    Who has a hook for successes and none for warnings is told of these as well: the thing was done.
    """
    match event:
        case Event.SUCCESS:
            return hooks.on_success
        case Event.WARNING:
            return hooks.on_warning or hooks.on_success
        case Event.FAILURE:
            return hooks.on_failure


def run_hook(
    hooks: Hooks,
    event: Event,
    document: Mapping[str, Any],
    environment: Mapping[str, str],
    *,
    command: str,
    cluster: str | None,
    quiet: bool = False,
) -> str | None:
    """Run the hook for an event, if there is one; return a warning if it failed.

    document: what it gets on standard input, with `event` and `cluster` in front. command: what it was, as "backup".
    What it prints goes to our standard error, or nowhere if quiet. It is ended with all that it has started when its
    time is over, and when we are interrupted, which is raised on.
    """
    words = words_for(hooks, event)
    if not words:
        return None
    told = {"event": event.value, "cluster": cluster, **document}
    own = {"POLARVAULT_EVENT": event.value, "POLARVAULT_COMMAND": command, "POLARVAULT_CLUSTER": cluster or ""}
    name = f"the hook on_{event.value} ({words[0]})"
    # A file: one that does not read all of it, or nothing, must hold nobody up.
    with tempfile.TemporaryFile() as content:
        content.write(json.dumps(told, indent=2).encode("ascii") + b"\n")
        content.seek(0)
        output = subprocess.DEVNULL if quiet else _STDERR
        try:
            process = subprocess.Popen(
                words, stdin=content, stdout=output, stderr=output, env=_clean(environment) | own, cwd="/",
                start_new_session=True,
            )  # fmt: skip
        except (OSError, ValueError) as problem:
            reason = problem.strerror if isinstance(problem, OSError) else str(problem)
            return f"{name} could not be run: {reason}"
    try:
        status = process.wait(hooks.timeout_s)
    except subprocess.TimeoutExpired:
        _end(process)
        return f"{name} was ended after {hooks.timeout_s} s, its time limit (hook_timeout)"
    except BaseException:
        _end(process)
        raise
    if status < 0:
        return f"{name} was ended by {signal.Signals(-status).name}"
    return f"{name} failed with exit status {status}" if status else None


def _clean(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value for name, value in environment.items() if name in _KEPT or name.startswith(_KEPT_PREFIX)
    }  # fmt: skip


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a hook with all processes of its session."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
