"""What the user should know although the target can be reached. Pure."""

from __future__ import annotations

from datetime import UTC, tzinfo

from polarvault.model.lsn import Lsn
from polarvault.recovery.reachability import Reachable, ValidWalEnd, describe_record, gap_problem, show_time
from polarvault.recovery.search import StopPoint, TargetSearch
from polarvault.recovery.target import RecoveryRequest, format_time
from polarvault.recovery.wal.chain import BackupSpan, WalChain

# The message alone is wanted, without what can be reached.
_NOT_SHOWN = Reachable(None, None, None, Lsn(0), None, 0, 0, (), ())


def plan_warnings(span: BackupSpan, search: TargetSearch, zone: tzinfo | None) -> list[str]:
    """Return what the user should know although the target can be reached."""
    warnings = []
    if search.target.assumed_zone and search.target.time:
        warnings.append(
            f"the target time has no zone: {search.target.assumed_zone}, this machine's, is assumed "
            f"({format_time(search.target.time.astimezone(UTC))})"
        )
    if search.earlier_behind is not None and search.stop is not None:
        late = search.earlier_behind
        warnings.append(
            f"a clock was put back: transaction {late.xid} at {late.lsn} ended at {show_time(late.time, zone)}, before "
            f"the target, but stands behind {describe_record(search.stop, zone)}, at which recovery stops, and is not "
            f"applied; for more use --target-xid or --target-lsn"
        )
    if search.repeated:
        again = ", ".join(f"{mark.lsn} ({show_time(mark.time, zone)})" for mark in search.repeated[:5])
        assert search.stop is not None
        warnings.append(
            f'restore point "{search.target.name}" occurs {len(search.repeated) + 1} times; recovery stops at the '
            f"first one, {search.stop.lsn} ({show_time(search.stop.time, zone)}), not at {again}: "
            "use --target-lsn for another one"
        )
    return warnings


def end_warnings(
    chain: WalChain, end: ValidWalEnd, stop: StopPoint | None, request: RecoveryRequest, zone: tzinfo | None
) -> list[str]:
    """Return what is odd about the end of the WAL, where recovery goes there."""
    if stop is not None and not stop.is_end:
        return []
    warnings = []
    if request.accepted_end is not None and (chain.has_gap or end.is_broken):
        why = gap_problem(chain, end, "recovery ends before the end of the WAL, as was accepted", _NOT_SHOWN, zone)
        warnings.append(why.message)
    elif end.follows is not None and not end.is_broken:
        warnings.append(
            f'the WAL ends at {end.lsn} ({end.reason}), but {end.follows} in "{end.path}": a server that was killed '
            "leaves this, and its own recovery would end there too; if that segment was finished, it is damaged"
        )
    used = [file for file in chain.files if not file.in_backup]
    if request.has_places and not used:
        warnings.append(
            "no segment of the WAL archive is used: recovery ends with the WAL in the backup; they lack "
            f"{chain.missing.file_name} and what follows"
        )
    return warnings
