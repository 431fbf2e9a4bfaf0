"""Check a repository: that everything is there and readable that it says; with `read_data` every byte of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from polarvault.errors import IntegrityError, ObjectMissing, PolarvaultError, RepositoryNewer, RepositoryNotFound
from polarvault.model import limits
from polarvault.repository.catalogue.intents import Intent
from polarvault.repository.catalogue.repository import Repository
from polarvault.repository.format import names
from polarvault.repository.format.frame import Kind
from polarvault.repository.format.names import ClusterNames, pack_number
from polarvault.repository.maps.stored import read_map
from polarvault.repository.moves.reading import existing, read_moves
from polarvault.repository.reading.refs import read_refs
from polarvault.storage.objects.model import StoredObject

# A flipped bit can make an object look newer than the program.
_WRONG = (IntegrityError, ObjectMissing, RepositoryNewer)
# By the words of a name below the repository, and below a cluster.
_KINDS = {"features": Kind.FEATURE, "keys": Kind.KEY, "intents": Kind.INTENT, "moves": Kind.MOVES}
_PARTS = {"record": Kind.RECORD, "root": Kind.ROOT, "refs": Kind.REFS, "manifest": Kind.MANIFEST}


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong with an object; backups: those that need it."""

    name: str
    message: str
    backups: tuple[str, ...] = ()


@dataclass(slots=True)
class RepositoryCheck:
    """What was found. unused: packs without a record, which the next backup goes on with or `expire` removes."""

    objects: int = 0
    read_bytes: int = 0
    problems: list[Problem] = field(default_factory=list)
    unused: int = 0
    unknown: list[str] = field(default_factory=list)
    intents: Sequence[Intent] = ()


def check_repository(repository: Repository, *, read_data: bool) -> RepositoryCheck:
    """Look at every object; raise only if the store cannot be asked."""
    found = RepositoryCheck()
    users, sizes = _pack_users(repository, found)
    for one in repository.store.list_objects():
        found.objects += 1
        kind = _kind_of(one.name)
        if kind is None:
            if not one.name.startswith("probe-"):
                found.unknown.append(one.name)
            continue
        backups = users.get(one.name, ())
        if kind is Kind.DATA_PACK and not backups:
            found.unused += 1
        if sizes.get(one.name, one.size_bytes) != one.size_bytes:
            message = f"has {one.size_bytes} bytes, and the backup that wrote it says {sizes[one.name]}"
            found.problems.append(Problem(one.name, message, backups))
        is_data = kind in (Kind.DATA_PACK, Kind.WAL_RANGE, Kind.WAL_FILE)
        if is_data and not read_data:
            continue
        _check_object(repository, one, kind, backups, found)
    there = {one.name for one in repository.store.list_objects(names.CLUSTERS)}
    for name, backups in users.items():
        if name not in there:
            found.problems.append(Problem(name, "is missing", backups))
    for cluster in repository.clusters():
        found.problems += _missing_parts(cluster, there)
        found.problems += _missing_generations(repository, cluster, there)
    # One that is damaged is among the problems.
    with suppress(*_WRONG):
        found.intents = tuple(repository.intents.listed())
    return found


def _check_object(
    repository: Repository, one: StoredObject, kind: Kind, backups: tuple[str, ...], found: RepositoryCheck
) -> None:
    kinds = [Kind.DATA_PACK, Kind.INDEX_PACK] if kind is Kind.DATA_PACK else [kind]
    try:
        content = repository.store.get(one.name, most_bytes=limits.PARSED_MANIFEST_BYTES)
        found.read_bytes += len(content)
        if kind is Kind.KEY:
            return  # Each is looked at by `damaged_keys`: nobody needs all of them.
        if kind is Kind.MAP:
            read_map(repository.codec, one.name, content)
            return
        repository.codec.open(one.name, kinds, content)
    except _WRONG as problem:
        found.problems.append(Problem(one.name, problem.message, backups or _own_backup(one.name)))


