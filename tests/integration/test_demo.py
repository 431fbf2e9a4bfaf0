"""The demo from its first line to its last, and what is left when it is interrupted."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.program import run_polarvault, start_polarvault
from support.servers import POLARDB_VARIABLE, ServerPool, found_polardb, missing_reason

pytestmark = pytest.mark.postgres


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Fail when the test leaves a demo's directory or server behind."""
    before = set(Path("/tmp").glob("polarvault-demo-*"))
    yield
    left = set(Path("/tmp").glob("polarvault-demo-*")) - before
    assert not left
    servers = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert "-D /tmp/polarvault-demo-" not in servers


@pytest.fixture
def bindir(servers: ServerPool) -> str:
    """The embedded server's programs."""
    if 18 not in servers.installations:
        pytest.skip(missing_reason(18))
    return servers.installations[18].directory


@pytest.mark.usefixtures("nothing_left")
def test_the_demo_compares_every_table_and_prints_its_commands(bindir: str) -> None:
    told = run_polarvault("demo", "--bindir", bindir, timeout_s=240).stdout
    assert re.findall(r"^(\w+) .* same$", told, re.MULTILINE) == ["documents", "events", "accounts"]
    commands = re.findall(r"^\$ polarvault (\w+) ", told, re.MULTILINE)
    assert commands == [
        "check",
        "receivewal",
        "receivewal",
        "basebackup",
        "verifybackup",
        "restore",
        "restore",
        "drill",
        "repo",
        "backup",
        "backup",
        "list",
        "restore",
        "expire",
    ]
    assert "it cost what had changed, and everything came back" in told
    assert "backup successfully verified" in told
    assert "balances.sql: returned true" in told
    assert "every account is back" in told
    assert re.search(r"[1-9]\d* transactions were committed while the backup ran", told)
    assert "in recovery: no" in told


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing(bindir: Path, sent: signal.Signals) -> None:
    running = start_polarvault("demo", "--bindir", bindir)
    assert running.stdout is not None
    try:
        for line in running.stdout:
            if line.startswith("== Step 2"):
                break
        running.send_signal(sent)
        _, errors = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode != 0
    assert "Traceback" not in errors


@pytest.mark.polardb
@pytest.mark.usefixtures("nothing_left")
def test_the_demo_runs_on_shared_storage() -> None:
    found = found_polardb()
    if found is None:
        pytest.skip(f"no PolarDB: set {POLARDB_VARIABLE} to the bin directory of a PolarDB for PostgreSQL 15")
    told = run_polarvault("demo", "--polardb", timeout_s=300).stdout
    assert re.findall(r"^(\w+) .* same$", told, re.MULTILINE) == ["documents", "events", "accounts"]
    assert "backup successfully verified" in told
    assert "balances.sql: returned true" in told
    assert "every account is back" in told


def test_the_demo_says_what_it_misses(tmp_path: Path) -> None:
    refused = run_polarvault("demo", "--bindir", tmp_path, check=False)
    assert refused.returncode != 0
    assert "no PostgreSQL server programs" in refused.stderr
