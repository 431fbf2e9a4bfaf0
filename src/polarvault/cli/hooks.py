"""Tell the hooks of the configuration how a command ended, as --json would have told it.

`with told_to_hooks(configuration, cluster, "backup") as told:` around all of it; `told.add(...)` what --json shows, and
`told.exit_status` if it is not 0. A command that goes on for long tells in between by `tell_hooks`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from polarvault.cli import signals
from polarvault.cli.json_output import current_events, current_output
from polarvault.cli.messages import say_warning
from polarvault.errors import Interrupted, PolarvaultError
from polarvault.report.json_document import JsonDocument, error_json

if TYPE_CHECKING:
    from polarvault.config.model import Configuration
    from polarvault.hooks.run import Event


class Told(JsonDocument):
    """What is told at the end."""

    __slots__ = ("exit_status",)

    def __init__(self, command: str) -> None:
        super().__init__(command, datetime.now(UTC))
        self.exit_status = 0


@contextmanager
def told_to_hooks(
    configuration: Configuration, cluster: str | None, command: str, *, failures_only: bool = False
) -> Iterator[Told]:
    """Run the hook for how the block ends. None: no cluster, so that only the hooks of [defaults] count.

    failures_only: that it ends well is nothing to tell, as of a receiver that was told to stop.
    """
    told = Told(command)
    try:
        yield told
    except (PolarvaultError, OSError, KeyboardInterrupt) as problem:
        _ended(configuration, cluster, told, _exit_status(problem), error_json(problem))
        raise
    if told.exit_status or not failures_only:
        _ended(configuration, cluster, told, told.exit_status, None)


def tell_hooks(
    configuration: Configuration, cluster: str | None, document: JsonDocument, event: Event, *, quiet: bool = False
) -> None:
    """Tell of something that happened while a command goes on; it is waited for as long as hook_timeout says."""
    ended = document.ended(exit_status=0, error=None, now=datetime.now(UTC))
    _run(configuration, cluster, document.command, event, ended, quiet=quiet)


def _ended(
    configuration: Configuration, cluster: str | None, told: Told, exit_status: int, error: dict[str, str | None] | None
) -> None:
    from polarvault.hooks.run import event_of

    document = told.ended(exit_status=exit_status, error=error, now=datetime.now(UTC))
    event = event_of(exit_status, has_warnings=bool(told.warnings))
    _run(configuration, cluster, told.command, event, document, quiet=current_events() is not None)


def _run(
    configuration: Configuration, cluster: str | None, command: str, event: Event, document: dict[str, Any],
    *, quiet: bool,
) -> None:  # fmt: skip
    from polarvault.hooks.run import run_hook

    hooks = configuration.hooks_of(cluster)
    warning = run_hook(
        hooks, event, document, os.environ, command=command, cluster=cluster, quiet=quiet
    )  # fmt: skip
    if warning is None:
        return
    # Of what the hook was told of nothing changes: neither the exit status nor what was done.
    output, events = current_output(), current_events()
    if output is not None:
        output.warn(warning)
    if events is not None:
        events.emit("warning", message=warning)
    else:
        say_warning(warning)


def _exit_status(problem: BaseException) -> int:
    if isinstance(problem, (Interrupted, KeyboardInterrupt)):
        return 128 + (signals.received() or signal.SIGINT)
    return problem.exit_code if isinstance(problem, PolarvaultError) else 1
