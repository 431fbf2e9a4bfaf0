"""Ask the primary whether the backup can follow it: who it is, its slots, the WAL that is still there.

Reads from the primary only; what is made there (the slot) belongs to held_slot. A refusal ends it before the next
question: what another cluster says about WAL would mean nothing.
"""

from __future__ import annotations

from polarvault.errors import BackupUnusable
from polarvault.instance.host import Host
from polarvault.model.lsn import Lsn
from polarvault.recovery.wal.chain import BackupSpan
from polarvault.recovery.wal.held_wal import end_of_held_wal
from polarvault.recovery.wal.places import places_of
from polarvault.recovery.wal.span import load_backup_span
from polarvault.restore.facts import BackupFacts, HostFacts, PrimaryFacts, WithheldWal
from polarvault.restore.model import RestoreRequest
from polarvault.restore.plan.roles.standby import application_name
from polarvault.restore.standby.follow_checks import check_follows, judge_withheld, last_held_segment
from polarvault.restore.standby.live_storage import check_storage, look_at_storage
from polarvault.restore.standby.primary import Primary, ask_primary, why_wal_is_missing


def ask_about_primary(request: RestoreRequest, backup: BackupFacts, here: HostFacts, host: Host) -> PrimaryFacts:
    """Ask the primary that the request names; raise for whatever would keep the server from following it."""
    assert request.primary_conninfo is not None
    primary = ask_primary(request.primary_conninfo, application_name=application_name(request), user=here.account.name)
    live_datadir = here.layout.live_datadir
    warnings = check_follows(request, backup, primary, None if live_datadir else _span(request, backup))
    if live_datadir is not None:
        storage = look_at_storage(request, here.layout, primary, host)
        warnings += check_storage(request, primary, storage)
    else:
        warnings += judge_withheld(request, _withheld_wal(backup, primary))
    return PrimaryFacts(primary, tuple(warnings))


def _span(request: RestoreRequest, backup: BackupFacts) -> BackupSpan | None:
    try:
        return load_backup_span(
            backup.source, backup.inventory, backup.label, places_of(request.recovery, backup.source)
        )
    except BackupUnusable:
        if backup.inventory.control is not None:
            raise
        # A compressed tar was not read to its end, and what is known before has to do.
        return None


def _withheld_wal(backup: BackupFacts, primary: Primary) -> WithheldWal | None:
    """Return the WAL behind the backup that the primary would not send; None when all is there."""
    segment = last_held_segment(backup, primary.identity.segment_size_bytes)
    if segment is None:
        return None
    lsn = segment.start
    refusal = _refusal(backup, primary, lsn)
    if refusal is None:
        return None
    end = (
        end_of_held_wal(backup.source, backup.inventory, segment) if segment.file_name in backup.inventory.wal else lsn
    )
    if end is None:
        return WithheldWal(lsn, refusal, is_certain=False)
    if end >= segment.end:
        # Full, or closed by a switch as pg_basebackup's last one is: the standby goes on with the next segment.
        lsn, refusal = segment.end, _refusal(backup, primary, segment.end)
    return None if refusal is None else WithheldWal(lsn, refusal)


def _refusal(backup: BackupFacts, primary: Primary, lsn: Lsn) -> str | None:
    # At the end of its WAL the primary sends nothing, whatever we ask.
    if lsn >= primary.identity.flush_lsn:
        return None
    return why_wal_is_missing(primary.conninfo, lsn, _timeline(backup, primary, lsn))


def _timeline(backup: BackupFacts, primary: Primary, lsn: Lsn) -> int:
    if primary.history is not None:
        return primary.history.timeline_of(lsn)
    return backup.label.timeline_id if backup.label else primary.identity.timeline_id
