"""`polarvault check CLUSTER`: a server and its repository, end to end."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from support.cluster import Cluster
from support.configured_site import ConfiguredSite
from support.json_page import checked
from support.object_servers import BUCKET, ObjectServer
from support.polar_cluster import PolarCluster
from support.program import run_polarvault, start_polarvault
from support.waiting import wait_until

pytestmark = pytest.mark.postgres


class Site(ConfiguredSite):
    """A server and a repository into which nothing is archived yet; another one is not there."""

    def __init__(self, cluster: Cluster, workspace: Path) -> None:
        super().__init__(cluster, workspace)
        self.configure("retention = { keep = 1 }", "[repository.gone]", f'address = "{workspace}/gone"')

    def check(self, *words: object, worst: str = "ok") -> dict[str, dict[str, Any]]:
        """Return the findings about the repository, by their names; the worst of them is known beforehand."""
        done = run_polarvault(
            "check",
            "shop",
            "--config",
            str(self.configuration),
            "--json",
            *map(str, words),
            as_server=True,
            check=False,
        )
        document = checked("check", done.stdout, status=done.returncode)
        assert {"ok": 0, "warning": 1, "problem": 2}[document["status"]] == done.returncode
        wanted = ("repository", "wal-switch", "next-expiry")
        found = {one["check"]: one for one in document["findings"] if one["check"].startswith(wanted)}
        order = ["ok", "warning", "problem"]
        assert max((one["severity"] for one in found.values()), key=order.index) == worst, found
        return found


def test_a_segment_that_is_switched_arrives_and_one_that_goes_elsewhere_does_not(
    make_cluster: Callable[..., Cluster], workspace: Path
) -> None:
    site = Site(make_cluster(15, wal_segment_mb=1), workspace)
    # Nothing is archived, and nothing is there.
    before = site.check()
    assert before["repository-cluster"]["message"] == "it holds nothing of shop yet"
    assert before["repository-room"]["severity"] == "ok"
    assert "first backup" in before["repository-room"]["message"]
    assert "wal-switch" not in before
    site.archive()
    ((lsn,),) = site.cluster.query("SELECT pg_walfile_name(pg_current_wal_lsn())")
    site.check()
    # Nothing is changed unasked.
    assert site.cluster.query("SELECT pg_walfile_name(pg_current_wal_lsn())") == [(lsn,)]
    # Twice: where nothing was written in between, there is something to switch all the same.
    for _ in range(2):
        switched = site.check("--switch-wal")
        assert "has arrived within" in switched["wal-switch"]["message"]
    site.run("backup", "shop", "--config", site.configuration)
    found = site.check("--switch-wal")
    assert found["next-expiry"]["message"].startswith("the next expire keeps 1 backups and removes 0")
    objects = {path for path in site.repository.rglob("*") if path.is_file()}
    assert not [path for path in objects if "probe" in path.name or "intents" in path.parts]
    (workspace / "elsewhere").mkdir(mode=0o777)
    (workspace / "elsewhere").chmod(0o777)
    site.archive(f"cp %p {workspace}/elsewhere/%f")
    late = site.check("--switch-wal", "--switch-timeout", 1, worst="problem")
    assert late["wal-switch"]["severity"] == "problem"
    assert "has not arrived within 1 s" in late["wal-switch"]["message"]
    astray = site.check(worst="problem")["repository-wal"]
    assert astray["severity"] == "problem"
    assert "and it is not here" in astray["message"]


def test_a_repository_that_is_away_and_a_role_that_may_not_switch(
    make_cluster: Callable[..., Cluster], workspace: Path
) -> None:
    site = Site(make_cluster(18), workspace)
    site.archive()
    away = site.check("--repo", "gone", worst="problem")
    assert away.keys() == {"repository"}
    assert away["repository"]["severity"] == "problem"
    site.cluster.query("CREATE ROLE humble LOGIN REPLICATION")
    words = ["-d", site.cluster.tcp_conninfo(user="humble"), "--switch-wal"]
    refused = site.check(*words, worst="warning")["wal-switch"]
    assert "may not switch" in refused["message"]
    site.cluster.query("GRANT EXECUTE ON FUNCTION pg_switch_wal() TO humble")
    assert "has arrived" in site.check(*words)["wal-switch"]["message"]


def test_what_goes_with_a_cluster_alone_is_refused_without_one() -> None:
    for words in (["--switch-wal"], ["--repo", "main"]):
        done = run_polarvault("check", "--json", *words, check=False)
        assert done.returncode == 2
        assert words[0] in json.loads(done.stdout)["error"]["message"]


def test_rights_in_a_bucket_are_those_of_the_configured_role(
    seaweedfs: ObjectServer, pg15: Cluster, workspace: Path
) -> None:
    settings, reader = seaweedfs.settings, seaweedfs.reader
    address = f"s3://{BUCKET}/check-{os.getpid()}"
    keys = {"writer": (settings.access_key, settings.secret_key), "reader": (reader.access_key, reader.secret_key)}
    environments = {
        name: {
            "AWS_ENDPOINT_URL": settings.endpoint or "",
            "AWS_ACCESS_KEY_ID": access or "",
            "AWS_SECRET_ACCESS_KEY": secret or "",
        }
        for name, (access, secret) in keys.items()
    }

    def run(who: str, *words: str) -> dict[str, Any]:
        where = [] if "init" in words else ["--repo", address]
        done = run_polarvault(*words, *where, "--json", environment=environments[who], check=False)
        found: dict[str, Any] = json.loads(done.stdout)
        assert found["error"] is None, found
        return found

    run("writer", "repo", "init", address, "--new-key-file", str(workspace / "key"))
    key = ["--key-file", str(workspace / "key")]
    run("writer", "backup", "shop", "-d", pg15.conninfo(), *key)
    for who, severity in (("writer", "ok"), ("reader", "problem")):
        findings = run(who, "check", "shop", "-d", pg15.conninfo(), *key)["findings"]
        own = {one["check"]: one for one in findings if one["check"].startswith("repository")}
        assert own["repository"]["message"].endswith(", encrypted")
        assert own["repository-rights"]["severity"] == severity
        # A bucket has no end; its clock is known where something could be written.
        assert "repository-room" not in own
        assert ("repository-clock" in own) is (who == "writer")
        # Looking takes no more than that.
        (cluster,) = run(who, "status", *key)["clusters"]
        assert (cluster["status"], cluster["backups"]) == ("ok", 1)


@pytest.mark.polardb
def test_polardb_is_checked_and_stands_well(polardb: PolarCluster, workspace: Path) -> None:
    repository = workspace / "repository"
    run_polarvault("repo", "init", repository)
    where = ["--repo", str(repository)]
    connection = ["-d", polardb.conninfo()]
    environment = {"XDG_STATE_HOME": str(workspace / "state")}
    words = ["wal", "stream", "shop", "-S", "check", *where, *connection]
    with start_polarvault(*words, environment=environment) as running:
        try:
            wait_until(
                lambda: polardb.query("SELECT active FROM pg_replication_slots WHERE slot_name = 'check'") == [(True,)],
                "it streams",
            )
            run_polarvault("backup", "shop", *where, *connection)
            polardb.query("CREATE TABLE checked AS SELECT 1 AS one")
            done = run_polarvault("check", "shop", "--switch-wal", *where, *connection, "--json", check=False)
            found = {one["check"]: one for one in json.loads(done.stdout)["findings"]}
            assert found["wal-switch"]["severity"] == "ok", found["wal-switch"]
            assert found["repository-wal"]["severity"] == "ok", found["repository-wal"]
            (cluster,) = json.loads(run_polarvault("status", *where, "--json", check=False).stdout)["clusters"]
            # The commit is in: it is younger than the backup.
            end, finished = cluster["window"]["end"], cluster["last_backup"]["finished"]
            assert datetime.fromisoformat(end) > datetime.fromisoformat(finished)
            assert (cluster["status"], cluster["gap"]) == ("ok", None)
        finally:
            running.send_signal(signal.SIGTERM)
            running.wait(60)
            polardb.query("SELECT pg_drop_replication_slot('check')")
            polardb.query("DROP TABLE IF EXISTS checked")
