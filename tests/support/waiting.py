"""Wait on conditions with a deadline; the one place in the tests that sleeps."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], what: str, *, timeout_s: float = 60, interval_s: float = 0.02) -> None:
    """Poll until the condition is true; fail naming what was awaited."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"after {timeout_s} s still waiting until {what}")
        time.sleep(interval_s)
