"""One thread that reads ahead of the consumer through a bounded queue."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, Self, TypeVar

T = TypeVar("T")
_END = object()


class ReadAhead(Generic[T]):
    """Iterate over a source in a thread of its own; errors of the source are raised in the consumer.

    Leaving the `with` block early calls `interrupt`, which must make the source's blocked read fail.
    """

    def __init__(self, source: Iterator[T], *, depth: int, interrupt: Callable[[], None]) -> None:
        self._source = source
        self._interrupt = interrupt
        self._queue: queue.Queue[object] = queue.Queue(depth)
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="reader", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            self._stop.set()
            self._interrupt()
            # The reader may wait for room in the queue; taking one item lets it see the stop flag.
            while self._thread.is_alive():
                self._drain()
                self._thread.join(0.05)

    def items(self, on_tick: Callable[[], None], *, tick_s: float = 0.5) -> Iterator[T]:
        """Yield the source's items; `on_tick` runs whenever none has come for `tick_s` seconds."""
        while True:
            try:
                item = self._queue.get(timeout=tick_s)
            except queue.Empty:
                on_tick()
                continue
            if item is _END:
                if self._failure is not None:
                    raise self._failure
                return
            yield item  # type: ignore[misc]  # the queue holds T and the end mark only

    def _run(self) -> None:
        try:
            for item in self._source:
                self._queue.put(item)
                if self._stop.is_set():
                    return
        except BaseException as failure:  # Everything must reach the consumer, which re-raises it.
            self._failure = failure
        self._queue.put(_END)

    def _drain(self) -> None:
        try:
            while True:
                self._queue.get_nowait()
        except queue.Empty:
            pass
