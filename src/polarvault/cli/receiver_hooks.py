"""Tell hooks of what happens to a receiver that runs for months: an outage begins, is over, something needs care."""

from __future__ import annotations

import queue
import threading
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from polarvault.cli.hooks import tell_hooks
from polarvault.cli.json_output import current_events
from polarvault.hooks.run import Event
from polarvault.report.json_document import JsonDocument, error_json

if TYPE_CHECKING:
    from polarvault.config.model import Configuration
    from polarvault.errors import PolarvaultError, ServerError
    from polarvault.walarchive.receive.session import ReceiveReporter
    from polarvault.walarchive.receive.state import ReceiverState

# A hook that hangs is ended after its time; what happens meanwhile waits, and no more than this.
_MOST_WAITING = 16


class OutageHooks:
    """A `walarchive.receive.session.ReceiveReporter` around another one, which hears of everything first.

    Hooks run in a thread of their own, one after the other: WAL must not wait for them. It is a daemon, so that nor
    does a receiver that is told to stop.
    """

    def __init__(self, inner: ReceiveReporter, configuration: Configuration, cluster: str, command: str) -> None:
        self._inner, self._configuration, self._cluster, self._command = inner, configuration, cluster, command
        self._is_away = False
        self._quiet = current_events() is not None
        self._waiting: queue.Queue[tuple[Event, JsonDocument]] = queue.Queue(_MOST_WAITING)
        threading.Thread(target=self._run, name="hooks", daemon=True).start()

    def step(self, text: str, **facts: Any) -> None:
        """Hand it on."""
        self._inner.step(text, **facts)

    def note(self, text: str) -> None:
        """Hand it on."""
        self._inner.note(text)

    def notice(self, notice: ServerError) -> None:
        """Hand it on."""
        self._inner.notice(notice)

    def warning(self, text: str) -> None:
        """Tell it as a warning."""
        self._inner.warning(text)
        document = self._document()
        document.warn(text)
        self._tell(Event.WARNING, document)

    def problem(self, problem: PolarvaultError) -> None:
        """Tell the first one of an outage as a warning: it goes on trying."""
        self._inner.problem(problem)
        if not self._is_away:
            self._is_away = True
            document = self._document()
            document.error = error_json(problem)
            self._tell(Event.WARNING, document)

    def status(self, state: ReceiverState) -> None:
        """Tell the end of an outage as a success."""
        self._inner.status(state)
        if self._is_away and state.state == "streaming":
            self._is_away = False
            document = self._document()
            document.notes.append(f"streaming again from {state.server}")
            self._tell(Event.SUCCESS, document)

    def _document(self) -> JsonDocument:
        return JsonDocument(self._command, datetime.now(UTC))

    def _tell(self, event: Event, document: JsonDocument) -> None:
        with suppress(queue.Full):
            self._waiting.put_nowait((event, document))

    def _run(self) -> None:
        while True:
            event, document = self._waiting.get()
            tell_hooks(self._configuration, self._cluster, document, event, quiet=self._quiet)
