"""The table of versions: what each can do, and what is said of one that is not in it."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest

import polarvault
from polarvault.model import versions
from polarvault.model.lsn import Lsn
from polarvault.server.session_settings import later_settings
from polarvault.wal.pages import Ending, WalEnd
from polarvault.wire.commands import BaseBackupOptions, base_backup_command, create_physical_slot_command


@pytest.mark.parametrize(
    ("number", "major"),
    [(0, 13), (120000, 13), (130023, 13), (149999, 14), (150008, 15), (190000, 19), (200000, 19), (990000, 19)],
)
def test_a_server_is_asked_as_the_newest_version_that_it_is_not_older_than(number: int, major: int) -> None:
    assert versions.of_server(number).major == major


def test_what_a_newer_server_writes_is_not_guessed_at() -> None:
    assert versions.of_magic(0xD123) is None
    assert versions.of_catalog(202711111) is None
    assert versions.control_layout(2001) is None
    assert versions.is_newer(20)
    assert not versions.is_newer(19)


def test_no_two_versions_share_a_number_that_tells_them_apart() -> None:
    known = versions.VERSIONS.values()
    assert len({one.page_magic for one in known}) == len({one.catalog_version for one in known}) == len(known)
    assert [one.major for one in known] == list(range(13, 20))


def test_a_version_can_do_what_the_one_before_it_could() -> None:
    known = list(versions.VERSIONS.values())
    for older, newer in pairwise(known):
        assert older.connection_keywords <= newer.connection_keywords
        assert older.session_settings.items() <= newer.session_settings.items()
        assert set(older.configuration_files) <= set(newer.configuration_files)
        assert older.page_magic < newer.page_magic
        assert older.manifest_version <= newer.manifest_version


@pytest.mark.parametrize(
    ("number", "command"),
    [
        (140000, "BASE_BACKUP LABEL 'l' PROGRESS FAST MANIFEST 'yes'"),
        (190000, "BASE_BACKUP (LABEL 'l', PROGRESS, CHECKPOINT 'fast', MANIFEST 'yes', TARGET 'client')"),
        (200000, "BASE_BACKUP (LABEL 'l', PROGRESS, CHECKPOINT 'fast', MANIFEST 'yes', TARGET 'client')"),
    ],
)
def test_the_command_is_in_the_syntax_of_the_version(number: int, command: str) -> None:
    assert base_backup_command(BaseBackupOptions(label="l", checkpoint_fast=True), number) == command


def test_a_slot_of_a_newer_server_is_made_as_that_of_the_newest() -> None:
    assert create_physical_slot_command("s", 200000) == create_physical_slot_command("s", 190000)


@pytest.mark.parametrize(
    ("number", "names"),
    [(130000, []), (140000, ["idle_session_timeout"]), (200000, ["idle_session_timeout", "transaction_timeout"])],
)
def test_a_session_sets_what_the_server_knows(number: int, names: list[str]) -> None:
    assert list(later_settings(number)) == names


def test_wal_of_an_unknown_version_is_called_that() -> None:
    said = str(WalEnd(Ending.PAGE_MAGIC, Lsn(0x1000000), 0xD123, 0))
    assert said == "the page at 0/1000000 has magic D123, which is that of none of PostgreSQL 13 to 19"


def test_no_other_module_compares_with_a_version_of_its_own() -> None:
    root = Path(polarvault.__file__).parent
    number = r"(?:1[2-9]|2[0-9])(?:0000)?\b"
    test = re.compile(rf"(?:major|version|version_num)\w*\s*(?:[<>]=?|[!=]=)\s*{number}|\b{number}\s*<=?\s*\w*version")
    found = [
        f"{path.relative_to(root)}: {line.strip()}"
        for path in root.rglob("*.py")
        for line in path.read_text().splitlines()
        if path.name != "versions.py" and test.search(line)
    ]
    assert found == []
