"""The bad network itself."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from support.cluster import Cluster
from support.tcp_proxy import TcpProxy
from support.waiting import wait_until

pytestmark = pytest.mark.postgres
LARGE = "SELECT repeat('x', 1000) FROM generate_series(1, 2000)"


def test_queries_pass_even_byte_by_byte(pg18: Cluster) -> None:
    with TcpProxy(pg18.port) as proxy:
        proxy.drip(1)
        with psycopg.connect(pg18.tcp_conninfo(port=proxy.port)) as connection:
            assert connection.execute("SELECT 42").fetchone() == (42,)


@pytest.mark.parametrize("abruptly", [True, False])
def test_a_connection_is_cut_in_the_middle_of_an_answer(pg18: Cluster, *, abruptly: bool) -> None:
    with TcpProxy(pg18.port) as proxy, psycopg.connect(pg18.tcp_conninfo(port=proxy.port)) as connection:
        proxy.cut_after(100_000, abruptly=abruptly)
        with pytest.raises(psycopg.OperationalError):
            connection.execute(LARGE)


def test_a_stalled_answer_arrives_after_all(pg18: Cluster) -> None:
    with TcpProxy(pg18.port) as proxy, psycopg.connect(pg18.tcp_conninfo(port=proxy.port)) as connection:
        proxy.stall_after(100_000)
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(lambda: connection.execute(LARGE).fetchall())
            wait_until(lambda: pg18.query("SELECT 1 FROM pg_stat_activity WHERE query = %s", [LARGE]), "the query runs")
            assert not answer.done()
            proxy.resume()
            assert len(answer.result(60)) == 2000


def test_a_refusing_port_comes_back(pg18: Cluster) -> None:
    with TcpProxy(pg18.port) as proxy:
        conninfo = pg18.tcp_conninfo(port=proxy.port)
        with psycopg.connect(conninfo) as connection:
            proxy.refuse()
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1")
        with pytest.raises(psycopg.OperationalError, match="refused"):
            psycopg.connect(conninfo)
        proxy.restart()
        with psycopg.connect(conninfo) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
