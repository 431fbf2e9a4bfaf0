"""pg_control: every layout from 13 to 19, and what is refused."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from polarvault.errors import IntegrityError
from polarvault.model.lsn import Lsn
from polarvault.pgfiles.control import ClusterState, ControlDamage, as_recovering, parse_control
from support.small_files import control_bytes


@pytest.mark.parametrize(
    ("version", "catalog", "major"),
    [
        (1300, 202007201, 13),
        (1300, 202209061, 15),
        (1300, 202307071, 16),
        (1700, 202406281, 17),
        (1800, 202506291, 18),
        (1905, 202610061, 19),
    ],
)
def test_every_layout_is_read(version: int, catalog: int, major: int) -> None:
    control = parse_control(control_bytes(version, catalog))
    assert control.major_version == major
    assert control.system_identifier == 7711101783964903611
    assert control.state is ClusterState.IN_PRODUCTION
    assert str(control.checkpoint_lsn) == "0/50144378"
    assert str(control.redo_lsn) == "0/50144340"
    assert control.timeline_id == 3
    assert (control.max_connections, control.max_wal_senders) == (100, 10)
    assert (control.block_size, control.relation_segment_blocks) == (8192, 131072)
    assert control.wal_segment_size == 16 << 20
    assert control.has_data_checksums


def test_a_file_of_a_newer_server_is_called_that() -> None:
    content = bytearray(control_bytes())
    struct.pack_into("<I", content, 8, 2001)
    with pytest.raises(ControlDamage, match="of a newer server") as refused:
        parse_control(bytes(content))
    assert (refused.value.aspect, refused.value.hint) == ("version", "use a newer polarvault")


@pytest.mark.parametrize(("state", "has"), [(0, False), (1, True), (2, False), (3, False)])
def test_only_what_says_that_all_pages_have_checksums_counts(state: int, has: bool) -> None:
    assert parse_control(control_bytes(1905, 202610061, checksums=state)).has_data_checksums is has


def test_an_unknown_catalog_version_has_no_major_version() -> None:
    assert parse_control(control_bytes(catalog=202601011)).major_version is None


@pytest.mark.parametrize(("state", "clean"), [(1, True), (2, True), (3, False), (5, False), (6, False)])
def test_only_a_shut_down_cluster_is_clean(state: int, clean: bool) -> None:
    assert parse_control(control_bytes(state=state)).state.is_clean is clean


def test_one_wrong_bit_is_noticed() -> None:
    content = bytearray(control_bytes())
    content[40] ^= 1
    with pytest.raises(IntegrityError, match="CRC is wrong"):
        parse_control(bytes(content))


@pytest.mark.parametrize("content", [b"", bytes(15), control_bytes()[:200]])
def test_a_short_file_is_refused(content: bytes) -> None:
    with pytest.raises(IntegrityError, match=r"too short|version 0"):
        parse_control(content)


def test_another_version_is_refused_by_number() -> None:
    content = bytearray(control_bytes())
    struct.pack_into("<I", content, 8, 1201)
    with pytest.raises(IntegrityError, match="1201"):
        parse_control(bytes(content))


def test_an_impossible_segment_size_is_refused() -> None:
    with pytest.raises(IntegrityError, match="segment size"):
        parse_control(control_bytes(segment=12345))


def test_a_state_that_no_server_writes_is_refused() -> None:
    with pytest.raises(ControlDamage, match="state 77"):
        parse_control(control_bytes(state=77))


@pytest.mark.parametrize(("version", "catalog"), [(1300, 202307071), (1905, 202610061)])
def test_a_copy_of_one_moment_is_told_how_far_to_recover(version: int, catalog: int) -> None:
    before = control_bytes(version, catalog)
    after = parse_control(as_recovering(before, Lsn.parse("0/60000000")))
    assert after.state is ClusterState.IN_ARCHIVE_RECOVERY
    assert str(after.minimum_recovery_lsn) == "0/60000000"
    least = after.minimum_recovery_lsn
    expected = replace(
        parse_control(before), state=after.state, minimum_recovery_lsn=least, minimum_recovery_timeline_id=3
    )
    assert after == expected
