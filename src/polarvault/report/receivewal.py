"""A running receiver in words: pg_receivewal's lines with --verbose, a status line on a terminal, errors with hints."""

from __future__ import annotations

import sys
import time

from polarvault.errors import PolarvaultError
from polarvault.walarchive.status import ReceiverState

_BETWEEN_LINES_S = 10.0


class TextReporter:
    """Implements `walarchive.receive.Reporter`; everything goes to standard error."""

    def __init__(self, *, verbose: bool) -> None:
        self._verbose = verbose
        self._terminal = sys.stderr.isatty()
        self._line_open = False
        self._last_line = time.monotonic()

    def step(self, text: str) -> None:
        """Tell a step, with --verbose."""
        if self._verbose:
            self._say(text)

    def note(self, text: str) -> None:
        """Tell something that the user should know."""
        self._say(text)

    def warning(self, text: str) -> None:
        """Tell what needs attention."""
        self._say(f"warning: {text}")

    def problem(self, problem: PolarvaultError) -> None:
        """Tell what ended a session."""
        self._say(f"error: {problem.message}")
        for kind, text in (("detail", problem.detail), ("hint", problem.hint)):
            if text:
                self._say(f"{kind}: {text}")

    def status(self, state: ReceiverState) -> None:
        """Show the state: on a terminal as one line that is written over, with --verbose now and then as a new one."""
        if self._terminal:
            print(f"\r\x1b[K{status_line(state)}", end="", file=sys.stderr, flush=True)
            self._line_open = True
        elif self._verbose and time.monotonic() - self._last_line >= _BETWEEN_LINES_S:
            self._last_line = time.monotonic()
            self._say(status_line(state))

    def close(self) -> None:
        """End the status line."""
        if self._line_open:
            print(file=sys.stderr)
            self._line_open = False

    def _say(self, text: str) -> None:
        if self._line_open:
            print("\r\x1b[K", end="", file=sys.stderr)
            self._line_open = False
        print(f"polarvault: {text}", file=sys.stderr, flush=True)


def status_line(state: ReceiverState) -> str:
    """Return the state in one line."""
    slot = f", slot {state.slot}" if state.slot else ""
    lag = f"{state.lag_bytes / (1 << 20):.1f} MB, {state.lag_s(time.time()):.0f} s"
    return (
        f"{state.state}: timeline {state.timeline_id}, received {state.received}, flushed {state.flushed}, "
        f"server {state.server_end}, lag {lag}{slot}"
    )
