"""Hooks of real commands: each tells how it ended, and its own result is the same with them and without."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.cluster import Cluster
from support.drills import Drills
from support.program import run_polarvault, start_polarvault
from support.waiting import wait_until

pytestmark = pytest.mark.postgres


class Hooked:
    """A configuration with hooks that keep what they are told."""

    def __init__(self, cluster: Cluster, workspace: Path) -> None:
        self.workspace, self.heard = workspace, workspace / "heard"
        self.heard.mkdir()
        hook = workspace / "hook"
        hook.write_text(f'#!/bin/sh\ncat > {self.heard}/$(date +%s%N)-$1\necho "hook says $1"\nexit $2\n')
        hook.chmod(0o755)
        self.configuration = workspace / "polarvault.toml"
        self.configuration.write_text(
            f'[repository.main]\naddress = "{workspace}/repository"\n'
            f'[defaults]\non_failure = ["{hook}", "failed", "0"]\non_success = ["{hook}", "went-well", "7"]\n'
            f'[cluster.shop]\nconnection = "{cluster.conninfo()}"\nretention = {{ keep = 1 }}\n'
        )

    def run(self, *words: str, status: int, **how: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Run a command with --json; return its object, and what the only hook that was run was told."""
        done = run_polarvault(*words, "--config", self.configuration, "--json", check=False, **how)
        assert done.returncode == status, done.stdout + done.stderr
        (told,) = self.heard.iterdir()
        found = json.loads(told.read_text())
        assert told.name.endswith("failed" if status else "went-well")
        # Its output is nothing for whoever reads the object.
        assert "hook says" in done.stderr
        told.unlink()
        return json.loads(done.stdout), found


def test_each_command_tells_how_it_ended(make_cluster: Callable[..., Cluster], workspace: Path) -> None:
    cluster = make_cluster(18)
    run_polarvault("repo", "init", workspace / "repository")
    hooked = Hooked(cluster, workspace)
    printed, told = hooked.run("backup", "shop", status=0)
    assert (told["event"], told["cluster"], told["command"], told["exit_status"]) == ("success", "shop", "backup", 0)
    assert told["label"] == printed["label"]
    # The hook failed, and the backup did not.
    assert "the hook on_success" in printed["warnings"][-1]
    assert "failed with exit status 7" in printed["warnings"][-1]
    _, told = hooked.run("verify", "shop", status=0)
    assert told["verified"][0]["label"] == printed["label"]
    _, told = hooked.run("expire", "shop", status=0)
    assert told["repositories"][0]["backups"][0]["kept"] is True
    drills = Drills(workspace)
    words = drills.options(cluster, Path("shop"), "--config", str(hooked.configuration))
    _, told = hooked.run(*words, status=0)
    assert (told["command"], told["held"]) == ("drill", True)
    # Failures: an error, and what was found.
    printed, told = hooked.run("backup", "shop", "-d", "host=/nonexistent", status=1)
    assert told["event"] == "failure"
    assert told["error"]["id"] == printed["error"]["id"] == "connection-failed"
    _, told = hooked.run("expire", "crm", "--keep", "1", status=2)
    assert (told["cluster"], told["error"]["id"]) == ("crm", "usage")
    pack = max((workspace / "repository/clusters/shop/packs").glob("*/000000"))
    content = bytearray(pack.read_bytes())
    content[len(content) // 2] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(content)
    _, told = hooked.run("verify", "shop", status=1)
    assert (told["event"], told["error"], told["verified"][0]["good"]) == ("failure", None, False)
    printed, told = hooked.run(*words, status=3)
    assert (told["event"], told["held"]) == ("failure", False)


def test_a_stream_tells_when_an_outage_begins_and_when_it_is_over(
    make_cluster: Callable[..., Cluster], workspace: Path
) -> None:
    cluster = make_cluster(15, wal_segment_mb=1)
    run_polarvault("repo", "init", workspace / "repository")
    heard = workspace / "heard"
    heard.mkdir()
    hook = workspace / "hook"
    hook.write_text(f"#!/bin/sh\ncat > {heard}/new && mv {heard}/new {heard}/$(date +%s%N)\n")
    hook.chmod(0o755)
    configuration = workspace / "polarvault.toml"
    configuration.write_text(
        f'[repository.main]\naddress = "{workspace}/repository"\n[cluster.shop]\nconnection = "{cluster.conninfo()}"\n'
        f'on_success = ["{hook}"]\non_failure = ["{hook}"]\n'
    )

    def told(count: int) -> dict[str, Any]:
        """Return what was told last, once so much was."""
        wait_until(lambda: len(list(heard.glob("1*"))) == count, f"the hook was told {count} times")
        found: dict[str, Any] = json.loads(max(heard.glob("1*")).read_text())
        assert (found["command"], found["cluster"]) == ("wal stream", "shop")
        return found

    words = ["wal", "stream", "shop", "--slot", "s", "--config", str(configuration)]
    environment = {"XDG_STATE_HOME": str(workspace / "state")}
    with start_polarvault(*words, environment=environment) as running:
        try:
            wait_until(lambda: cluster.query("SELECT active FROM pg_replication_slots") == [(True,)], "it streams")
            cluster.stop("immediate")
            begun = told(1)
            assert begun["event"] == "warning"
            assert begun["error"]["message"]
            cluster.start()
            over = told(2)
            assert (over["event"], over["error"]) == ("success", None)
            assert over["notes"][0].startswith("streaming again from PostgreSQL 15")
            running.send_signal(signal.SIGTERM)
            assert running.wait(60) == 0
        finally:
            running.kill()
    # That it was told to stop is no news; that it gives up is.
    cluster.stop("immediate")
    done = run_polarvault(*words, "--no-loop", environment=environment, check=False)
    failed = told(3)
    assert (failed["event"], failed["exit_status"]) == ("failure", done.returncode)
    assert failed["error"]["id"] == "connection-failed"
