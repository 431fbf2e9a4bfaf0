"""`polarvault status` of a real server's backups: times that are true, every format, and exit statuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from support.cluster import Cluster
from support.configured_site import ConfiguredSite
from support.drills import Drills
from support.json_page import checked
from support.program import run_polarvault
from support.waiting import wait_until

pytestmark = pytest.mark.postgres


class Site(ConfiguredSite):
    """A server that archives into its repository."""

    def __init__(self, cluster: Cluster, workspace: Path) -> None:
        super().__init__(cluster, workspace)
        self.archive()

    def status(self, *words: object, status: int = 0) -> dict[str, Any]:
        text = self.run("status", *words, "--config", self.configuration, "--json", status=status)
        return checked("status", text, status=status)


@pytest.mark.parametrize("major", [15, 18])
def test_the_last_commit_that_was_archived_is_the_moment_that_can_be_restored(
    make_cluster: Callable[..., Cluster], workspace: Path, major: int
) -> None:
    site = Site(make_cluster(major, wal_segment_mb=4), workspace)
    none = site.status(status=2)
    assert [one["check"] for one in none["findings"]] == ["no-backup"]
    label = json.loads(site.run("backup", "shop", "--config", site.configuration, "--json"))["label"]
    taken = site.status()["clusters"][0]
    assert taken["last_backup"]["label"] == label
    assert taken["window"]["end"] == taken["last_backup"]["finished"]
    ((before,),) = site.cluster.query("SELECT clock_timestamp()")
    site.cluster.query("CREATE TABLE later AS SELECT generate_series(1, 1000) n")
    ((after,),) = site.cluster.query("SELECT clock_timestamp()")
    site.switch()
    (found,) = site.status()["clusters"]
    end = datetime.fromisoformat(found["window"]["end"])
    # Autovacuum may have committed as well, behind it and before the switch.
    assert before <= end
    assert (end - after) < timedelta(minutes=5)
    assert found["stored_bytes"] > found["wal_bytes"] > 0
    assert 0 < found["day_bytes"] <= found["stored_bytes"] - found["wal_bytes"]
    assert (found["verified"], found["drilled"], found["status"]) == (None, None, "ok")
    site.run("verify", "shop", "--config", site.configuration)
    verified = site.status("shop")["clusters"][0]["verified"]
    assert (verified["label"], verified["good"]) == (label, True)
    late = site.run("status", "--config", site.configuration, "--format", "nagios")
    assert late.startswith("POLARVAULT OK - 1 cluster, restorable until ")
    # As seen by whoever asks much later: the limits are the only thing that changes.
    site.configure('max_wal_lag = "1s"')
    behind = datetime.now(UTC) - end
    if behind < timedelta(seconds=3):
        wait_until(lambda: datetime.now(UTC) - end > timedelta(seconds=3), "the limit is passed twice")
    critical = site.status(status=2)
    assert [one["check"] for one in critical["findings"]] == ["wal-lag"]


def test_a_drill_is_remembered_and_the_formats_agree(make_cluster: Callable[..., Cluster], workspace: Path) -> None:
    cluster = make_cluster(18)
    repository = workspace / "repository"
    run_polarvault("repo", "init", repository)
    run_polarvault("backup", "shop", "--repo", repository, "-d", cluster.conninfo())
    Drills(workspace).run(cluster, Path("shop"), "--repo", repository)
    # Not in the configuration: all that the repository has.
    done = run_polarvault("status", "--repo", repository, "--format", "json")
    found = checked("status", done.stdout, status=0)
    assert found["clusters"][0]["drilled"]["held"] is True
    assert found["clusters"][0]["drilled"]["label"] == found["clusters"][0]["last_backup"]["label"]
    assert found["clusters"][0]["drilled"]["restore_s"] > 0
    metrics = run_polarvault("status", "--repo", repository, "--format", "prometheus").stdout.splitlines()
    labels = f'{{cluster="shop",repository="{repository}"}}'
    assert f"polarvault_last_drill_held{labels} 1" in metrics
    assert f"polarvault_backups{labels} 1" in metrics
    text = run_polarvault("status", "shop", "--repo", repository).stdout
    assert "ago, held" in text


def test_a_repository_that_is_not_there_is_unknown_and_the_other_one_is_shown(workspace: Path) -> None:
    configuration = workspace / "polarvault.toml"
    configuration.write_text(
        f'[repository.main]\naddress = "{workspace}/main"\n[repository.gone]\naddress = "{workspace}/gone"\n'
        '[cluster.shop]\nrepositories = ["gone", "main"]\n'
    )
    run_polarvault("repo", "init", workspace / "main")
    done = run_polarvault("status", "--config", configuration, check=False)
    assert done.returncode == 2, done.stderr
    assert "CRITICAL  shop in main: there is no backup" in done.stdout
    assert "UNKNOWN   shop in gone: " in done.stdout
    only = run_polarvault("status", "--config", configuration, "--repo", "gone", check=False)
    assert only.returncode == 3
    for words in (["--format", "nagios"], ["--format", "bogus"], ["--config", "/nonexistent.toml"]):
        wrong = run_polarvault("status", "typo", "--repo", "nowhere", *words, check=False)
        assert wrong.returncode == 3, wrong.stderr
        assert wrong.stdout.startswith("POLARVAULT UNKNOWN - ") is (words[1] == "nagios")


def test_a_gap_is_acknowledged_and_the_lag_is_told(make_cluster: Callable[..., Cluster], workspace: Path) -> None:
    site = Site(make_cluster(15, wal_segment_mb=1), workspace)
    site.run("backup", "shop", "--config", site.configuration)
    for _ in range(4):
        site.cluster.query("SELECT pg_logical_emit_message(false, 'a', 'record')")
        site.switch()

    def wal_status(status: int) -> dict[str, Any]:
        text = site.run("wal", "status", "shop", "--config", site.configuration, "--json", status=status)
        found: dict[str, Any] = checked("wal", text, status=status, section="wal status")["clusters"][0]
        return found

    found = wal_status(0)
    server = found["server"]
    assert server["system_identifier"] == found["generations"][0]["system_identifier"]
    assert 0 <= server["lag_bytes"] < 2 << 20
    (window,) = found["generations"][0]["timelines"][0]["windows"]
    assert window["start_time"] <= window["end_time"]
    folders = sorted((site.repository / "clusters/shop/wal").glob("*/00000001/0*"))
    (lost,) = folders[-2].iterdir()
    lost.unlink()
    (gap,) = wal_status(1)["generations"][0]["timelines"][0]["gaps"]
    assert gap["acknowledged"] is None
    alarmed = site.status(status=2)
    assert [one["check"] for one in alarmed["findings"]] == ["wal-gap"]
    assert alarmed["clusters"][0]["gap"]["start"] == gap["start"]
    # The line to type is right as it stands, and this one is for a gap that nobody sees.
    advice = alarmed["findings"][0]["advice"].splitlines()[-1].split()
    assert advice[:4] == ["polarvault", "wal", "gap", "acknowledge"]
    wrong = ["wal", "gap", "acknowledge", "shop", "0/1-0/2", "--config", site.configuration]
    site.run(*wrong, status=2)
    site.run(*wrong[:4], "0/2", *wrong[5:], status=2)
    text = site.run(*advice[1:], "--note", "disk full", "--config", site.configuration, "--json")
    told = checked("wal", text, status=0, section="wal gap acknowledge")
    assert told["gaps"][0]["start"] == gap["start"]
    (known,) = wal_status(0)["generations"][0]["timelines"][0]["gaps"]
    assert (known["start"], known["note"]) == (gap["start"], "disk full")
    quiet = site.status()
    assert quiet["clusters"][0]["gap"]["note"] == "disk full"
    assert "acknowledged on" in site.run("status", "--config", site.configuration)
    site.cluster.stop()
    problem = wal_status(0)["server"]["problem"]
    assert "connection" in problem
