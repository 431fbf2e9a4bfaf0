"""Work on one database over several connections: threads take the next object until none is left.

A connection that the server ends (a backend that crashed takes the others with it) is made anew, and the object is
tried once more; what ends it twice is what ended it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Generic, TypeVar

import psycopg

from polarvault.drill.server import Connection, DrillServer

Item = TypeVar("Item")
Result = TypeVar("Result")

# After a crash the server recovers first.
_RECONNECT_WAIT_S = 120.0
_RECONNECT_POLL_S = 0.2


def work_through(
    server: DrillServer,
    dbname: str,
    items: Sequence[Item],
    work: Callable[[Connection, Item], Result],
    *,
    jobs: int,
    settings: Mapping[str, str],
) -> list[Result]:
    """Call work for each item, the first ones first, over `jobs` connections; raise psycopg.Error if none can be had.

    work deals with the server's errors itself and raises only psycopg.OperationalError for a connection that is lost.
    """
    crew = _Crew(server, dbname, items, work, settings)
    with ThreadPoolExecutor(max(1, min(jobs, len(items))), thread_name_prefix="drill") as pool:
        try:
            for running in [pool.submit(crew.run) for _ in range(max(1, min(jobs, len(items))))]:
                running.result()
        except BaseException:
            # Also on an interruption: a statement may run for hours, and the pool waits for its threads.
            crew.stop()
            raise
    return crew.results


class _Crew(Generic[Item, Result]):
    def __init__(
        self,
        server: DrillServer,
        dbname: str,
        items: Sequence[Item],
        work: Callable[[Connection, Item], Result],
        settings: Mapping[str, str],
    ) -> None:
        self.results: list[Result] = []
        self._server = server
        self._dbname = dbname
        self._items = deque(items)
        self._work = work
        self._settings = settings
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._connections: list[Connection] = []

    def run(self) -> None:
        """Work until nothing is left."""
        connection: Connection | None = None
        try:
            while not self._stopped.is_set():
                try:
                    item = self._items.popleft()
                except IndexError:
                    return
                connection = self._do(connection, item)
        finally:
            if connection is not None:
                connection.close()

    def stop(self) -> None:
        """Let nobody begin anything new, and cancel what runs."""
        self._stopped.set()
        with self._lock:
            for connection in self._connections:
                with suppress(psycopg.Error):
                    connection.cancel()

    def _do(self, connection: Connection | None, item: Item) -> Connection:
        for attempt in (1, 2):
            if connection is None or connection.closed:
                connection = self._connect()
            try:
                self.results.append(self._work(connection, item))
            except psycopg.OperationalError:
                if attempt == 2 or not connection.closed or self._stopped.is_set():
                    raise
            else:
                break
        assert connection is not None
        return connection

    def _connect(self) -> Connection:
        deadline = time.monotonic() + _RECONNECT_WAIT_S
        while True:
            try:
                connection = self._server.connect(self._dbname, settings=self._settings)
            except psycopg.OperationalError as refused:
                # "starting up" and "in recovery mode" pass; there is nothing to wait on but the next answer.
                is_passing = "the database system is" in str(refused) and not self._stopped.is_set()
                if not is_passing or time.monotonic() > deadline:
                    raise
                time.sleep(_RECONNECT_POLL_S)
                continue
            with self._lock:
                self._connections.append(connection)
            return connection
