"""How drills of a cluster's backups ended: what `status` tells of. The last few are kept, as states."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from polarvault.errors import PolarvaultError
from polarvault.repository.catalogue.repository import Repository
from polarvault.repository.format.names import is_label
from polarvault.repository.states.states import CLUSTER, DRILLED, State, States

_KEPT = 5
_MOST_SECONDS = 10**9


@dataclass(frozen=True, slots=True)
class Drilled:
    """One drill. held: whether the backup restored and everything that was looked at was right; verdict: in words.

    restore_s: seconds from an empty directory to a server that takes connections; None where it came to no such.
    """

    label: str
    time: datetime
    held: bool
    verdict: str
    restore_s: float | None

    @classmethod
    def of(cls, state: State) -> Drilled:
        """Read a state: of what a stranger wrote into it, nothing is believed that has another type."""
        label, held, seconds = (state.finding.get(key) for key in ("label", "held", "restore_s"))
        return cls(
            label if isinstance(label, str) and is_label(label) else "",
            state.time,
            held is True,
            state.text,
            float(seconds) if isinstance(seconds, (int, float)) and 0 <= seconds < _MOST_SECONDS else None,
        )


class DrillLog:
    """Writes down how drills ended. What cannot be written is left: a reader of the repository may drill as well."""

    def __init__(self, repository: Repository, cluster: str) -> None:
        self._states = States(repository, cluster)

    def note(self, label: str, *, held: bool, verdict: str, restore_s: float | None) -> None:
        """Remember a drill that has just ended; of older ones the last few are kept."""
        with suppress(PolarvaultError):
            finding = {"label": label, "held": held, "restore_s": None if restore_s is None else round(restore_s, 3)}
            self._states.add(CLUSTER, DRILLED, now=datetime.now(UTC), text=verdict, finding=finding)
            for name in [one for one in self._states.listed(CLUSTER) if one.kind == DRILLED][:-_KEPT]:
                self._states.remove(name)
