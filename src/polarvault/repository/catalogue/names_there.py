"""What the names of a cluster's objects say, from one listing of all of them: backups, states, WAL, sizes.

A listing is a request for each thousand objects; everything that is asked for by itself is one more.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import datetime

from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.repository.catalogue.repository import Repository
from polarvault.repository.format.names import ClusterNames, is_label
from polarvault.repository.states.states import StateName, state_name
from polarvault.repository.wal.ranges import RANGE_NAME, StoredRange
from polarvault.storage.objects.model import StoredObject

# Of the parts of a name behind the cluster's folder.
_WAL_WORDS = 5


@dataclass(slots=True)
class NamesThere:
    """Names of one cluster. recorded, states: with the time of the store's clock; sizes are stored bytes."""

    recorded: dict[str, datetime] = field(default_factory=dict)
    """Labels of the backups that have a record."""
    states: dict[StateName, datetime] = field(default_factory=dict)
    generations: list[int] = field(default_factory=list)
    backup_bytes: Counter[str] = field(default_factory=Counter)
    """Packs and index by the label that wrote them."""
    wal_bytes: int = 0
    other_bytes: int = 0
    count: int = 0
    _wal: defaultdict[tuple[int, int], list[tuple[int, int, str]]] = field(default_factory=lambda: defaultdict(list))

    @property
    def stored_bytes(self) -> int:
        """All of the cluster's objects."""
        return self.backup_bytes.total() + self.wal_bytes + self.other_bytes

    def timelines(self, system_identifier: int) -> list[int]:
        """Return the timelines of which there is WAL, sorted."""
        return sorted(timeline for identifier, timeline in self._wal if identifier == system_identifier)

    def ranges(self, system_identifier: int, timeline_id: int, segment_bytes: int) -> list[StoredRange]:
        """Return the WAL of a timeline, by place; what cannot be WAL of that segment size is left out."""
        found = []
        for first, last, word in self._wal.get((system_identifier, timeline_id), ()):
            try:
                segment = WalSegment.parse(word, segment_bytes)
            except ValueError:
                continue
            if segment.timeline_id == timeline_id and segment.start <= first < last <= segment.end:
                found.append(StoredRange(segment, Lsn(first), Lsn(last)))
        return sorted(found)

    def add(self, words: list[str], one: StoredObject) -> None:
        """Take one object; words: of its name behind the cluster's folder."""
        self.count += 1
        match words:
            case ["backups" | "packs", label, part] if is_label(label):
                self.backup_bytes[label] += one.size_bytes
                if words[0] == "backups" and part == "record":
                    self.recorded[label] = one.modified
                return
            case ["wal", *_]:
                self.wal_bytes += one.size_bytes
                self._add_wal(words)
                return
            case ["states", subject, word] if (name := state_name(f"{subject}/{word}")) is not None:
                self.states[name] = one.modified
            case ["generations", word] if word.isascii() and word.isdecimal() and len(word) <= 20:
                self.generations.append(int(word))
        self.other_bytes += one.size_bytes

    def _add_wal(self, words: list[str]) -> None:
        span = re.fullmatch(RANGE_NAME, words[-1])
        if len(words) != _WAL_WORDS or span is None:
            return
        try:
            key = int(words[1]), int(words[2], 16)
        except ValueError:
            return
        self._wal[key].append((int(span[1], 16), int(span[2], 16), words[3]))


def names_there(repository: Repository, cluster: str) -> NamesThere:
    """List everything of a cluster."""
    folder = ClusterNames.of(cluster).folder
    found = NamesThere()
    for one in repository.store.list_objects(folder):
        found.add(one.name.removeprefix(f"{folder}/").split("/"), one)
    return found
