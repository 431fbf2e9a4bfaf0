"""The stand-ins for a PolarDB server: recorded answers, and the two-archive proxy."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile

import psycopg
import pytest

from support.cluster import Cluster
from support.raw_client import take
from support.replay_server import ReplayServer
from support.two_archive_proxy import TwoArchiveProxy


def names(archive: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as reader:
        return [member.name.removeprefix("./") for member in reader]


def check_shape(rows: list[tuple[bytes | None, ...]], archives: dict[str, bytes], manifest: bytes) -> None:
    assert [(row[0], row[1], row[3]) for row in rows] == [(None, None, None), (None, None, b"1")]
    assert list(archives) == ["base.tar", "data.tar"]
    local, shared = names(archives["base.tar"]), names(archives["data.tar"])
    assert "backup_label" in local
    assert "global/pg_control" in shared
    assert "global/pg_control" not in local
    assert "pg_wal" in shared
    assert "pg_wal" not in local
    assert "base/5" in local
    assert "pg_multixact/offsets/0000" in local
    assert "pg_multixact/offsets/0000" in shared
    fields = json.loads(manifest)
    paths = [entry["Path"] for entry in fields["Files"]]
    assert paths.count("pg_multixact/offsets/0000") == 2
    assert paths.index("PG_VERSION") < paths.index("global/pg_control")
    before = manifest[: manifest.index(b'"Manifest-Checksum"')]
    assert hashlib.sha256(before).hexdigest() == fields["Manifest-Checksum"]


def test_recorded_answers_have_the_two_halves(replay_server: ReplayServer) -> None:
    check_shape(*take(f"host=127.0.0.1 port={replay_server.port} user=postgres"))


@pytest.mark.postgres
def test_the_proxy_gives_postgresql_the_two_halves(two_archives: tuple[Cluster, TwoArchiveProxy]) -> None:
    cluster, proxy = two_archives
    check_shape(*take(cluster.tcp_conninfo(port=proxy.port)))
    # Ordinary connections are untouched, and the server is as usable as before.
    with psycopg.connect(cluster.tcp_conninfo(port=proxy.port)) as connection:
        assert connection.execute("SELECT count(*) FROM accounts").fetchone() == (5000,)


def test_recorded_answers_come_with_slots_and_settings(replay_server: ReplayServer) -> None:
    conninfo = f"host=127.0.0.1 port={replay_server.port} user=postgres replication=true"
    with psycopg.connect(conninfo, autocommit=True) as connection:

        def answer(command: str) -> list[str]:
            try:
                row = connection.execute(command.encode()).fetchone() or ()
            except psycopg.Error as problem:
                return [problem.sqlstate or ""]
            # The recorded server's encoding is SQL_ASCII, so its texts arrive as bytes.
            return [value.decode() if isinstance(value, bytes) else str(value) for value in row]

        assert answer("SHOW polar_enable_shared_storage_mode") == ["on"]
        assert answer("SHOW wal_segment_size") == ["16MB"]
        assert answer("SHOW no_such_setting") == ["42704"]
        assert answer("IDENTIFY_SYSTEM")[0] == replay_server.index["identify_system"][0]
        create = 'CREATE_REPLICATION_SLOT "mine" TEMPORARY PHYSICAL (RESERVE_WAL)'
        assert answer(create)[0] == "mine"
        assert answer(create) == ["42710"]
        assert answer("BASE_BACKUP (NO_SUCH_OPTION)") == ["42601"]


def test_a_base_backup_is_chosen_by_its_options(replay_server: ReplayServer) -> None:
    def chosen(options: str) -> str:
        return replay_server.base_backup_command(f"BASE_BACKUP (LABEL 'WAL', {options})")

    assert "COMPRESSION 'zstd'" in chosen("COMPRESSION 'zstd', TARGET 'client'")
    assert re.search(r"\bWAL,", chosen("WAL, WAIT 0"))
    assert "CRC32C" in chosen("PROGRESS, WAIT 0, MANIFEST 'yes'")
