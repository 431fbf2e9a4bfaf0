"""The life of an encrypted repository in a bucket: backup, marks, a target, a second place, expire."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.cluster import Cluster
from support.object_servers import BUCKET, ObjectServer
from support.program import run_polarvault

pytestmark = pytest.mark.postgres


def test_backups_live_encrypted_in_a_bucket_and_come_back_by_its_key_alone(
    seaweedfs: ObjectServer, make_cluster: Callable[..., Cluster], workspace: Path
) -> None:
    settings, reader = seaweedfs.settings, seaweedfs.reader
    writing = {
        "AWS_ENDPOINT_URL": settings.endpoint or "",
        "AWS_ACCESS_KEY_ID": settings.access_key or "",
        "AWS_SECRET_ACCESS_KEY": settings.secret_key or "",
    }
    reading = writing | {
        "AWS_ACCESS_KEY_ID": reader.access_key or "", "AWS_SECRET_ACCESS_KEY": reader.secret_key or ""
    }  # fmt: skip
    address = f"s3://{BUCKET}/life-{os.getpid()}"
    key = workspace / "key"
    how = ["--repo", address, "--key-file", str(key)]
    cluster = make_cluster(15)

    def run(*words: Any, environment: dict[str, str] = writing, status: int = 0) -> dict[str, Any]:
        done = run_polarvault(*map(str, words), "--json", environment=environment, check=False)
        assert done.returncode == status, done.stdout + done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    run("repo", "init", address, "--new-key-file", key)
    # Who runs the restored server has to be able to read the key.
    key.chmod(0o640)
    cluster.account.own(key)
    first = run("backup", "shop", *how, "-d", cluster.conninfo())
    cluster.query("CREATE TABLE later AS SELECT 1 AS one")
    second = run("backup", "shop", *how, "-d", cluster.conninfo())
    assert second["parent"] == first["label"]
    run("pin", f"shop@{first['label']}", *how)
    listed = run("list", "shop", *how)["clusters"][0]["backups"]
    assert [(one["state"], one["pinned"]) for one in listed] == [("good", True), ("good", False)]
    # Without the key nothing opens; the second place needs none.
    assert run("list", "shop", "--repo", address, status=1)["error"] is not None
    copied = run("repo", "sync", address, workspace / "copy")
    # Two of one second have no order in their names.
    assert sorted(copied["backups"]) == sorted(f"shop@{one['label']}" for one in (first, second))
    assert run("verify", "--all", "--repo", workspace / "copy", "--key-file", key)["verified"][1]["good"] is True
    wanted = cluster.hashes()
    for number, (place, word, environment) in enumerate(
        ((address, "shop", reading), (str(workspace / "copy"), f"shop@{second['label']}", writing))
    ):
        server = Cluster(cluster.installation, workspace)
        server.data = workspace / f"restored{number}"
        # The server that recovers fetches from the bucket itself, with the rights to read.
        target = ["--target", "immediate", "--target-action", "promote"] if place == address else []
        try:
            result = run(
                "restore", word, "--repo", place, "--key-file", key, "-D", server.data, "--port", server.port,
                "--bindir", cluster.installation.directory, "--set", f"unix_socket_directories={workspace}",
                "--set", "fsync=off", "-N", "--start", *target, environment=environment,
            )  # fmt: skip
            assert result["server"]["in_recovery"] is False
            assert server.hashes() == wanted
            settings_text = (server.data / "postgresql.auto.conf").read_text()
            assert ("wal fetch --repo" in settings_text) == bool(target)
            assert (settings.secret_key or "") not in settings_text
        finally:
            server.stop("immediate")
    # A drill's server reaches no bucket: what it needs of the WAL is there before it starts.
    (workspace / "scratch").mkdir(mode=0o711)
    drilled = run(
        "drill", "shop", *how, "--target", "latest", "--scratch", workspace / "scratch", "-N",
        "--report", workspace / "drill", "--bindir", cluster.installation.directory, environment=reading,
    )  # fmt: skip
    assert drilled["held"] is True
    # What was restored becomes an older backup, and little of it is fetched.
    delta = run(
        "restore", f"shop@{first['label']}", *how, "-D", workspace / "restored0", "--delta", "-N", environment=reading
    )["delta"]
    assert 0 < delta["fetched_bytes"] < first["stored_bytes"] / 2
    run("unpin", f"shop@{first['label']}", *how)
    expired = run("expire", "shop", *how, "--keep", "1", "--safety-time", "1s")["repositories"][0]
    assert [one["kept"] for one in expired["backups"]] == [False, True]
    assert run("repo", "check", "--read-data", *how)["problems"] == []
    assert [one["label"] for one in run("list", *how)["clusters"][0]["backups"]] == [second["label"]]
