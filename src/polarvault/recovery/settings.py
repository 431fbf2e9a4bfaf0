"""The settings of a recovery that goes beyond its backup: restore_command and recovery_target_*. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from polarvault.polardb.settings import Wanted, is_true
from polarvault.recovery.reachability import RecoveryPlan
from polarvault.recovery.target import TargetAction, TargetKind

# The server demands a restore_command together with recovery.signal; this one says "not found" for every file, so
# that the WAL in pg_wal is used. It is harmless after recovery, when nothing reads it any more.
NO_ARCHIVE_COMMAND = "false"
_SETTING = {
    TargetKind.TIME: "recovery_target_time",
    TargetKind.XID: "recovery_target_xid",
    TargetKind.LSN: "recovery_target_lsn",
    TargetKind.NAME: "recovery_target_name",
    TargetKind.IMMEDIATE: "recovery_target",
}


def target_setting(kind: TargetKind) -> str | None:
    """Return the setting that holds a target of this kind; None for `latest`, which is no target."""
    return _SETTING.get(kind)


def archive_recovery_settings(
    plan: RecoveryPlan | None, restore_command: str | None, hot_standby: str | None
) -> Iterator[Wanted]:
    """Yield the settings of a primary's recovery; restore_command None leaves the user's own alone.

    hot_standby: the source's value.
    """
    if restore_command is not None:
        why = "recovery takes the WAL in pg_wal" if restore_command == NO_ARCHIVE_COMMAND else "--wal"
        yield Wanted("restore_command", restore_command, why)
    if plan is None:
        return
    target = plan.written_target
    if (name := target_setting(target.kind)) is not None:
        yield Wanted(name, target.value, plan.target.kind.option)
        if target.kind in (TargetKind.TIME, TargetKind.XID, TargetKind.LSN):
            yield Wanted("recovery_target_inclusive", "on" if target.inclusive else "off", "--target-inclusive")
        yield Wanted("recovery_target_action", plan.action.value, "--target-action")
    # What the plan looked at and what recovery follows must be the same timeline, even if a new one appears meanwhile.
    yield Wanted("recovery_target_timeline", plan.timeline_setting, "--target-timeline")
    # Without it, a pause is a shutdown (manual, 20.5.6), and nobody could look at what was recovered.
    if plan.action is TargetAction.PAUSE and hot_standby is not None and not is_true(hot_standby):
        yield Wanted("hot_standby", "on", "a paused server has to answer queries")
