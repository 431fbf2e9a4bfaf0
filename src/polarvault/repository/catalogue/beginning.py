"""Begin a backup in a repository: say what is about to be done, then take stock of what may be used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime

from polarvault.errors import PolarvaultError
from polarvault.repository.catalogue.intents import BACKUP
from polarvault.repository.catalogue.leftovers import Leftovers
from polarvault.repository.catalogue.repository import Repository
from polarvault.repository.chunks.reader import ChunkReader
from polarvault.repository.format import names
from polarvault.repository.format.chunks import ChunkRef
from polarvault.repository.format.names import ClusterNames
from polarvault.repository.index.root import Part
from polarvault.repository.moves.reading import read_moves
from polarvault.repository.reading.refs import understood_moves
from polarvault.repository.states.states import States, standings
from polarvault.repository.writing.backup_writer import BackupWriter, WriterSettings
from polarvault.repository.writing.parent import Parent


def begin_backup(
    repository: Repository, cluster: str, *, started: datetime, parts: Sequence[Part], parent: str | None,
    settings: WriterSettings | None, label: str | None,
) -> BackupWriter:  # fmt: skip
    """Declare the intent, look for tombstones and moves, take stock of what killed backups left.

    What a verification has found to be damaged is no evidence: it is stored anew.
    """
    cluster_names = ClusterNames.of(cluster)
    with suppress(PolarvaultError):
        # What was killed on this machine is over; where nothing can be removed `repo info` tells of it.
        repository.intents.end_those_that_are_over()
    label = repository.new_label(started) if label is None else names.check_label(label)
    compacted = read_moves(repository.store, repository.codec, cluster).labels
    owned = {*repository.labels(cluster), *compacted}
    leftovers = Leftovers.find(repository.store, repository.codec, cluster_names, with_record=owned)
    repository.begun_intents.append(
        repository.intents.declare(
            BACKUP, cluster, label=label, parent=parent, adopts=leftovers.labels, started=started
        )
    )
    # After the intent: an `expire` that had not seen it has written its tombstones by now.
    expired = repository.expired_labels(cluster)
    leftovers.leave_out(expired)
    if parent in expired:
        parent = None
    below = None
    # After the intent, too: what compaction moves from now on stays where it was until this backup has ended.
    moves = read_moves(repository.store, repository.codec, cluster)
    leftovers.leave_out_packs({pack for one in moves.moves for pack in one.packs})
    known = {one.id for one in moves.moves}
    if parent is not None:
        reader = repository.open_backup(cluster, parent)
        below = Parent(reader.index, reader.root)
        moves = reader.moves
        told = understood_moves(repository.store, repository.codec, cluster_names, parent, moves)
        known = moves.understood_by(parent, told)
    leftovers.load(ChunkReader(repository.store, repository.codec, cluster_names))
    return BackupWriter(
        repository.store,
        repository.codec,
        cluster_names,
        label,
        parts=parts,
        page_key=repository.page_key,
        parent=below,
        parent_label=parent,
        settings=settings,
        adopt=leftovers.find_chunk,
        distrust=_known_damage(repository, cluster),
        moves=sorted(known),
        lock_s=repository.lock_s,
    )


def _known_damage(repository: Repository, cluster: str) -> Callable[[ChunkRef], bool]:

    states = States(repository, cluster)
    damaged: set[tuple[str, int, int]] = set()
    for standing in standings(states.listed()).values():
        verdict = standing.verdict
        if not standing.is_damaged or verdict is None or (state := states.read(verdict)) is None:
            continue
        for place in state.finding.get("chunks") or []:
            if isinstance(place, list) and list(map(type, place)) == [str, int, int]:
                damaged.add((place[0], place[1], place[2]))
    return lambda ref: (ref.label, ref.pack, ref.number) in damaged
