"""Gaps in the WAL of a cluster that somebody knows of: they are shown, and nobody is alarmed by them any more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from polarvault.model.lsn import Lsn
from polarvault.repository.states.states import CLUSTER, GAP_ACKNOWLEDGED, State, StateName, States
from polarvault.wal.source import HeldRange

# Each is read by itself.
_MOST = 20


@dataclass(frozen=True, slots=True)
class AcknowledgedGap:
    """WAL from first to before last, of one timeline of one system identifier, that is known to be missing."""

    system_identifier: int
    timeline_id: int
    first: Lsn
    last: Lsn
    note: str
    time: datetime

    def covers(self, system_identifier: int, timeline_id: int, gap: HeldRange) -> bool:
        """Tell whether all of a gap is what was acknowledged; a larger one is news."""
        same = (self.system_identifier, self.timeline_id) == (system_identifier, timeline_id)
        return same and self.first <= gap.start and gap.end <= self.last

    def finding(self) -> Mapping[str, Any]:
        """Return what is written into the state."""
        return {
            "system_identifier": str(self.system_identifier),
            "timeline": self.timeline_id,
            "first": str(self.first),
            "last": str(self.last),
        }


def read_gaps(states: States, names: Iterable[StateName]) -> list[AcknowledgedGap]:
    """Return the gaps that were acknowledged, of the names of all states; those last written, if there are too many."""
    wanted = sorted(one for one in names if one.subject == CLUSTER and one.kind == GAP_ACKNOWLEDGED)[-_MOST:]
    found = (_read(state) for name in wanted if (state := states.read(name)) is not None)
    return [one for one in found if one is not None]


def _read(state: State) -> AcknowledgedGap | None:
    finding = state.finding
    try:
        return AcknowledgedGap(
            int(str(finding["system_identifier"])), int(str(finding["timeline"])), Lsn.parse(str(finding["first"])),
            Lsn.parse(str(finding["last"])), state.text, state.time,
        )  # fmt: skip
    except (KeyError, ValueError):
        return None
