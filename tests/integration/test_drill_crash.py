"""A page that makes the server crash: what is to blame is named, and everything else is read all the same."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass

import psycopg
import pytest

from polarvault.drill.look.parallel import work_through
from support.cluster import Cluster

pytestmark = pytest.mark.postgres


@dataclass
class Reached:
    """A server as the drill reaches one."""

    cluster: Cluster

    def connect(self, dbname: str, *, settings: object) -> psycopg.Connection[tuple[object, ...]]:
        return self.cluster.connect(dbname)


def test_only_the_object_that_crashes_the_server_is_lost(make_cluster: Callable[..., Cluster]) -> None:
    server = Reached(make_cluster(18, fill=False))

    def work(connection: psycopg.Connection[tuple[object, ...]], item: int) -> tuple[int, str]:
        if item == 5:
            # What a wild pointer does: all connections are lost, and the server recovers.
            os.kill(connection.info.backend_pid, signal.SIGKILL)
        connection.execute("SELECT pg_sleep(0.02)")
        return item, "read"

    def lost(item: int, problem: psycopg.Error) -> tuple[int, str]:
        return item, type(problem).__name__

    results = work_through(server, "postgres", range(12), work, lost, jobs=3, settings={})  # type: ignore[arg-type]
    assert sorted(item for item, _ in results) == list(range(12))
    assert [item for item, how in results if how != "read"] == [5]
