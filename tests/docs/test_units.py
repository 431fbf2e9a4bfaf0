"""The units of systemd in contrib are ones that systemd takes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "contrib/systemd"
NAMES = sorted(path.name for path in UNITS.iterdir() if path.suffix in (".service", ".timer"))


def verified(directory: Path, name: str) -> str:
    """Return what systemd says of a unit; of a template, as an instance."""
    unit = directory / name.replace("@", "@shop")
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    # Of units of this machine that are looked at along the way nothing is to be said here.
    return "".join(line for line in (done.stdout + done.stderr).splitlines(keepends=True) if "polarvault" in line)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_takes_every_unit(tmp_path: Path) -> None:
    assert len(NAMES) >= 13
    for name in NAMES:
        shutil.copy(UNITS / name, tmp_path / name)
    assert {name: said for name in NAMES if (said := verified(tmp_path, name))} == {}
    # And it does say when one is wrong.
    broken = (UNITS / "polarvault-backup@.service").read_text().replace("Type=oneshot", "Type=oneshoot")
    (tmp_path / "polarvault-broken@.service").write_text(broken)
    assert "oneshoot" in verified(tmp_path, "polarvault-broken@.service")


def test_each_timer_has_its_service_and_says_how_it_is_enabled() -> None:
    for name in NAMES:
        if name.endswith(".timer"):
            assert name.replace(".timer", ".service") in NAMES
            assert (
                f"systemctl enable --now {name.partition('@')[0].removesuffix('.timer')}" in (UNITS / name).read_text()
            )
