"""The directory of clones: who is in it.

AREA/polarvault-clone-ID/run/      the account's: data, tablespaces, socket, pg_hba.conf
AREA/polarvault-base-ID/...        the same for a base copy, whose `run` is never started
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from polarvault.clones.errors import CloneNotFound, CloneRefused
from polarvault.clones.model import CloneRecord
from polarvault.drill.place.confined import ConfinedThing
from polarvault.snapshots.collection import Collection, Words
from polarvault.snapshots.model import Kind


@dataclass(frozen=True, slots=True)
class Place(ConfinedThing[CloneRecord]):
    """One clone or base copy."""

    RECORD: ClassVar[type[CloneRecord]] = CloneRecord
    WORDS: ClassVar[Words] = Words("clone", "clones", CloneRefused, CloneNotFound)


class Area(Collection[Place]):
    """One directory of clones."""

    KINDS = (Kind.CLONE, Kind.BASE)
    THING = Place
