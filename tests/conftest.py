"""Fixtures for all tests: real servers, found on this machine and started once, and a place for what they write."""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck
from hypothesis import core as hypothesis_core
from hypothesis import settings as hypothesis_settings

from polarvault.demo.reachable import reachable
from polarvault.instance.account import server_account
from polarvault.instance.model import Binaries
from polarvault.instance.programs import describe_build
from support.bucket_server import BucketServer, bucket_server
from support.cluster import Cluster
from support.object_servers import SEAWEEDFS_MISSING, ObjectServer, seaweedfs_program, shared_seaweedfs
from support.polar_cluster import MISSING as POLARDB_MISSING
from support.polar_cluster import PolarCluster
from support.replay_server import MISSING as RECORDINGS_MISSING
from support.replay_server import ReplayServer, recordings
from support.servers import (
    EXPECTED,
    ServerPool,
    features_of,
    found_installations,
    found_polardb,
    missing_reason,
    session_directory,
)
from support.two_archive_proxy import TwoArchiveProxy

# Quick groups first, so that a broken parser shows before any server is started.
ORDER = ("unit", "property", "contract", "golden", "docs", "integration", "fault")
# Where tests start servers or work against the clock: `make test-fast` leaves out what is not marked `quick` there.
SLOW = ("integration", "fault")


