"""What SIGHUP, SIGINT and SIGTERM do to a command, and how a drop-in command ends by one.

The programs that we stand in for leave signals alone until they are connected, and die by them: a shell sees 129, 130
or 143, a parent process the signal itself. We die by them as well, after cleaning up. A signal that is ignored when we
start (`nohup`, a job in the background) stays ignored, as with any program that does not ask for it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType

_ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
_received = 0


def leave_alone() -> None:
    """Let signals end the process at once: there is nothing to clean up yet."""
    _set(signal.SIG_DFL)


def interrupt() -> None:
    """Make signals raise KeyboardInterrupt, once: cleaning up must not be interrupted by impatience."""
    _set(_interrupt)


def stop_by(request: Callable[[], None]) -> None:
    """Make signals ask for a stop. SIGINT and SIGTERM also where they were ignored, as pg_receivewal does."""

    def handler(number: int, _: FrameType | None) -> None:
        global _received
        _received = _received or number
        request()

    for number in _ENDING:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def received() -> int:
    """Return the number of the signal that has come; 0 for none."""
    return _received


def die_by(number: int) -> None:
    """End the process by a signal, so that a parent sees what it would see of a program without handlers."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _set(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    for number in _ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _interrupt(number: int, _: FrameType | None) -> None:
    global _received
    if _received:
        return
    _received = number
    raise KeyboardInterrupt
