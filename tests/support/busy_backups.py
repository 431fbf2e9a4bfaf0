"""Base backups with as much WAL between their start and end as a test wants, whatever the speed of the machine."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from polarvault.instance.model import Binaries
from support.cluster import Cluster
from support.program import program_environment
from support.tcp_proxy import TcpProxy
from support.waiting import wait_until

TIMEOUT_S = 120
# More than the answers before the first archive, less than any archive.
_STALL_BYTES = 100_000
_SENDS_FILES = "SELECT count(*) FROM pg_stat_progress_basebackup WHERE phase = 'streaming database files'"


def back_up_during(
    cluster: Cluster, target: Path, work: Callable[[], object], *options: str, installation: Binaries | None = None
) -> Path:
    """Take a backup with pg_basebackup; `work` is done between its start and its end.

    The network stands still while the server sends files: it waits as soon as the buffers of the connection are full.
    """
    program = (installation or cluster.installation).program("pg_basebackup")
    with TcpProxy(cluster.port) as proxy, open(f"{target}.log", "w+", encoding="utf-8") as log:
        proxy.stall_after(_STALL_BYTES)
        connection = f"host=127.0.0.1 port={proxy.port} user=postgres"
        tool = subprocess.Popen(
            [program, "-d", connection, "-c", "fast", "-N", "-D", target, *options],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=program_environment(None), cwd="/",
        )  # fmt: skip
        try:
            wait_until(lambda: cluster.query(_SENDS_FILES) == [(1,)] or tool.poll() is not None, "files are sent")
            work()
            proxy.resume()
            returncode = tool.wait(TIMEOUT_S)
        finally:
            tool.kill()
            tool.wait()
        log.seek(0)
        assert returncode == 0, log.read()
    return target


def write_wal(cluster: Cluster, megabytes: int) -> None:
    """Write WAL in records of all sizes, with a few transactions."""
    cluster.query(
        f"""
        SELECT count(pg_logical_emit_message(n % 2 = 0, 'filling', repeat('x', n * 37 % 5000)))
        FROM generate_series(1, {megabytes * 400}) n;
        UPDATE accounts SET balance = balance + 1 WHERE id <= 500
        """
    )
