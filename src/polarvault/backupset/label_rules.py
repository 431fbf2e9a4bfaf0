"""What has to hold between a backup_label, the manifest's WAL range and pg_control of one backup. Pure.

A restore refuses the first rule that is broken, verifybackup reports all of them; the words are theirs.
"""

from __future__ import annotations

from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.pgfiles.backup_label import BackupLabel
from polarvault.pgfiles.control import ClusterState, ControlFile

_RECOVERING = (ClusterState.IN_ARCHIVE_RECOVERY, ClusterState.SHUT_DOWN_IN_RECOVERY)


def named_timeline(label: BackupLabel) -> int:
    """Return the timeline of the segment that the label names; the server wants it to be START TIMELINE."""
    return int(label.start_segment[:8], 16)


def right_segment(label: BackupLabel, segment_size_bytes: int) -> str:
    """Return the name of the segment that START WAL LOCATION lies in, on the timeline that the label names."""
    return WalSegment.holding(label.start_lsn, named_timeline(label), segment_size_bytes).file_name


def begins_at(label: BackupLabel, start_lsn: Lsn, timeline_id: int | None = None) -> bool:
    """Tell whether the manifest's WAL begins where the label says; timeline_id: where the manifest tells it."""
    return label.start_lsn == start_lsn and timeline_id in (None, label.timeline_id)


def control_is_older(label: BackupLabel, control: ControlFile) -> bool:
    """Tell whether pg_control is from before the backup, which begins with a checkpoint and copies it last."""
    return control.checkpoint_lsn < label.checkpoint_lsn


def control_is_from_after(end_lsn: Lsn | None, control: ControlFile) -> bool:
    """Tell whether pg_control is from after the end of the backup."""
    return end_lsn is not None and control.checkpoint_lsn >= end_lsn


def server_refuses_standby(label: BackupLabel, control: ControlFile) -> bool:
    """Tell whether the label is a standby's and pg_control is not.

    Server: access/transam/xlogrecovery.c, FATAL "backup_label contains data inconsistent with control file". PolarDB's
    read-only nodes make such backups.
    """
    return label.is_from_standby and control.state not in _RECOVERING


def standby_under_primary_label(label: BackupLabel, control: ControlFile) -> bool:
    """Tell whether the label is a primary's and pg_control a standby's."""
    return label.taken_from == "primary" and control.state in _RECOVERING
