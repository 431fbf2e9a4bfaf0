"""Either tool goes on in the other's directory, wherever it left off."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from polarvault.instance.model import Binaries
from polarvault.model.lsn import Lsn
from support.cluster import Cluster
from support.receiving import KEEP_WAL, assert_same_wal, end_of_wal, receiver, segments, write_wal
from support.servers import ServerPool, features_of, missing_reason
from support.waiting import wait_until

pytestmark = pytest.mark.postgres

MB = 1 << 20


@pytest.fixture(scope="module")
def server(servers: ServerPool) -> Iterator[Cluster]:
    """A PostgreSQL 15 with segments of 1 MB that keeps them all; its tools know gzip and lz4."""
    if 15 not in servers.installations:
        pytest.skip(missing_reason(15))
    with Cluster.made(
        servers.installations[15], servers.directory / "resuming", wal_segment_mb=1,
        settings=KEEP_WAL | {"max_wal_size": "1GB"},
    ) as cluster:  # fmt: skip
        yield cluster


def receive(
    archive: Path, server: Cluster, *options: str, theirs: Binaries | None, size_bytes: int, kill: bool = False
) -> Lsn:
    """Run a receiver until it has received what the server writes now; stop or kill it; return how far that is."""
    with receiver(archive, server.conninfo(), "-s", "1", "-v", *options, theirs=theirs) as running:
        running.wait_for("starting log streaming at")
        end = write_wal(server, size_bytes)
        if theirs is None:
            running.wait_flushed(end)
        # Without a slot the server is told only what has been written.
        question = f"SELECT coalesce(max(write_lsn), '0/0') >= '{end}' FROM pg_stat_replication"
        running.wait_until(lambda: server.query(question) == [(True,)], f"{end} is acknowledged")
        if kill:
            running.kill()
        else:
            # Older versions of theirs know no other signal.
            running.stop(signal.SIGINT)
    wait_until(lambda: server.backends("walsender") == 0, "its WAL sender is gone")
    return end


@pytest.mark.parametrize(
    ("first", "options"),
    [("ours", []), ("theirs", []), ("theirs", ["-Z", "gzip:1"]), ("ours", ["-Z", "lz4"])],
    ids=["ours-plain", "theirs-plain", "theirs-gzip", "ours-lz4"],
)
def test_the_other_tool_goes_on_from_the_middle_of_a_segment(
    server: Cluster, workspace: Path, options: list[str], first: str
) -> None:
    if options == ["-Z", "lz4"] and "lz4" not in features_of(server.installation):
        pytest.skip("this PostgreSQL 15 was built without lz4")
    archive = workspace / "wal"
    start = end_of_wal(server)
    turns = [None, server.installation] if first == "ours" else [server.installation, None]
    for turn, size in zip([*turns, turns[0]], (2 * MB, 3 * MB, MB // 2), strict=True):
        end = receive(archive, server, *options, theirs=turn, size_bytes=size)
        assert_same_wal(archive, server, up_to=end, since=start)
        assert len(segments(archive, partial=True)) <= 1
    assert len({Path(name).suffixes[0] for name in segments(archive) if "." in name} - {".partial"}) <= 1


@pytest.mark.parametrize(
    "options",
    [[], ["--synchronous", "-Z", "gzip:1"], ["--synchronous", "-Z", "lz4"], ["--synchronous", "-Z", "zstd"]],
    ids=" ".join,
)
def test_a_killed_receiver_goes_on_without_a_gap(server: Cluster, workspace: Path, options: list[str]) -> None:
    archive = workspace / "wal"
    start = end_of_wal(server)
    for size in (3 * MB, MB // 3):
        end = receive(archive, server, *options, theirs=None, size_bytes=size, kill=True)
        # Whatever the server was told is here, in the files as the kill left them.
        assert_same_wal(archive, server, up_to=end, since=start)
    end = receive(archive, server, *options, theirs=None, size_bytes=10_000)
    assert_same_wal(archive, server, up_to=end, since=start)
    assert len(segments(archive, partial=True)) <= 1


def test_compression_may_change_between_runs(server: Cluster, workspace: Path) -> None:
    archive = workspace / "wal"
    start = end_of_wal(server)
    for options in ([], ["-Z", "gzip"], ["-Z", "lz4"], []):
        end = receive(archive, server, *options, "--synchronous", theirs=None, size_bytes=2 * MB)
    # What an earlier run left in another form stays beside it; whole segments are there in one form each.
    whole = [name[:24] for name in segments(archive, partial=False)]
    assert len(set(whole)) == len(whole)
    for name in segments(archive, partial=True):
        if name[:24] in whole:
            (archive / name).unlink()
    assert_same_wal(archive, server, up_to=end, since=start)


def test_segments_that_the_other_tool_left_cut_are_fetched_again(server: Cluster, workspace: Path) -> None:
    archive = workspace / "wal"
    start = end_of_wal(server)
    receive(archive, server, theirs=server.installation, size_bytes=2 * MB)
    newest = archive / segments(archive, partial=False)[-1]
    newest.write_bytes(newest.read_bytes()[:100_000])
    with receiver(archive, server.conninfo(), "-s", "1") as running:
        running.wait_for("has 100000 bytes instead of 1048576, skipping")
        end = write_wal(server, MB)
        running.wait_flushed(end)
        running.stop()
    assert_same_wal(archive, server, up_to=end, since=start)


def test_new_files_get_the_modes_of_the_server(make_cluster: Callable[..., Cluster], workspace: Path) -> None:
    cluster = make_cluster(18, wal_segment_mb=1, fill=False, initdb_options=["--allow-group-access"])
    for who, theirs in (("ours", None), ("theirs", cluster.installation)):
        receive(workspace / who, cluster, theirs=theirs, size_bytes=2 * MB)
        for name in segments(workspace / who):
            assert (workspace / who / name).stat().st_mode & 0o777 == 0o640
