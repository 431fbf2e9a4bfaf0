"""Names of clusters, backups and objects: a narrow alphabet, checked before a word becomes part of a path."""

from __future__ import annotations

import re

from polarvault.errors import IntegrityError, UsageError
from polarvault.model.dataclass import dataclass
from polarvault.model.names import SMALL, is_spelled, shown_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from typing import Self

REPOSITORY = "polarvault.json"
CLUSTERS, FEATURES, KEYS, INTENTS, MOVES = "clusters", "features", "keys", "intents", "moves"
PACKS = 1_000_000
_LABEL = r"(\d{8}T\d{6}Z)-[a-z0-9]{4}"
_WORD_CHARACTERS = SMALL | frozenset("_-")
_LABEL_TIME = "%Y%m%dT%H%M%SZ"
_LABEL_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
LABEL_BYTES = 21


def check_word(word: str, what: str) -> str:
    """Return a name that a user gave to something; raise UsageError if it is none."""
    if not is_word(word):
        raise UsageError(
            f"{shown_name(word)} cannot be the name of {what}",
            hint="take lower-case letters, digits, - and _, beginning with a letter or digit, at most 63",
        )
    return word


def is_word(word: str) -> bool:
    """Tell whether a word found in a repository can be the name of a cluster or a feature."""
    return is_spelled(word, SMALL, _WORD_CHARACTERS, most=63)


def is_label(word: str) -> bool:
    """Tell whether a word found in a repository is a backup's label."""
    match = re.fullmatch(_LABEL, word, re.ASCII)
    if match is None:
        return False
    from datetime import datetime

    try:
        datetime.strptime(match[1], _LABEL_TIME)
    except ValueError:
        return False
    return True


def check_label(word: str) -> str:
    """Return a label that was read from a repository; raise IntegrityError if it is none."""
    if not is_label(word):
        raise IntegrityError(f"{shown_name(word)} cannot be the label of a backup")
    return word


def make_label(started: datetime, random_bytes: Callable[[int], bytes]) -> str:
    """Return a new label: the start in UTC, and four random characters."""
    from datetime import UTC

    # A byte modulo 36 is not quite even: what counts is that two backups of one second hardly ever meet.
    letters = "".join(_LABEL_LETTERS[byte % len(_LABEL_LETTERS)] for byte in random_bytes(4))
    return f"{started.astimezone(UTC).strftime(_LABEL_TIME)}-{letters}"


def label_time(label: str) -> datetime:
    """Return when the backup of a label started."""
    from datetime import UTC, datetime

    return datetime.strptime(check_label(label)[:16], _LABEL_TIME).replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class ClusterNames:
    """The names of one cluster's objects."""

    cluster: str

    @classmethod
    def of(cls, cluster: str) -> Self:
        """Check a user's word; raise UsageError."""
        return cls(check_word(cluster, "a cluster"))

    @property
    def folder(self) -> str:
        """Where everything of the cluster is."""
        return f"{CLUSTERS}/{self.cluster}"

    @property
    def generations(self) -> str:
        """The folder of the system identifiers."""
        return f"{self.folder}/generations"

    @property
    def backups(self) -> str:
        """The folder of the labels of backups, finished ones and others."""
        return f"{self.folder}/backups"

    @property
    def all_packs(self) -> str:
        """The folder of the labels that have packs."""
        return f"{self.folder}/packs"

    @property
    def states(self) -> str:
        """The folder of the facts that came later."""
        return f"{self.folder}/states"

    @property
    def wal(self) -> str:
        """The folder of all WAL."""
        return f"{self.folder}/wal"

    @property
    def maps(self) -> str:
        """The folder of all block maps."""
        return f"{self.folder}/maps"

    def maps_of(self, system_identifier: int, timeline_id: int) -> str:
        """The folder of the block maps of one timeline; each is named as its segment."""
        return f"{self.maps}/{system_identifier}/{timeline_id:08X}"

    def generation(self, system_identifier: int) -> str:
        """The object that describes what was backed up under a system identifier."""
        return f"{self.generations}/{system_identifier}"

    def backup(self, label: str, part: str) -> str:
        """One of a backup's own objects: record, root, refs, manifest."""
        return f"{self.backups}/{label}/{part}"

    def packs(self, label: str) -> str:
        """The folder of the packs that a backup wrote."""
        return f"{self.all_packs}/{label}"

    def pack(self, label: str, number: int) -> str:
        """One pack."""
        return f"{self.all_packs}/{label}/{number:06}"

    def wal_timeline(self, system_identifier: int, timeline_id: int) -> str:
        """The folder of the WAL of one timeline."""
        return f"{self.wal}/{system_identifier}/{timeline_id:08X}"

    def wal_range(self, system_identifier: int, timeline_id: int, segment: str, first: int, last: int) -> str:
        """A range of one segment's WAL: LSN of its first byte, and of the one after the last."""
        return f"{self.wal_timeline(system_identifier, timeline_id)}/{segment}/{int(first):016X}-{int(last):016X}"

    def wal_file(self, system_identifier: int, timeline_id: int, file_name: str) -> str:
        """A timeline's history, a partial segment, or the mark of a backup."""
        return f"{self.wal_timeline(system_identifier, timeline_id)}/{file_name}"


def pack_number(word: str) -> int | None:
    """Return the number of a pack by the last word of its name; None for what is no pack."""
    return int(word) if len(word) == 6 and word.isascii() and word.isdecimal() else None
