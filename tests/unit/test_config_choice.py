"""Which repository a command means."""

from __future__ import annotations

from pathlib import Path

import pytest

from polarvault.config.choice import choose_repositories, choose_repository
from polarvault.config.model import ClusterConfiguration, Configuration, RepositoryConfiguration
from polarvault.errors import UsageError

MAIN = RepositoryConfiguration("main", "s3://backups/main", id="0" * 32, encrypted=True)
OFFICE = RepositoryConfiguration("office", "/srv/backups")
BOTH = Configuration(
    "/etc/x",
    {"main": MAIN, "office": OFFICE},
    {"shop": ClusterConfiguration("shop", repositories=("office", "main")), "bank": ClusterConfiguration("bank")},
)
ONE = Configuration("/etc/x", {"main": MAIN})
NONE = Configuration(None)


def test_a_name_of_the_configuration_goes_first() -> None:
    assert choose_repository(BOTH, "office") == OFFICE


def test_the_only_one_need_not_be_named() -> None:
    assert choose_repository(ONE, None) == MAIN


@pytest.mark.parametrize("word", ["s3://backups/main", "s3:backups/main/", "S3://backups/main"])
def test_an_address_that_is_configured_keeps_its_id_and_key(word: str) -> None:
    assert choose_repository(BOTH, word) is MAIN


def test_an_address_needs_no_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_repository(NONE, "/backup") == RepositoryConfiguration("", "/backup")
    monkeypatch.chdir(tmp_path)
    assert choose_repository(BOTH, "./backup").address == str(tmp_path / "backup")


@pytest.mark.parametrize(
    ("configuration", "word", "said", "hint"),
    [
        (BOTH, None, "which repository", "main, office"),
        (NONE, None, "which repository", "--repo /backup"),
        (BOTH, "ofice", 'did you mean "office"', "./ofice"),
        (NONE, "office", "there is no repository", "names no repository"),
        (BOTH, "http://x/y", "does not begin with", ""),
    ],
)
def test_what_is_not_certain_is_refused(configuration: Configuration, word: str | None, said: str, hint: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        choose_repository(configuration, word)
    assert hint in (caught.value.hint or "")


def test_a_cluster_has_its_own_repositories() -> None:
    assert choose_repositories(BOTH, "shop", None) == [OFFICE, MAIN]
    assert choose_repositories(BOTH, "shop", "main") == [MAIN]
    assert choose_repositories(ONE, "unknown", None) == [MAIN]
    with pytest.raises(UsageError):
        choose_repositories(BOTH, "bank", None)
