"""Which packs compaction has replaced by which: enough, without the key, to expire, copy and check. No numpy here.

A backup's `refs` and its index go on naming the places at which its chunks lay when it was written. An object of moves
says of each old pack where its living chunks are now. A backup *understands* it if all that it may need of the old
packs is among them: one that was considered when chunks were moved, or one that was written later and builds on such
a backup, or on none. Only for those old packs are not needed any more.

A backup follows only moves that it understands. A copy in another place may keep backups that the place of the
compaction has long expired, and never get the packs that these would need: as long as the old pack is there, and what
a move leads to is not, it is not followed either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from polarvault.repository.format import names
from polarvault.repository.format.documents import Fields
from polarvault.repository.format.frame import DIGEST_BYTES
from polarvault.repository.format.names import PACKS

PackName = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Moves:
    """The clear part of an object of moves, and when it was written by the clock of the store.

    packs: for each old pack those in which its living chunks are; considered: the backups whose chunks these are.
    label: of the packs that this compaction wrote; written: their sizes in bytes, the first hashes of their trailers.
    replaces: objects of which this one has all that the considered backups need.
    """

    id: str
    modified: datetime
    cluster: str
    label: str
    packs: Mapping[PackName, tuple[PackName, ...]]
    written: Mapping[PackName, tuple[int, bytes]]
    considered: frozenset[str]
    replaces: frozenset[str]

    def clear(self) -> dict[str, Any]:
        """Return what the object says in clear."""
        return {
            "cluster": self.cluster,
            "label": self.label,
            "packs": [[*old, [list(target) for target in targets]] for old, targets in sorted(self.packs.items())],
            "written": [[number, size, digest.hex()] for (_, number), (size, digest) in sorted(self.written.items())],
            "considered": sorted(self.considered),
            "replaces": sorted(self.replaces),
        }


def parse_moves(number: str, modified: datetime, clear: Fields, what: str) -> Moves:
    """Return what the clear part says; raise ObjectDamaged."""
    label = names.check_label(clear.text("label"))
    packs, written = {}, {}
    for row in clear.items("packs"):
        fields = _fields(row, ("label", "number", "targets"), what)
        packs[_pack(row, what)] = tuple(_pack(target, what) for target in fields.items("targets"))
    for row in clear.items("written"):
        fields = _fields(row, ("number", "size", "digest"), what)
        place = label, fields.number("number", most=PACKS - 1)
        written[place] = fields.number("size"), fields.hexadecimal("digest", DIGEST_BYTES)
    considered = frozenset(names.check_label(one if isinstance(one, str) else "") for one in clear.items("considered"))
    replaces = frozenset(one for one in clear.items("replaces") if isinstance(one, str))
    return Moves(number, modified, clear.text("cluster"), label, packs, written, considered, replaces)


def known_moves(refs: Fields) -> frozenset[str]:
    """Return the ids that the clear part of `refs` has: of moves that a backup understands since it was written."""
    return frozenset(one for one in refs.optional_items("moves") if isinstance(one, str))


def _pack(row: Any, what: str) -> PackName:
    fields = _fields(row, ("label", "number"), what)
    return names.check_label(fields.text("label")), fields.number("number", most=PACKS - 1)


def _fields(row: Any, keys: Sequence[str], what: str) -> Fields:
    return Fields(dict(zip(keys, row if isinstance(row, list) else [], strict=False)), what)


class Followed:
    """The moves as one backup follows them. known: ids of those that it understands since it was written."""

    def __init__(
        self, label: str, known: frozenset[str], moves: Sequence[Moves], exists: Callable[[PackName], bool]
    ) -> None:
        self._exists = exists
        self._rows: dict[PackName, list[Moves]] = {}
        for one in moves:
            if label in one.considered or one.id in known:
                for pack in one.packs:
                    self._rows.setdefault(pack, []).append(one)
        self._whole: dict[tuple[str, PackName], bool] = {}

    def leads(self, moves: Moves, pack: PackName) -> bool:
        """Tell whether an object of moves is followed from one of its old packs on."""
        rows = self._rows.get(pack, [])
        if moves not in rows:
            return False
        # Where everything is lost, what is missing is what the moves lead to.
        return self._is_whole(moves, pack) or not (self._exists(pack) or any(self._is_whole(one, pack) for one in rows))

    def _is_whole(self, moves: Moves, pack: PackName) -> bool:
        key = moves.id, pack
        if key not in self._whole:
            self._whole[key] = False  # What leads in a circle leads nowhere.
            self._whole[key] = all(self._is_there(target) for target in moves.packs[pack])
        return self._whole[key]

    def _is_there(self, pack: PackName) -> bool:
        return self._exists(pack) or any(self._is_whole(one, pack) for one in self._rows.get(pack, ()))

    def needed(
        self, named: Iterable[PackName], *, is_settled: Callable[[Moves], bool] = lambda one: True
    ) -> set[PackName]:
        """Return the packs that the backup needs, of which `refs` names some.

        is_settled: tells whether nobody can be reading by what was true before a move; until then it needs both.
        """
        needed: set[PackName] = set()
        seen: set[PackName] = set()
        waiting = list(named)
        while waiting:
            pack = waiting.pop()
            if pack in seen:
                continue
            seen.add(pack)
            rows = [one for one in self._rows.get(pack, ()) if self.leads(one, pack)]
            if not any(is_settled(one) for one in rows):
                needed.add(pack)
            for one in rows:
                waiting.extend(one.packs[pack])
        return needed
