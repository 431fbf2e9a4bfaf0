"""Which backup of a cluster is the last one, whatever clocks said when it was taken.

A label is the time of the machine that took the backup, and machines disagree by hours. Where the label that sorts last
and the record that the store got last are the same backup, it is the one. Otherwise LSNs tell, along one history; a
system identifier that was recorded to later is the later one (pg_upgrade begins LSNs anew).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime

from polarvault.errors import PolarvaultError
from polarvault.repository.format.record import BackupRecord

# Of those that sort last and of those that were recorded last: more than that nobody takes with a wrong clock unseen.
_LOOKED_AT = 8


def latest_label(recorded: Mapping[str, datetime], record: Callable[[str], BackupRecord]) -> str:
    """Return the label of the last backup; recorded: all labels, at least one, with the store's time of their records.

    Raises what reading a record does for those that may be it; older ones that are damaged are passed over.
    """
    by_label = sorted(recorded)
    # Of one second of a label the random characters would decide, and of one of the store's chance.
    last = [label for label in by_label if label[:16] == by_label[-1][:16]]
    by_time = sorted(by_label, key=lambda label: recorded[label])
    if len(last) == 1 and by_time[-1] == last[0]:
        return last[0]
    found: dict[str, BackupRecord] = {}
    for label in {*by_label[-_LOOKED_AT:], *by_time[-_LOOKED_AT:], *last}:
        try:
            found[label] = record(label)
        except PolarvaultError:
            if label in (*last, by_time[-1]):
                raise
    met: dict[int, datetime] = {}
    for label, one in found.items():
        system = one.facts.system_identifier
        met[system] = max(met.get(system, recorded[label]), recorded[label])

    def order(label: str) -> tuple[datetime, int, int, str]:
        facts = found[label].facts
        return met[facts.system_identifier], facts.stop_timeline_id, facts.stop_lsn, label

    return max(found, key=order)