def _pack_users(repository: Repository, found: RepositoryCheck) -> tuple[dict[str, tuple[str, ...]], dict[str, int]]:
    """Return which backups use each pack, and the size that each has by the backup that wrote it."""
    users: dict[str, list[str]] = {}
    sizes: dict[str, int] = {}
    for cluster in repository.clusters():
        cluster_names = ClusterNames.of(cluster)
        # One that is damaged is said when the object itself is looked at.
        moves = read_moves(repository.store, repository.codec, cluster)
        for pack, (size, _) in moves.sizes():
            sizes[cluster_names.pack(*pack)] = size
        for label in repository.labels(cluster):
            try:
                refs = read_refs(repository.store, repository.codec, cluster_names, label)
            except PolarvaultError:
                continue  # Said when the object itself is looked at, or missed.
            followed = moves.followed_by(label, refs.moves, existing(repository.store, cluster_names))
            for pack in followed.needed(refs.named):
                users.setdefault(cluster_names.pack(*pack), []).append(f"{cluster}@{label}")
            for ref in refs.packs:
                if ref.size_bytes is not None:
                    sizes[cluster_names.pack(ref.label, ref.number)] = ref.size_bytes
    for message in repository.damaged_keys():
        found.problems.append(Problem(names.KEYS, message))
    return {name: tuple(backups) for name, backups in users.items()}, sizes


def _missing_parts(cluster: str, there: set[str]) -> Iterator[Problem]:
    cluster_names = ClusterNames.of(cluster)
    folder = cluster_names.backups
    labels = {name.removeprefix(f"{folder}/").split("/")[0] for name in there if name.startswith(f"{folder}/")}
    for label in sorted(labels):
        if cluster_names.backup(label, "record") not in there:
            continue
        for part in ("root", "refs", "manifest"):
            name = cluster_names.backup(label, part)
            if name not in there:
                yield Problem(name, "is missing", (f"{cluster}@{label}",))


def _missing_generations(repository: Repository, cluster: str, there: set[str]) -> Iterator[Problem]:
    """Say which system identifiers of backups nothing is known of: their WAL cannot be read then."""
    cluster_names = ClusterNames.of(cluster)
    backups: dict[int, list[str]] = {}
    for label in repository.labels(cluster):
        with suppress(*_WRONG, RepositoryNotFound):
            record = repository.record(cluster, label)
            backups.setdefault(record.facts.system_identifier, []).append(f"{cluster}@{label}")
    for system_identifier, needing in backups.items():
        name = cluster_names.generation(system_identifier)
        if name not in there:
            yield Problem(name, "is missing; polarvault repo rebuild makes it again", tuple(needing))


def _own_backup(name: str) -> tuple[str, ...]:
    words = name.split("/")
    return (f"{words[1]}@{words[3]}",) if len(words) > 3 and words[2] == "backups" else ()


def _kind_of(name: str) -> Kind | None:
    """Return what an object must be by its name; packs of both kinds are data packs here."""
    if name == names.REPOSITORY:
        return Kind.REPOSITORY
    words = name.split("/")
    if len(words) == 2 and words[0] in _KINDS:
        return _KINDS[words[0]]
    if len(words) < 4 or words[0] != names.CLUSTERS:
        return None
    match words[2:]:
        case ["generations", _]:
            return Kind.GENERATION
        case ["backups", label, part] if names.is_label(label):
            return _PARTS.get(part)
        case ["packs", label, number] if names.is_label(label) and pack_number(number) is not None:
            return Kind.DATA_PACK
        case ["wal", _, _, _, _]:
            return Kind.WAL_RANGE
        case ["wal", _, _, _]:
            return Kind.WAL_FILE
        case ["maps", _, _, _]:
            return Kind.MAP
        case ["states", _, _]:
            return Kind.STATE
    return None