def pytest_configure(config: pytest.Config) -> None:
    # The servers' user has to read what tests write; those about modes say which.
    os.umask(0o022)
    # Run in the background or by nohup, we would hand ignored signals on to the programs that tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    # A busy machine is no failure: nothing here asserts how long something takes.
    hypothesis_settings.register_profile("polarvault", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    hypothesis_settings.load_profile("polarvault")
    # One seed for hypothesis and for the order of tests, always printed: any run can be repeated.
    if hasattr(config, "workerinput"):
        # Parallel workers have to put the tests into the same order.
        hypothesis_core.global_force_seed = config.workerinput["polarvault_seed"]
    elif config.getoption("--hypothesis-seed", None) is None:
        hypothesis_core.global_force_seed = random.randrange(2**31)
    else:
        hypothesis_core.global_force_seed = int(config.getoption("--hypothesis-seed"))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Hand the seed to a parallel worker (a hook of pytest-xdist)."""
    node.workerinput["polarvault_seed"] = hypothesis_core.global_force_seed


def pytest_report_header() -> list[str]:
    found = [describe_build(installation) for installation in found_installations().values()]
    if polardb := found_polardb():
        found.append(describe_build(polardb))
    seed = hypothesis_core.global_force_seed
    return [
        f"servers: {', '.join(found) or 'none'}; they run as user {server_account().name}",
        f"seed: {seed} (repeat with --hypothesis-seed={seed})",
    ]


# Before pytest's own: that one then brings tests with the same parameter of a module's fixture together again.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    shuffled = random.Random(hypothesis_core.global_force_seed)
    # Whole modules change places, so that fixtures of a module are set up once.
    modules = sorted({item.path for item in items})
    shuffled.shuffle(modules)
    place = {path: number for number, path in enumerate(modules)}
    shuffled.shuffle(items)
    root = Path(__file__).parent

    def group_of(item: pytest.Item) -> str:
        return item.path.relative_to(root).parts[0] if item.path.is_relative_to(root) else ""

    def key(item: pytest.Item) -> tuple[int, int]:
        group = group_of(item)
        return (ORDER.index(group) if group in ORDER else len(ORDER), place[item.path])

    items.sort(key=key)
    # Marked here, before -m looks at it, so that nobody has to think of it in a new file.
    for item in items:
        if group_of(item) in SLOW and item.get_closest_marker("quick") is None:
            item.add_marker("slow")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise tests of `any_pg` over every version found; expected ones that are missing show as skips."""
    if "any_pg" in metafunc.fixturenames:
        majors = sorted({*found_installations(), *EXPECTED})
        metafunc.parametrize("any_pg", majors, indirect=True, ids=[f"pg{major}" for major in majors])


def pytest_runtest_call(item: pytest.Function) -> None:
    """Start a module's server again that a test before this one has left dead: one failure must not become several."""
    for cluster in item.funcargs.values():
        if isinstance(cluster, Cluster) and not cluster.is_running():
            cluster.start()


@pytest.fixture(scope="session")
def servers() -> Iterator[ServerPool]:
    """All shared clusters; `servers.installations` maps major versions to programs."""
    with session_directory() as directory:
        pool = ServerPool(directory)
        yield pool
        pool.close()


def _shared(servers: ServerPool, major: int) -> Cluster:
    if major not in servers.installations:
        pytest.skip(missing_reason(major))
    return servers.get(major)


@pytest.fixture
def any_pg(request: pytest.FixtureRequest, servers: ServerPool) -> Cluster:
    """The shared cluster of each version in turn: running, filled; a test leaves it as it was."""
    return _shared(servers, request.param)


@pytest.fixture
def pg18(servers: ServerPool) -> Cluster:
    """The shared PostgreSQL 18: running, filled; a test leaves it as it was."""
    return _shared(servers, 18)


@pytest.fixture
def pg15(servers: ServerPool) -> Cluster:
    """The shared PostgreSQL 15: running, filled; a test leaves it as it was."""
    return _shared(servers, 15)


@pytest.fixture
def feature_pg(servers: ServerPool) -> Callable[..., Cluster]:
    """A function that returns the newest shared cluster built with the named features (ssl, lz4, zstd), or skips."""

    def find(*features: str, at_least: int = 13) -> Cluster:
        for major, installation in reversed(servers.installations.items()):
            if major >= at_least and features_of(installation) >= set(features):
                return servers.get(major)
        pytest.skip(f"no PostgreSQL {at_least} or newer built with {', '.join(features)} is installed")

    return find


@pytest.fixture
def installation(servers: ServerPool) -> Callable[[int], Binaries]:
    """A function that returns the programs of a major version, or skips."""

    def find(major: int) -> Binaries:
        if major not in servers.installations:
            pytest.skip(missing_reason(major))
        return servers.installations[major]

    return find


@pytest.fixture
def workspace() -> Iterator[Path]:
    """An empty directory with a short path that the servers' user owns: for backups, restored clusters, sockets."""
    directory = Path(tempfile.mkdtemp(prefix="pv-", dir="/tmp"))
    directory.chmod(0o755)
    server_account().own(directory)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def make_cluster(workspace: Path, installation: Callable[[int], Binaries]) -> Iterator[Callable[..., Cluster]]:
    """A function that makes a cluster of the test's own, with the arguments of `Cluster.made`; removed afterwards.

    It takes the major version first: ``make_cluster(18, wal_segment_mb=1)``.
    """
    made: list[Cluster] = []

    def make(major: int, **arguments: Any) -> Cluster:
        cluster = Cluster.made(installation(major), workspace / f"cluster{len(made)}", **arguments)
        made.append(cluster)
        return cluster

    yield make
    for cluster in made:
        cluster.remove()


@pytest.fixture
def start_restored(workspace: Path, installation: Callable[[int], Binaries]) -> Iterator[Callable[..., Cluster]]:
    """A function that starts a restored data directory, ``start_restored(18, path)``, and stops it afterwards."""
    started: list[Cluster] = []

    def start(major: int, data: Path, *, settings: dict[str, str] | None = None) -> Cluster:
        cluster = Cluster.adopt(installation(major), data, workspace / f"restored{len(started)}")
        cluster.configure(settings or {})
        started.append(cluster)
        cluster.start()
        return cluster

    yield start
    for cluster in started:
        cluster.remove()


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    """SeaweedFS, a real S3 server with the bucket `object_servers.BUCKET`: one for all workers of a run."""
    if seaweedfs_program() is None:
        pytest.skip(SEAWEEDFS_MISSING)
    base = tmp_path_factory.getbasetemp()
    run = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with shared_seaweedfs(run / "seaweedfs") as server:
        yield server


@pytest.fixture
def bucket() -> Iterator[BucketServer]:
    """A small object store, empty, that fails when it is told to."""
    with bucket_server() as server:
        yield server


@pytest.fixture(scope="session")
def polardb_installation(servers: ServerPool) -> Binaries:
    """The programs that POLARDB_BIN names, runnable by the servers' user; or skips."""
    found = found_polardb()
    if found is None:
        pytest.skip(POLARDB_MISSING)
    return reachable(found, server_account(), servers.directory)


@pytest.fixture(scope="session")
def polardb(servers: ServerPool, polardb_installation: Binaries) -> Iterator[PolarCluster]:
    """The shared PolarDB primary: running, filled, 16 MB segments; a test leaves it as it was."""
    cluster = PolarCluster.made_polar(polardb_installation, servers.directory / "polar")
    yield cluster
    cluster.remove()


@pytest.fixture
def make_polardb(workspace: Path, polardb_installation: Binaries) -> Iterator[Callable[..., PolarCluster]]:
    """A function that makes a PolarDB primary of the test's own, with the arguments of `PolarCluster.made_polar`."""
    made: list[PolarCluster] = []

    def make(**arguments: Any) -> PolarCluster:
        cluster = PolarCluster.made_polar(polardb_installation, workspace / f"polar{len(made)}", **arguments)
        made.append(cluster)
        return cluster

    yield make
    for cluster in made:
        cluster.remove()


@pytest.fixture
def replay_server() -> Iterator[ReplayServer]:
    """A server that gives the recorded answers of a real PolarDB; or skips."""
    directory = recordings()
    if directory is None:
        pytest.skip(RECORDINGS_MISSING)
    with ReplayServer(directory) as server:
        yield server


@pytest.fixture
def two_archives(make_cluster: Callable[..., Cluster]) -> Iterator[tuple[Cluster, TwoArchiveProxy]]:
    """A PostgreSQL 15 of the test's own and, before it, a proxy that gives its base backups PolarDB's shape."""
    cluster = make_cluster(15)
    with TwoArchiveProxy(cluster.port) as proxy:
        yield cluster, proxy
