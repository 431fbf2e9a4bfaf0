"""Work on one database over several connections: threads take the next object until none is left.

A server process that crashes takes all connections with it, so nobody knows at first whose work it was. What was under
way then is set aside and tried again at the end, one after the other: what loses its connection alone is to blame.
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

from polarvault.drill.place.server import Connection, DrillServer

Item = TypeVar("Item")
Result = TypeVar("Result")

# After a crash the server recovers first.
_RECONNECT_WAIT_S = 120.0
_RECONNECT_POLL_S = 0.2
# Until the crash has reached every process a new connection fails in many ways.
_CRASH_SETTLES_S = 10.0
_SETTLED_AFTER_S = 0.5
_ATTEMPTS_ALONE = 2


def work_through(
    server: DrillServer,
    dbname: str,
    items: Sequence[Item],
    work: Callable[[Connection, Item], Result],
    lost: Callable[[Item, psycopg.Error], Result],
    *,
    jobs: int,
    settings: Mapping[str, str],
) -> list[Result]:
    """Call work for each item, the first ones first, over `jobs` connections; raise psycopg.Error if none can be had.

    work deals with the server's errors itself and raises psycopg.Error only for a connection that is lost; lost makes
    a result of an item that ends the server process whenever it is worked on.
    """
    crew = _Crew(server, dbname, items, work, settings)
    threads = max(1, min(jobs, len(items)))
    with ThreadPoolExecutor(threads, thread_name_prefix="drill") as pool:
        try:
            for running in [pool.submit(crew.run) for _ in range(threads)]:
                running.result()
        except BaseException:
            # Also on an interruption: a statement may run for hours, and the pool waits for its threads.
            crew.stop()
            raise
    crew.try_again(lost)
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
        self._set_aside: list[Item] = []
        self._lost_at = float("-inf")

    def run(self) -> None:
        """Work until nothing is left; what loses its connection is set aside."""
        connection: Connection | None = None
        try:
            while not self._stopped.is_set():
                try:
                    item = self._items.popleft()
                except IndexError:
                    return
                if connection is None or connection.closed:
                    connection = self._connect()
                try:
                    self.results.append(self._work(connection, item))
                except psycopg.Error:
                    if not connection.closed or self._stopped.is_set():
                        raise
                    self._lost_at = time.monotonic()
                    self._set_aside.append(item)
        finally:
            if connection is not None:
                connection.close()

    def try_again(self, lost: Callable[[Item, psycopg.Error], Result]) -> None:
        """Work on what was set aside, alone, so that only the one to blame loses its connection each time."""
        for item in self._set_aside:
            self.results.append(self._alone(item, lost))

    def _alone(self, item: Item, lost: Callable[[Item, psycopg.Error], Result]) -> Result:
        problem: psycopg.Error | None = None
        for _ in range(_ATTEMPTS_ALONE):
            with self._connect() as connection:
                try:
                    return self._work(connection, item)
                except psycopg.Error as ended:
                    if not connection.closed:
                        raise
                    self._lost_at, problem = time.monotonic(), ended
        assert problem is not None
        return lost(item, problem)

    def stop(self) -> None:
        """Let nobody begin anything new, and cancel what runs."""
        self._stopped.set()
        with self._lock:
            for connection in self._connections:
                with suppress(psycopg.Error):
                    connection.cancel()

    def _connect(self) -> Connection:
        deadline = time.monotonic() + _RECONNECT_WAIT_S
        while True:
            try:
                connection = self._server.connect(self._dbname, settings=self._settings)
                if time.monotonic() < self._lost_at + _CRASH_SETTLES_S:
                    # A connection made before the server has noticed the crash is ended with all the others.
                    connection.execute("SELECT pg_sleep(%s)", [_SETTLED_AFTER_S])
            except psycopg.OperationalError as refused:
                # "starting up" and "in recovery mode" pass; there is nothing to wait on but the next answer.
                now = time.monotonic()
                is_passing = "the database system is" in str(refused) or now < self._lost_at + _CRASH_SETTLES_S
                if not is_passing or self._stopped.is_set() or now > deadline:
                    raise
                time.sleep(_RECONNECT_POLL_S)
                continue
            with self._lock:
                self._connections.append(connection)
            return connection
