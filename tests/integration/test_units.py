"""What the units of systemd run, run as it stands there: backup, verify, expire, drill, metrics for node_exporter."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support.cluster import Cluster
from support.drills import Drills
from support.program import program_environment

pytestmark = pytest.mark.postgres

UNITS = Path(__file__).parents[2] / "contrib/systemd"


class Units:
    """Runs the ExecStart lines of services, with what systemd would have put in for %i and variables."""

    def __init__(self, workspace: Path, cluster: Cluster) -> None:
        self.workspace = workspace
        (workspace / "bin").mkdir()
        (workspace / "bin/polarvault").symlink_to(Path(sys.executable).parent / "polarvault")
        directory = workspace / "config/polarvault"
        directory.mkdir(parents=True)
        (directory / "polarvault.toml").write_text(
            f'[repository.main]\naddress = "{workspace}/repository"\n'
            f'[cluster.shop]\nconnection = "{cluster.conninfo()}"\nretention = {{ keep = 1 }}\n'
        )
        self.run("polarvault", "repo", "init", "main")

    def run(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        own = {
            "PATH": f"{self.workspace}/bin:{os.environ['PATH']}",
            "XDG_CONFIG_HOME": f"{self.workspace}/config",
        }  # fmt: skip
        return subprocess.run(
            words, env=program_environment(own | variables), capture_output=True, text=True, check=False, timeout=120
        )

    def start(self, unit: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a service; %% and $$ are systemd's spelling of % and $, and $NAME becomes words."""
        (line,) = [one for one in (UNITS / f"{unit}.service").read_text().splitlines() if one.startswith("ExecStart=")]
        command = line.removeprefix("ExecStart=").replace("%i", "shop").replace("%%", "%")
        if command.startswith("/bin/sh -euc '"):
            words = ["/bin/sh", "-euc", command.removeprefix("/bin/sh -euc '").removesuffix("'").replace("$$", "$")]
        else:
            given = [variables.get(one[1:], "").split() if one.startswith("$") else [one] for one in command.split()]
            words = [word for group in given for word in group]
        return self.run(*words, **variables)


def test_each_service_does_what_it_is_for(make_cluster: Callable[..., Cluster], workspace: Path) -> None:
    cluster = make_cluster(15)
    units = Units(workspace, cluster)
    for unit, said in (("backup", "shop@"), ("verify", "shop@"), ("expire", "shop in ")):
        done = units.start(f"polarvault-{unit}@")
        assert done.returncode == 0, done.stdout + done.stderr
        assert said in done.stdout
    assert "--bogus" in units.start("polarvault-backup@", BACKUP_OPTIONS="--note x --bogus").stderr
    state = workspace / "state"
    state.mkdir()
    drills = Drills(workspace)
    options = f"-N --bindir {cluster.installation.directory} --set fsync=off"
    drilled = units.start(
        "polarvault-drill@", SCRATCH=str(drills.scratch), STATE_DIRECTORY=str(state), DRILL_OPTIONS=options
    )  # fmt: skip
    assert drilled.returncode == 0, drilled.stdout + drilled.stderr
    assert "drill-shop-" in " ".join(one.name for one in state.iterdir())
    texts = workspace / "texts"
    texts.mkdir()
    done = units.start("polarvault-metrics", TEXTFILES=str(texts))
    assert done.returncode == 0, done.stderr
    written = (texts / "polarvault.prom").read_text()
    assert 'polarvault_last_drill_held{cluster="shop",repository="main"} 1\n' in written
    # A cluster that stands badly is what metrics are for; a wrong command line leaves the old file.
    (workspace / "repository/polarvault.json").rename(workspace / "away")
    assert units.start("polarvault-metrics", TEXTFILES=str(texts)).returncode == 0
    away = (texts / "polarvault.prom").read_text()
    assert 'polarvault_repository_up{cluster="shop",repository="main"} 0\n' in away
    assert units.start("polarvault-metrics", TEXTFILES=str(texts), STATUS_OPTIONS="--bogus").returncode != 0
    assert (texts / "polarvault.prom").read_text() == away
