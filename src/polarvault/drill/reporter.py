"""How a drill talks to a person while it goes on; `report` implements it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from polarvault.drill.model import Part

if TYPE_CHECKING:
    from polarvault.recovery.watch import ReplayState


class DrillReporter(Protocol):
    """What a drill has to say on its way."""

    def begins(self, part: Part, what: str) -> None:
        """Say that a part begins, and what it will do."""

    def warn(self, message: str) -> None:
        """Say what does not stop the drill."""

    def scanned(self, done: int, total: int) -> None:
        """Say how much WAL was read for the plan, in bytes."""

    def copied(self, done: int, total: int) -> None:
        """Say how much of the backup was laid out, in bytes."""

    def replayed(self, state: ReplayState) -> None:
        """Say how far replay has come."""
