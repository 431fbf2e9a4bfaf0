"""docs/configuration.md lists every setting, as the program has it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from polarvault.config.load import load_configuration
from polarvault.config.schema import CLUSTER, DEFAULTS, REPOSITORY, RETENTION, SNAPSHOTS, Setting
from polarvault.storage.objects.address import Scheme

PAGE = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")
_STORES = {Scheme.S3: "S3", Scheme.GOOGLE: "Google", Scheme.AZURE: "Azure"}


def _row(setting: Setting) -> str:
    only = "" if len(setting.schemes) == len(Scheme) else ", ".join(_STORES[scheme] for scheme in setting.schemes)
    meaning = setting.help + (f" (only {only})" if only else "")
    variables = ", ".join(f"`{variable}`" for variable in setting.variables)
    return f"| `{setting.field}` | {meaning} | {setting.default} | {variables} |"


@pytest.mark.parametrize(
    ("heading", "settings"),
    [
        ("[repository.NAME]", REPOSITORY),
        ("[cluster.NAME]", CLUSTER),
        ("[cluster.NAME.retention]", RETENTION),
        ("[defaults]", DEFAULTS),
        ("[snapshots.NAME]", SNAPSHOTS),
    ],
)
def test_every_setting_has_its_row_and_no_other_has_one(heading: str, settings: tuple[Setting, ...]) -> None:
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = [row for row in re.findall(r"^\| `.*$", section, re.MULTILINE) if not row.startswith("| `retention`")]
    assert rows == [_row(setting) for setting in settings]


def test_the_example_is_a_configuration(tmp_path: Path) -> None:
    example = re.search(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert example is not None
    (tmp_path / "x").write_text(example[1])
    assert list(load_configuration(str(tmp_path / "x"), {}).clusters) == ["shop"]
