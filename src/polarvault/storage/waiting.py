"""Wait such that a signal is seen at once: for worker threads, and for calls that never return to Python."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, Executor, Future, wait
from typing import TypeVar

Result = TypeVar("Result")

# The kernel may give a signal to any thread, Python handles it in the main one only, and that one sleeps in a wait
# which has no end: so it wakes up now and then (signal(7), "process-directed").
_TICK_S = 0.2
# Enough to keep all workers busy, few enough that those of a million files are never in memory.
_CALLS_AHEAD = 4


def wait_for(futures: list[Future[None]]) -> set[Future[None]]:
    """Wait until all are done or one has failed; return those that are done."""
    while True:
        done, pending = wait(futures, timeout=_TICK_S, return_when=FIRST_EXCEPTION)
        if not pending or any(future.exception() is not None for future in done):
            return done


def run_bounded(pool: Executor, calls: Iterable[Callable[[], None]], *, workers: int) -> None:
    """Run calls in a pool, of which a few for each worker are taken at a time; raise what the first one raises."""
    running: set[Future[None]] = set()
    for call in calls:
        while len(running) >= workers * _CALLS_AHEAD:
            running = _without_done(running)
        running.add(pool.submit(call))
    while running:
        running = _without_done(running)


def _without_done(running: set[Future[None]]) -> set[Future[None]]:
    done, pending = wait(running, timeout=_TICK_S, return_when=FIRST_COMPLETED)
    for future in done:
        future.result()
    return pending


def call_apart(call: Callable[[], Result]) -> Result:
    """Return what a call returns, or raise what it raises; a signal that comes to the main thread ends the wait.

    For compiled code that waits without looking at signals. Such a call goes on in a thread of its own, which the end
    of the program does not wait for; whatever it still does has to be harmless.
    """
    if threading.current_thread() is not threading.main_thread():
        return call()
    outcome: Future[Result] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as problem:
            outcome.set_exception(problem)

    threading.Thread(target=run, name="apart", daemon=True).start()
    while not wait([outcome], timeout=_TICK_S).done:
        pass
    return outcome.result()
