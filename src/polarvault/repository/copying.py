"""Copy a repository to another place: what is missing there, verified on the way, without the key.

Packs come first, then what makes them a backup, and its record last; so each backup is there as a whole or not at all,
and a copy that was cut off is gone on with. `polarvault.json` is the last of all in a new place. What the other place
has expired by its own policy is not copied again, and neither is WAL from before its oldest backup.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from polarvault.errors import (
    IntegrityError,
    ObjectMissing,
    RepositoryMismatch,
    RepositoryNewer,
    RepositoryNotFound,
)
from polarvault.model import limits
from polarvault.model.lsn import Lsn
from polarvault.repository.format import documents, frame, names
from polarvault.repository.format.documents import Fields
from polarvault.repository.format.names import ClusterNames
from polarvault.repository.moves.packs import Followed, Moves, PackName, known_moves, parse_moves
from polarvault.storage.objects.model import StoredObject
from polarvault.storage.objects.store import ObjectStore

# What is true of a backup wherever it lies; verdicts and tombstones are a place's own.
_COPIED_STATES = ("-pin", "-unpin", "-note")
_WRONG = (IntegrityError, ObjectMissing, RepositoryNewer)


@dataclass(slots=True)
class CopyReport:
    """What was copied. backups: cluster@label of those that are there now and were not before."""

    objects: int = 0
    bytes: int = 0
    present: int = 0
    backups: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


Told = Callable[[str], None]


def copy_repository(
    source: ObjectStore, target: ObjectStore, *, clusters: Sequence[str] | None = None, jobs: int = 4,
    tell: Told = lambda text: None,
) -> CopyReport:  # fmt: skip
    """Bring a target up to what a source has; raise RepositoryMismatch if it is another repository.

    clusters: which ones, None for all. What is damaged in the source is named, and the backups that need it stay away.
    """
    identity = _identity(source)
    if identity is None:
        raise RepositoryNotFound(f"there is no repository in {source.address}", hint="check the address")
    there = _identity(target)
    if there is not None and there[0] != identity[0]:
        raise RepositoryMismatch(
            f"{target.address} is the repository {there[0].hex()}, and {source.address} is {identity[0].hex()}",
            hint="copy into an empty place, or into an older copy of the same repository",
        )
    with ThreadPoolExecutor(jobs, thread_name_prefix="copy") as pool:
        return _Copying(source, target, identity[0], pool, tell).run(clusters, is_new=there is None)


def _identity(store: ObjectStore) -> tuple[bytes, bytes] | None:
    try:
        content = store.get(names.REPOSITORY, most_bytes=limits.REPOSITORY_JSON_BYTES)
    except ObjectMissing:
        return None
    header = frame.parse_header(names.REPOSITORY, content)
    frame.split_trailer(names.REPOSITORY, header, memoryview(content))
    return header.repository_id, content


class _Copying:
    def __init__(
        self, source: ObjectStore, target: ObjectStore, repository_id: bytes, pool: ThreadPoolExecutor, tell: Told
    ) -> None:
        self._source, self._target, self._id = source, target, repository_id
        self._pool, self._tell = pool, tell
        self._report = CopyReport()

    def run(self, clusters: Sequence[str] | None, *, is_new: bool) -> CopyReport:
        for folder in (names.FEATURES, names.KEYS):
            self._copy(self._missing(folder))
        found = [word for word in self._source.list_folders(names.CLUSTERS) if names.is_word(word)]
        for cluster in found if clusters is None else clusters:
            if cluster not in found:
                raise RepositoryNotFound(
                    f"{self._source.address} holds nothing of a cluster {cluster}",
                    hint=f"it has: {', '.join(found) or 'none'}",
                )
            self._copy_cluster(ClusterNames.of(cluster))
        if is_new:
            self._copy([names.REPOSITORY])
        return self._report

    def _copy_cluster(self, cluster: ClusterNames) -> None:
        self._copy(self._missing(cluster.generations))
        moves, uncopied = self._copy_moves(cluster)
        expired = {
            one.name.split("/")[-2]
            for one in self._target.list_objects(cluster.states)
            if one.name.endswith("-tombstone")
        }
        gone = {
            one.name.split("/")[-2]
            for one in self._source.list_objects(cluster.states)
            if one.name.endswith("-tombstone")
        }
        here, there = self._recorded(self._source, cluster), self._recorded(self._target, cluster)
        for label in sorted(here - there - expired - gone):
            self._copy_backup(cluster, label, moves, uncopied)
        self._copy_wal(cluster)
        self._copy_maps(cluster)
        states = [name for name in self._missing(cluster.states) if name.endswith(_COPIED_STATES)]
        self._copy(states)

    def _recorded(self, store: ObjectStore, cluster: ClusterNames) -> set[str]:
        words = [one.name.split("/") for one in store.list_objects(cluster.backups)]
        return {word[-2] for word in words if word[-1] == "record" and names.is_label(word[-2])}

    def _copy_moves(self, cluster: ClusterNames) -> tuple[list[Moves], frozenset[PackName]]:
        """Copy what compaction has moved, and where; return the moves, and the old packs of those that did not come.

        The last ones first: what they lead to is there before what leads to them.
        """
        found, uncopied = [], set[PackName]()
        for stored in self._source.list_objects(names.MOVES):
            try:
                clear = _clear_part(stored.name, self._source.get(stored.name, most_bytes=limits.ROOT_BYTES))
                one = parse_moves(stored.name.rpartition("/")[2], stored.modified, clear, f'"{stored.name}"')
            except ObjectMissing:
                continue
            except _WRONG as problem:
                self._report.problems.append(problem.message)
                continue
            if one.cluster == cluster.cluster:
                found.append(one)
        if not found:
            return [], frozenset()
        here = {one.name for one in self._source.list_objects(cluster.all_packs)}
        there = {one.name for one in self._target.list_objects(cluster.all_packs)}
        known = {one.name for one in self._target.list_objects(names.MOVES)}
        for one in sorted(found, key=lambda one: one.modified, reverse=True):
            name = f"{names.MOVES}/{one.id}"
            if name in known:
                continue
            # Of what was moved once more the packs in between may be gone.
            targets = {cluster.pack(*target) for of in one.packs.values() for target in of}
            if uncopied or not self._copy(sorted(targets & here - there)) or not self._copy([name]):
                uncopied.update(one.packs)
        return found, frozenset(uncopied)

    def _copy_backup(
        self, cluster: ClusterNames, label: str, moves: Sequence[Moves], uncopied: frozenset[PackName]
    ) -> None:
        """Copy one backup; of one that cannot be whole there nothing is recorded."""
        before = len(self._report.problems)
        self._tell(f"copying {cluster.cluster}@{label}")
        try:
            named, known = self._packs_of(cluster, label)
        except _WRONG as problem:
            self._report.problems.append(f"{cluster.cluster}@{label} is not copied: {problem.message}")
            return
        if uncopied.intersection(named):
            self._report.problems.append(f"{cluster.cluster}@{label} is not copied: what was moved is not known")
            return
        here = {one.name for one in self._source.list_objects(cluster.all_packs)} if moves else set()
        followed = Followed(label, known, moves, lambda pack: cluster.pack(*pack) in here)
        packs = [cluster.pack(*pack) for pack in sorted(followed.needed(named))]
        there = {one.name for one in self._target.list_objects(cluster.all_packs)}
        self._report.present += len(there.intersection(packs))
        self._copy([name for name in packs if name not in there])
        self._copy([cluster.backup(label, part) for part in ("manifest", "root", "refs")])
        if len(self._report.problems) > before:
            self._report.problems.append(f"{cluster.cluster}@{label} is not copied: it would not be whole")
            return
        # Whoever expires there may have taken a pack away that was there, and that no record named yet.
        there = {one.name for one in self._target.list_objects(cluster.all_packs)}
        self._copy([name for name in packs if name not in there])
        if len(self._report.problems) == before and self._copy([cluster.backup(label, "record")]):
            self._report.backups.append(f"{cluster.cluster}@{label}")

    def _packs_of(self, cluster: ClusterNames, label: str) -> tuple[list[PackName], frozenset[str]]:
        """Return the packs that a backup names, and the ids of the moves that it knew."""
        name = cluster.backup(label, "refs")
        clear = _clear_part(name, self._source.get(name, most_bytes=limits.REPOSITORY_JSON_BYTES))
        found = []
        for row in clear.items("packs"):
            fields = Fields(dict(zip(("label", "number"), row if isinstance(row, list) else [], strict=False)), name)
            found.append((names.check_label(fields.text("label")), fields.number("number", most=999_999)))
        return found, known_moves(clear)

    def _copy_wal(self, cluster: ClusterNames) -> None:
        """Copy WAL from the start of the oldest backup there on, by system identifier."""
        first: dict[str, int] = {}
        for label in self._recorded(self._target, cluster):
            name = cluster.backup(label, "record")
            try:
                clear = _clear_part(name, self._target.get(name, most_bytes=limits.REPOSITORY_JSON_BYTES))
                system, start = clear.text("system_identifier"), int(Lsn.parse(clear.text("start_lsn")))
            except (*_WRONG, ValueError) as problem:
                self._report.problems.append(f"{name}: {problem}")
                continue
            first[system] = min(start, first.get(system, start))
        wanted = []
        for name in self._missing(cluster.wal):
            words = name.removeprefix(f"{cluster.wal}/").split("/")
            if len(words) == 4:
                last = words[3].rpartition("-")[2]
                start = first.get(words[0], 0)
                if len(last) == 16 and int(last, 16) <= start - start % (1 << 20):
                    continue
            wanted.append(name)
        # A timeline's history before what is on it.
        self._copy([name for name in wanted if name.endswith(".history")])
        self._copy([name for name in wanted if not name.endswith(".history")])

    def _copy_maps(self, cluster: ClusterNames) -> None:
        """Copy the block maps of WAL that is there: to make them again it would all have to be read."""

        def segments(folder: str, found: Iterable[str]) -> dict[str, str]:
            names = {name: name.removeprefix(f"{folder}/").split("/") for name in found}
            return {name: "/".join(words[:3]) for name, words in names.items() if len(words) >= 3}

        wal = (one.name for one in self._target.list_objects(cluster.wal))
        held = set(segments(cluster.wal, wal).values())
        missing = segments(cluster.maps, self._missing(cluster.maps))
        self._copy([name for name, segment in missing.items() if segment in held])

    def _missing(self, folder: str) -> list[str]:
        there = {one.name: one for one in self._target.list_objects(folder)}
        found = []
        for one in self._source.list_objects(folder):
            if one.name in there:
                self._compare(one, there[one.name])
            else:
                found.append(one.name)
        return found

    def _compare(self, here: StoredObject, there: StoredObject) -> None:
        self._report.present += 1
        # States are a place's own, and maps may have been made in each of them.
        is_own = "/states/" in here.name or "/maps/" in here.name
        if here.size_bytes != there.size_bytes and not is_own:
            self._report.problems.append(
                f'"{here.name}" has {here.size_bytes} bytes in {self._source.address}, and {there.size_bytes} in '
                f"{self._target.address}"
            )

    def _copy(self, wanted: Iterable[str]) -> bool:
        """Copy objects, several at a time; what is wrong is noted. Tell whether all are there."""
        results = list(self._pool.map(self._copy_one, wanted))
        self._report.problems += [problem for problem, _ in results if problem]
        self._report.objects += sum(size > 0 for _, size in results)
        self._report.bytes += sum(size for _, size in results)
        return not any(problem for problem, _ in results)

    def _copy_one(self, name: str) -> tuple[str, int]:
        """Return what is wrong, if anything, and how many bytes were copied."""
        try:
            content = self._source.get(name, most_bytes=limits.PARSED_MANIFEST_BYTES)
            header = frame.parse_header(name, content)
            frame.split_trailer(name, header, memoryview(content))
            if header.repository_id != self._id:
                return "", 0  # A killed init's: of a repository that never came to be.
        except _WRONG as problem:
            return problem.message, 0
        try:
            self._target.put_new(name, [content])
        except IntegrityError as problem:
            return problem.message, 0
        return "", len(content)


def _clear_part(name: str, content: bytes) -> Fields:
    """Return the part of a document that needs no key; its keyless hash is compared."""
    header = frame.parse_header(name, content)
    body, _, _ = frame.split_trailer(name, header, memoryview(content))
    clear, _ = documents.parse_body(name, body)
    return Fields(documents.parse_json(clear, f'"{name}"'), f'"{name}"')
