"""Wait for worker threads such that a signal is seen at once."""

from __future__ import annotations

from concurrent.futures import FIRST_EXCEPTION, Future, wait

# The kernel may give a signal to any thread, Python handles it in the main one only, and that one sleeps in a wait
# which has no end: so it wakes up now and then (signal(7), "process-directed").
_TICK_S = 0.2


def wait_for(futures: list[Future[None]]) -> set[Future[None]]:
    """Wait until all are done or one has failed; return those that are done."""
    while True:
        done, pending = wait(futures, timeout=_TICK_S, return_when=FIRST_EXCEPTION)
        if not pending or any(future.exception() is not None for future in done):
            return done
