from __future__ import annotations

import pytest

from polarvault.backupset import label_rules
from polarvault.model.lsn import Lsn
from polarvault.pgfiles.backup_label import BackupLabel, parse_backup_label
from polarvault.pgfiles.control import ClusterState, ControlFile, parse_known_control
from support.made_backups import label as label_bytes
from support.small_files import control_bytes

START = 0x2000028


def control(checkpoint: int = START + 0x38, state: ClusterState = ClusterState.IN_PRODUCTION) -> ControlFile:
    made = parse_known_control(control_bytes(timeline=1, checkpoint=checkpoint, redo=START, state=state.value), 15)
    assert made is not None
    return made


def label(taken_from: str = "primary") -> BackupLabel:
    return parse_backup_label(
        label_bytes(START, START + 0x38).replace(b"FROM: primary", f"FROM: {taken_from}".encode())
    )


@pytest.mark.parametrize(("size", "right"), [(16 << 20, True), (1 << 20, False)])
def test_the_segment_is_the_one_of_the_start(size: int, right: bool) -> None:
    assert (label_rules.right_segment(label(), size) == label().start_segment) is right
    assert label_rules.named_timeline(label()) == 1


def test_the_manifest_begins_where_the_label_says() -> None:
    assert label_rules.begins_at(label(), Lsn(START))
    assert label_rules.begins_at(label(), Lsn(START), 1)
    assert not label_rules.begins_at(label(), Lsn(START), 2)
    assert not label_rules.begins_at(label(), Lsn(START + 8))


@pytest.mark.parametrize(("checkpoint", "older", "after"), [(-8, True, False), (0, False, False), (0x100, False, True)])
def test_pg_control_is_of_the_time_of_the_backup(checkpoint: int, older: bool, after: bool) -> None:
    found = control(START + 0x38 + checkpoint)
    assert label_rules.control_is_older(label(), found) is older
    assert label_rules.control_is_from_after(Lsn(START + 0x100), found) is after
    assert not label_rules.control_is_from_after(None, found)


@pytest.mark.parametrize("state", list(ClusterState))
def test_a_standbys_label_needs_a_standbys_control(state: ClusterState) -> None:
    recovering = state in (ClusterState.IN_ARCHIVE_RECOVERY, ClusterState.SHUT_DOWN_IN_RECOVERY)
    assert label_rules.server_refuses_standby(label("standby"), control(state=state)) is not recovering
    assert label_rules.standby_under_primary_label(label("primary"), control(state=state)) is recovering
    assert not label_rules.server_refuses_standby(label("primary"), control(state=state))
