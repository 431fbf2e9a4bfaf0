"""What is said of a dataset's settings, and which rights a user lacks."""

from __future__ import annotations

import pytest

from polarvault.snapshots.zfs_advice import RIGHTS, advice, missing_rights

GOOD = {"recordsize": "8192", "atime": "off", "sync": "standard", "logbias": "latency", "compression": "lz4"}


def test_good_settings_are_not_mentioned_and_unknown_ones_neither() -> None:
    assert list(advice("tank/pg", GOOD)) == []
    assert list(advice("tank/pg", {})) == []


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("recordsize", "131072", "zfs set recordsize=8K tank/pg"),
        ("atime", "on", "zfs set atime=off tank/pg"),
        ("sync", "disabled", "zfs set sync=standard tank/pg"),
        ("logbias", "throughput", "zfs set logbias=latency tank/pg"),
        ("compression", "off", "zfs set compression=lz4 tank/pg"),
    ],
)
def test_each_bad_setting_is_named_with_what_to_type(name: str, value: str, line: str) -> None:
    [found] = advice("tank/pg", {**GOOD, name: value})
    assert line in found


def test_records_smaller_than_a_page_matter_where_a_page_must_not_be_torn() -> None:
    small = {**GOOD, "recordsize": "4096"}
    assert list(advice("tank/pg", small)) == []
    [found] = advice("tank/pg", small, relies_on_records=True)
    assert "torn" in found


def test_rights_of_the_user_its_groups_and_everyone_count() -> None:
    printed = """---- Permissions on tank/pg ------------------------------------------
Local+Descendent permissions:
\tuser backup snapshot,destroy
\tuser other clone,create,mount,userprop,mountpoint
\tgroup dba clone,create
\teveryone mount
"""
    assert missing_rights(printed, "backup", {"dba"}) == ["userprop", "mountpoint"]
    assert missing_rights("", "backup", {"dba"}) == list(RIGHTS)
