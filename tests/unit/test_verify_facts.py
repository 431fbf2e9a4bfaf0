"""What the small files of a backup say when they do not fit together. No files, no server."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from polarvault.model.finding import Finding, Severity
from polarvault.model.lsn import Lsn
from polarvault.verify.facts.judge import WalRange, judge_facts
from support.small_files import (
    IN_ARCHIVE_RECOVERY,
    SYSTEM_IDENTIFIER,
    control_bytes,
    facts,
    label_bytes,
    with_crc,
)


def bad(**changes: Any) -> dict[str, Finding]:
    """Return what is not OK, by check."""
    return {found.check: found for found in judge_facts(facts(**changes)) if not found.is_ok}


def only(check: str, severity: Severity = Severity.PROBLEM, **changes: Any) -> Finding:
    """Return the single finding that is not OK."""
    found = bad(**changes)
    assert list(found) == [check]
    assert found[check].severity is severity
    assert found[check].meaning
    assert found[check].advice
    return found[check]


def flipped(content: bytes, offset: int) -> bytes:
    return content[:offset] + bytes([content[offset] ^ 1]) + content[offset + 1 :]


def test_a_good_backup_has_a_good_word_for_every_file() -> None:
    found = judge_facts(facts(tablespace_links={16400: ("/copies/16400", True)}))
    assert [finding.check for finding in found] == ["control", "version", "label", "tablespaces"]
    assert all(finding.is_ok for finding in found)


@pytest.mark.parametrize(
    ("version", "catalog", "text"), [(1300, 202007201, b"13\n"), (1700, 202406281, b"17\n"), (1800, 202506291, b"18\n")]
)
def test_every_version_is_known(version: int, catalog: int, text: bytes) -> None:
    assert bad(control=control_bytes(version, catalog), version=text) == {}


def test_a_missing_pg_control_is_named_with_what_the_server_says() -> None:
    found = only("control-missing", control=None)
    assert "could not find the database system" in (found.meaning or "")


def test_a_missing_shared_half_is_asked_for() -> None:
    found = only("control-missing", control=None, is_polardb=True)
    assert "shared half" in found.message
    assert found.advice == "name the shared half: --polardata DIR"


@pytest.mark.parametrize(
    ("content", "check"),
    [
        (b"", "control-size"),
        (control_bytes()[:200], "control-size"),
        (control_bytes()[:4096], "control-size"),
        (control_bytes() + b"\0", "control-size"),
        (flipped(control_bytes(), 40), "control-crc"),
        (flipped(control_bytes(), 289), "control-crc"),
        (flipped(control_bytes(), 8), "control-version"),
        (control_bytes()[:8] + struct.pack(">I", 1300) + control_bytes()[12:], "control-version"),
        (control_bytes(segment=12345), "control-values"),
        (control_bytes(segment=2 << 30), "control-values"),
        (control_bytes(state=77), "control-values"),
        (control_bytes(block=8191), "control-values"),
        (control_bytes(block=64 << 10), "control-values"),
        (control_bytes(redo=0x50144379), "control-values"),
        (control_bytes(system=0), "control-values"),
        (with_crc(control_bytes()[:220] + bytes(4) + control_bytes()[224:]), "control-values"),
    ],
)
def test_what_is_wrong_with_pg_control_has_a_name(content: bytes, check: str) -> None:
    only(check, control=content)


def test_a_checkpoint_at_zero_is_no_checkpoint() -> None:
    assert {"control-values", "control-age"} == set(bad(control=control_bytes(checkpoint=0, redo=0)))


def test_a_catalog_version_of_no_release_is_a_warning() -> None:
    only("control-version", Severity.WARNING, control=control_bytes(catalog=202601011))


def test_a_server_in_crash_recovery_cannot_have_been_backed_up() -> None:
    assert "crash recovery" in only("control-state", Severity.WARNING, control=control_bytes(state=4)).message


def test_pg_control_of_another_cluster_is_noticed() -> None:
    assert bad(manifest_system_identifier=SYSTEM_IDENTIFIER) == {}
    found = only("control-identifier", manifest_system_identifier=99)
    assert str(SYSTEM_IDENTIFIER) in found.message
    assert "99" in found.message


def test_pg_control_from_before_the_backup_is_noticed() -> None:
    only("control-age", control=control_bytes(checkpoint=0x50000100, redo=0x500000C8))


def test_pg_control_from_after_the_backup_is_noticed() -> None:
    only("control-age", control=control_bytes(checkpoint=0x50150000, redo=0x50149000))


@pytest.mark.parametrize("version", [None, b"", b"16\n", b"fifteen\n"])
def test_pg_version_has_to_be_that_of_pg_control(version: bytes | None) -> None:
    only("version", version=version)


def test_a_missing_label_is_silent_corruption() -> None:
    assert "silent corruption" in (only("label-missing", label=None).meaning or "")


def test_a_copy_of_a_stopped_server_needs_no_label() -> None:
    assert bad(label=None, expects_label=False, wal_ranges=(), control=control_bytes(state=1)) == {}
    only("label-missing", label=None, expects_label=False, wal_ranges=())


def test_a_label_without_its_first_line_is_damaged() -> None:
    found = only("label-damaged", label=label_bytes().split(b"\n", 1)[1])
    assert "START WAL LOCATION" in found.message


@pytest.mark.parametrize(
    "label",
    [
        label_bytes(segment="000000030000000000000051"),
        label_bytes(timeline=4, segment="000000030000000000000050"),
        label_bytes(checkpoint="0/50144330"),
    ],
)
def test_a_label_that_contradicts_itself_is_noticed(label: bytes) -> None:
    assert "label-segment" in bad(label=label)


def test_the_segment_size_of_pg_control_decides_which_segment_the_label_means() -> None:
    found = only("label-segment", control=control_bytes(segment=64 << 20))
    assert "000000030000000000000014" in found.message


@pytest.mark.parametrize(
    "wal_range",
    [
        WalRange(3, Lsn(0x50144300), Lsn(0x50150000)),
        WalRange(4, Lsn(0x50144340), Lsn(0x50150000)),
    ],
)
def test_a_label_of_another_backup_than_the_manifest_is_noticed(wal_range: WalRange) -> None:
    only("label-manifest", wal_ranges=(wal_range,))


def test_a_checkpoint_behind_the_end_of_the_backup_is_noticed() -> None:
    found = bad(wal_ranges=(WalRange(3, Lsn(0x50144340), Lsn(0x50144370)),))
    assert "label-manifest" in found


def test_the_oldest_timeline_of_the_manifest_is_the_first() -> None:
    newer = WalRange(4, Lsn(0x50148000), Lsn(0x50150000))
    older = WalRange(3, Lsn(0x50144340), Lsn(0x50148000))
    assert bad(wal_ranges=(newer, older)) == {}


def test_a_label_of_pg_start_backup_does_not_go_with_a_manifest() -> None:
    only("label-method", label=label_bytes(method="pg_start_backup"))
    assert bad(label=label_bytes(method="pg_start_backup"), wal_ranges=()) == {}


def test_a_backup_of_a_standby_is_good() -> None:
    assert bad(label=label_bytes(taken_from="standby"), control=control_bytes(state=IN_ARCHIVE_RECOVERY)) == {}


def test_a_backup_of_a_read_only_node_cannot_be_restored() -> None:
    found = only("label-control", label=label_bytes(taken_from="standby"), is_polardb=True)
    assert "contains data inconsistent with control file" in (found.meaning or "")
    assert "RO" in (found.advice or "")


def test_pg_control_of_a_standby_does_not_go_with_a_label_of_a_primary() -> None:
    only("label-control", control=control_bytes(state=IN_ARCHIVE_RECOVERY))


def test_an_incremental_backup_is_a_warning_with_the_line_of_the_label() -> None:
    found = only("incremental", Severity.WARNING, label=label_bytes(more="INCREMENTAL FROM LSN: 0/4F000028\n"))
    assert found.message == "INCREMENTAL FROM LSN: 0/4F000028"
    assert "polarvault restore" in (found.advice or "")


def test_a_link_that_leads_nowhere_is_noticed() -> None:
    found = only("tablespace-link", tablespace_links={16400: ("/gone", False), 16401: ("/there", True)})
    assert found.subject == "pg_tblspc/16400"


def test_two_tablespaces_in_one_place_are_noticed() -> None:
    found = only("tablespace-twice", tablespace_links={16400: ("/t/a", True), 16401: ("/t/../t/a/", True)})
    assert "16400" in found.message
    assert found.subject == "pg_tblspc/16401"


def test_a_map_that_leads_elsewhere_than_the_links_is_a_warning() -> None:
    links = {16400: ("/copy", True)}
    found = only("tablespace-map", Severity.WARNING, tablespace_links=links, tablespace_map={16400: "/live"})
    assert "/live" in found.message
    assert bad(tablespace_links=links, tablespace_map={16400: "/copy/"}) == {}


def test_every_mapped_tablespace_needs_its_tar_and_the_other_way_round() -> None:
    tar = {"is_tar": True, "tablespace_tars": frozenset({16400, 16402})}
    found = [f for f in judge_facts(facts(**tar, tablespace_map={16400: "/a", 16401: "/b"})) if not f.is_ok]
    assert [(f.check, f.subject) for f in found] == [("tablespace-map", "16401.tar"), ("tablespace-map", "16402.tar")]
    assert bad(is_tar=True, tablespace_tars=frozenset({16400}), tablespace_map={16400: "/a"}) == {}
    assert set(bad(**tar)) == {"tablespace-map"}
