"""Snapshots of ZFS datasets by the `zfs` program: of one moment, over several datasets of one pool as well.

Facts: zfs-snapshot(8), zfs-clone(8), zfs-destroy(8). `-o` with a property of ours goes with the making, so that nothing
of ours is ever without it. A recursive snapshot is one transaction; what it makes in datasets that were not asked for
is destroyed at once. Destroying is never recursive (-r, -R) and never forced (-f): a snapshot with clones stays.

Options that zfs-fuse, which has pool version 23, does not know are not used: `list -p`, several snapshots in one line.
On Linux nobody but root can mount, so that clones need root or sudo, whatever `zfs allow` has delegated.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from polarvault.errors import PolarvaultError
from polarvault.snapshots.errors import NotOurs, SnapshotFailed, SnapshotRefused, StillNeeded
from polarvault.snapshots.model import Atomicity, Kind, Made, Place
from polarvault.snapshots.mounts import Mount, mount_of, mounts_below
from polarvault.snapshots.names import name_of, parse_name
from polarvault.snapshots.programs import ProgramRefused, run
from polarvault.snapshots.zfs_advice import PROPERTIES, RIGHTS, advice, missing_rights
from polarvault.storage.files import storage_failed

KINDS = ("zfs", "fuse.zfs")
_ID = "polarvault:id"
# Where the directories of a snapshot are: "inside\nsource", one property for each, because a value has 1024 bytes.
_PLACE = "polarvault:place"
_MOST_VALUE_BYTES = 1000
_NO_SUCH = re.compile(r"does not exist|no such|could not find", re.IGNORECASE)
_HAS_CLONES = re.compile(r"dependent clones|has children", re.IGNORECASE)
_BUSY = re.compile(r"is busy", re.IGNORECASE)
_BUSY_S, _BUSY_POLL_S = 10.0, 0.1
_RIGHTS = re.compile(r"permission denied|must be superuser|not permitted", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Properties:
    """What is set on one dataset or snapshot itself, and where the rest comes from: (value, source) by property."""

    name: str
    values: dict[str, tuple[str, str]]

    def local(self, name: str) -> str | None:
        """Return a value that was set on this very thing; children and snapshots inherit the others."""
        value, source = self.values.get(name, ("-", "-"))
        return value if source == "local" else None


class Zfs:
    """Makes snapshots in the datasets themselves, and clones beside them. Implements `model.SnapshotProvider`.

    datasets: those whose snapshots and clones are listed, with all below the datasets that they lie in.
    """

    def __init__(self, datasets: Sequence[str], *, program: str = "zfs", timeout_s: float = 120.0) -> None:
        self._datasets = tuple(datasets)
        self._program = program
        self._timeout_s = timeout_s

    @classmethod
    def of(cls, directories: Iterable[str], *, program: str = "zfs", timeout_s: float = 120.0) -> Zfs:
        """Return the provider for the datasets that hold some directories."""
        return cls([_dataset_of(one).device for one in directories], program=program, timeout_s=timeout_s)

    @property
    def name(self) -> str:
        """The word for it."""
        return "zfs"

    def atomicity(self, directories: Sequence[str]) -> Atomicity:
        """Return that one pool is of one moment."""
        return Atomicity.SET

    def is_atomic(self, directories: Sequence[str]) -> bool:
        """Tell whether all directories lie in one pool."""
        return len({_dataset_of(directory).device.partition("/")[0] for directory in directories}) == 1

    def create(self, directories: Sequence[str], id_: str) -> Made:
        """Make one snapshot over the datasets of one pool, and one after the other for several pools."""
        mounted = [_dataset_of(directory) for directory in directories]
        for directory in directories:
            _refuse_mounts(directory)
        inside = [_inside(directory, mount) for directory, mount in zip(directories, mounted, strict=True)]
        datasets = list(dict.fromkeys(mount.device for mount in mounted))
        label = name_of(Kind.SNAPSHOT, id_)
        if any(self._exists(f"{dataset}@{label}") for dataset in datasets):
            raise SnapshotRefused(f"a snapshot {label} exists already", hint="nothing was changed")
        places = tuple(
            Place(os.path.realpath(directory), f"{mount.device}@{label}", where, None)
            for directory, mount, where in zip(directories, mounted, inside, strict=True)
        )
        made = Made(Kind.SNAPSHOT, id_, "zfs", places)
        properties = [f"{_ID}={id_}", *_place_properties(places)]
        pools = list(dict.fromkeys(dataset.partition("/")[0] for dataset in datasets))
        try:
            for pool in pools:
                self._snapshot([one for one in datasets if one.partition("/")[0] == pool], label, properties)
        except BaseException:
            self._take_back(datasets, made, label)
            raise
        return made

    def clone(self, snapshot: Made, target: str, id_: str) -> Made:
        """Clone each dataset of a snapshot beside it, mounted at target/NUMBER."""
        target = os.path.abspath(target)
        volumes = list(dict.fromkeys(place.volume for place in snapshot.places))
        datasets = {volume: _clone_name(volume, id_, number) for number, volume in enumerate(volumes)}
        taken = next((one for one in datasets.values() if self._exists(one)), None)
        if taken is not None or os.path.lexists(target):
            raise SnapshotRefused(f'"{taken or target}" exists already', hint="nothing was changed")
        places = tuple(
            Place(
                place.source, datasets[place.volume], place.inside,
                os.path.join(target, str(volumes.index(place.volume)), place.inside).rstrip("/"),
            )
            for place in snapshot.places
        )  # fmt: skip
        made = Made(Kind.CLONE, id_, "zfs", places)
        try:
            os.mkdir(target, 0o700)
        except OSError as problem:
            raise storage_failed(problem, "create directory", target) from problem
        try:
            for number, (volume, dataset) in enumerate(datasets.items()):
                point = os.path.join(target, str(number))
                words = ["clone", "-o", f"{_ID}={id_}", "-o", f"mountpoint={point}"]
                for place in _place_properties([one for one in places if one.volume == dataset]):
                    words += ["-o", place]
                self._run([*words, volume, dataset])
                if mount_of(point).device != dataset:
                    raise SnapshotFailed(
                        f'the clone {dataset} is not mounted at "{point}"',
                        hint="on Linux only root can mount: run this as root or through sudo",
                    )
        except BaseException:
            with suppress(PolarvaultError):
                self.destroy(made)
            with suppress(OSError):
                os.rmdir(target)
            raise
        return made

    def things(self) -> list[Made]:
        """Return every snapshot and clone with our name and our property, in these datasets and in all beside them."""
        roots = list(dict.fromkeys(_above(dataset) for dataset in self._datasets))
        found: dict[tuple[Kind, str], list[Place]] = {}
        for root in roots:
            listed = self._run(["list", "-H", "-r", "-t", "filesystem,snapshot", "-o", "name", root]).splitlines()
            names = [name for name in listed if (parsed := _parse(name)) is not None and parsed[0] in Kind]
            for thing in self._properties(names):
                kind, id_ = _kind_and_id(thing.name)
                if thing.local(_ID) != id_:
                    continue
                found.setdefault((kind, id_), []).extend(_places_of(thing, kind))
        return [
            Made(kind, id_, "zfs", tuple(places))
            for (kind, id_), places in sorted(found.items(), key=lambda item: item[0][1])
        ]

    def destroy(self, made: Made) -> None:
        """Destroy the snapshots or datasets of a thing, each after its name and its property were looked at."""
        for name in dict.fromkeys(place.volume for place in made.places):
            self._destroy(name, made)
        if made.kind is Kind.CLONE:
            for place in made.places:
                # Mount points that are empty now, and the directory above them.
                for directory in _mount_directories(place):
                    with suppress(OSError):
                        os.rmdir(directory)

    def used_bytes(self, made: Made) -> int | None:
        """Return what `zfs get used` says: of a snapshot or clone the room that it alone takes."""
        names = list(dict.fromkeys(place.volume for place in made.places))
        sizes = [thing.values.get("used", ("", ""))[0] for thing in self._properties(names, "used")]
        return sum(map(int, sizes)) if sizes and all(size.isdecimal() for size in sizes) else None

    def advice(self, *, relies_on_records: bool = False) -> list[str]:
        """Return what to change for a database, and the rights that whoever runs this lacks; of old ZFS less is known.

        relies_on_records: as for `zfs_advice.advice`.
        """
        found: list[str] = []
        for dataset in dict.fromkeys(self._datasets):
            values: dict[str, str] = {}
            for name in PROPERTIES:
                with suppress(ProgramRefused):
                    (thing,) = self._properties([dataset], name)
                    values |= {name: value for name, (value, _) in thing.values.items()}
            found += advice(dataset, values, relies_on_records=relies_on_records)
            if os.geteuid() != 0:
                found += self._lacking(dataset)
        return found

    def _lacking(self, dataset: str) -> list[str]:
        try:
            user = pwd.getpwuid(os.geteuid()).pw_name
            groups = {grp.getgrgid(number).gr_name for number in os.getgroups()}
            missing = missing_rights(self._run(["allow", dataset]), user, groups)
        except (KeyError, SnapshotFailed):
            return []  # What is really lacking is told by what fails.
        if not missing:
            return []
        return [
            f"{user} lacks {', '.join(missing)} on {dataset}; as root: zfs allow {user} {','.join(missing)} {dataset}"
        ]

    def _snapshot(self, datasets: Sequence[str], label: str, properties: Sequence[str]) -> None:
        """Take snapshots of datasets of one pool in one transaction."""
        options = [word for one in properties for word in ("-o", one)]
        if len(datasets) == 1:
            self._run(["snapshot", *options, f"{datasets[0]}@{label}"])
            return
        common = os.path.commonpath(datasets)
        self._run(["snapshot", "-r", *options, f"{common}@{label}"])
        listed = self._run(["list", "-H", "-r", "-t", "snapshot", "-o", "name", common]).splitlines()
        id_ = _kind_and_id(f"{common}@{label}")[1]
        for name in listed:
            dataset, _, its_label = name.partition("@")
            if its_label == label and dataset not in datasets:
                self._destroy(name, Made(Kind.SNAPSHOT, id_, "zfs", ()))

    def _take_back(self, datasets: Sequence[str], made: Made, label: str) -> None:
        """Destroy what a failure has left of a snapshot; what keeps it from going need not be heard of."""
        for pool in {dataset.partition("/")[0] for dataset in datasets}:
            with suppress(PolarvaultError):
                for name in self._run(["list", "-H", "-r", "-t", "snapshot", "-o", "name", pool]).splitlines():
                    if name.partition("@")[2] == label:
                        self._destroy(name, made)

    def _destroy(self, name: str, made: Made) -> None:
        parsed = _parse(name)
        if parsed is None or parsed != (made.kind, made.id):
            raise NotOurs(
                f"{name} is not the {made.kind.value} {made.id}: it is left as it is", hint=f"zfs list {name}"
            )
        if not self._exists(name):
            return
        (thing,) = self._properties([name], f"{_ID},origin")
        origin = thing.values.get("origin", ("-", "-"))[0]
        # A dataset of that name that is no clone holds data of its own.
        if thing.local(_ID) != made.id or (made.kind is Kind.CLONE and origin == "-"):
            raise NotOurs(
                f"{name} does not carry the id {made.id}: it is left as it is", hint=f"zfs get all {name}"
            )  # fmt: skip
        deadline = time.monotonic() + _BUSY_S
        while True:
            try:
                self._run(["destroy", name])
                return
            except ProgramRefused as refused:
                if _BUSY.search(refused.said) and time.monotonic() < deadline:
                    # A file that was closed a moment ago, or a mount that is just ending.
                    time.sleep(_BUSY_POLL_S)
                elif _BUSY.search(refused.said) or _HAS_CLONES.search(refused.said):
                    raise StillNeeded(
                        f"{name} was not destroyed: {' '.join(refused.said.split())[:300]}",
                        hint="remove the clones that were made of it first, or end what uses it: polarvault clone list",
                    ) from refused
                else:
                    raise

    def _exists(self, name: str) -> bool:
        try:
            self._run(["list", "-H", "-t", "filesystem,snapshot", "-o", "name", name])
        except ProgramRefused as refused:
            if _NO_SUCH.search(refused.said):
                return False
            raise
        return True

    def _properties(self, names: Sequence[str], wanted: str = "all") -> list[_Properties]:
        """Return properties of several things, a line each: name, property, value, source."""
        found: dict[str, dict[str, tuple[str, str]]] = {name: {} for name in names}
        # A command line has its limits.
        for first in range(0, len(names), 200):
            some = names[first : first + 200]
            lines = self._run(["get", "-H", "-p", "-o", "name,property,value,source", wanted, *some])
            # A value of ours has no newline in it; each is on one line.
            for line in lines.split("\n"):
                fields = line.split("\t")
                if len(fields) == 4 and fields[0] in found:
                    found[fields[0]][fields[1]] = (fields[2], fields[3])
        return [_Properties(name, values) for name, values in found.items()]

    def _run(self, words: Sequence[str]) -> str:
        try:
            return run([self._program, *words], timeout_s=self._timeout_s)
        except ProgramRefused as refused:
            if _RIGHTS.search(refused.said):
                refused.hint = (
                    f"run it as root, or as root: zfs allow USER {','.join(RIGHTS)} DATASET; "
                    "clones need root on Linux all the same, where nobody else can mount"
                )
            raise


def _dataset_of(directory: str) -> Mount:
    """Return the mount of the dataset that holds a directory; raise SnapshotRefused where it is none."""
    if not os.path.isdir(directory):
        raise SnapshotRefused(f'"{directory}" is not a directory', hint=f"see what it is: ls -ld {directory}")
    found = mount_of(directory)
    if found.kind not in KINDS:
        raise SnapshotRefused(f'"{directory}" does not lie on ZFS', hint=f"findmnt -T {directory}")
    return found


def _refuse_mounts(directory: str) -> None:
    for inner in mounts_below(directory):
        raise SnapshotRefused(
            f'another file system is mounted at "{inner.point}", inside of "{directory}": in a snapshot it '
            "would be empty",
            hint="name that directory beside the others",
        )


def _inside(directory: str, mount: Mount) -> str:
    inside = os.path.relpath(os.path.realpath(directory), mount.point)
    return "" if inside == "." else inside


def _clone_name(volume: str, id_: str, number: int) -> str:
    """Return the name of the clone of a snapshot: beside its dataset, or below it where that is the whole pool."""
    return f"{_above(volume.partition('@')[0])}/{name_of(Kind.CLONE, id_, number)}"


def _above(dataset: str) -> str:
    return dataset.rpartition("/")[0] or dataset


def _parse(name: str) -> tuple[Kind, str] | None:
    """Return what a dataset or snapshot is by its name; None for somebody else's."""
    dataset, at, label = name.partition("@")
    found = parse_name(label if at else dataset.rpartition("/")[2])
    if found is None:
        return None
    kind, id_, part = found
    # A snapshot that somebody took of our clone is not ours.
    is_right = (kind is Kind.SNAPSHOT and part is None) if at else (kind is Kind.CLONE and part is not None)
    return (kind, id_) if is_right else None


