"""How fast restores out of this repository were: what a plan can promise. The last few are kept, as states."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime

from polarvault.errors import PolarvaultError
from polarvault.repository.catalogue.repository import Repository
from polarvault.repository.states.states import CLUSTER, StateName, States

RESTORED = "restored"
_KEPT = 5
# Of less the time is that of other things.
_LEAST_BYTES = 10 << 20


class RestoreSpeeds:
    """Bytes of files laid out per second. What cannot be read or written is left: nobody's restore depends on it."""

    def __init__(self, repository: Repository, cluster: str) -> None:
        self._states = States(repository, cluster)

    def note(self, size_bytes: int, seconds: float) -> None:
        """Remember a restore that has just laid out so many bytes of files; of older ones the last few are kept."""
        if size_bytes < _LEAST_BYTES or seconds <= 0:
            return
        with suppress(PolarvaultError):
            finding = {"bytes": size_bytes, "seconds": round(seconds, 3)}
            self._states.add(CLUSTER, RESTORED, now=datetime.now(UTC), finding=finding)
            for name in self._noted()[:-_KEPT]:
                self._states.remove(name)

    def last(self) -> list[float]:
        """Return those of the last restores, in bytes a second."""
        found = []
        with suppress(PolarvaultError):
            for name in self._noted()[-_KEPT:]:
                state = self._states.read(name)
                size, seconds = (state.finding.get(key) if state else None for key in ("bytes", "seconds"))
                if isinstance(size, int) and isinstance(seconds, (int, float)) and size > 0 and seconds > 0:
                    found.append(size / seconds)
        return found

    def _noted(self) -> list[StateName]:
        return [name for name in self._states.listed(CLUSTER) if name.kind == RESTORED]