def _kind_and_id(name: str) -> tuple[Kind, str]:
    found = _parse(name)
    assert found is not None
    return found


def _place_properties(places: Sequence[Place]) -> list[str]:
    """Return the properties that tell later what the volumes hold; a source that does not fit is left out."""
    found = []
    for number, place in enumerate(places):
        dataset = place.volume.partition("@")[0]
        value = os.fsencode("\0".join((dataset, place.inside, place.source))).hex()
        if len(value) <= _MOST_VALUE_BYTES:
            found.append(f"{_PLACE}{number}={value}")
    return found


def _places_of(thing: _Properties, kind: Kind) -> list[Place]:
    """Return the places of one volume that was listed, as its properties tell them."""
    dataset = thing.name.partition("@")[0]
    point = thing.values.get("mountpoint", ("", ""))[0] if kind is Kind.CLONE else ""
    found = []
    for name in thing.values:
        value = thing.local(name) if name.startswith(_PLACE) else None
        if value is None:
            continue
        try:
            its_dataset, inside, source = os.fsdecode(bytes.fromhex(value)).split("\0")
        except ValueError:
            continue
        if its_dataset == dataset:
            found.append(Place(source, thing.name, inside, os.path.join(point, inside).rstrip("/") if point else None))
    return found or [Place("", thing.name, "", point or None)]


def _mount_directories(place: Place) -> list[str]:
    if place.path is None:
        return []
    point = place.path.removesuffix("/" + place.inside) if place.inside else place.path
    return [point, os.path.dirname(point)]
