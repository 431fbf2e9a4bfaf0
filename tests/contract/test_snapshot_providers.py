"""What every snapshot provider promises: what it makes, what it never touches, what a failure leaves behind.

A new provider adds a function to `PROVIDERS`. Those that need a file system of their own make one, as root.
"""

from __future__ import annotations

import os
import secrets
import stat
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from polarvault.errors import DiskFull, PolarvaultError
from polarvault.snapshots.btrfs import Btrfs
from polarvault.snapshots.choice import provider_for
from polarvault.snapshots.commands import Commands, CommandWords
from polarvault.snapshots.errors import NotOurs, SnapshotFailed, SnapshotRefused, StillNeeded
from polarvault.snapshots.model import Kind, Made, Place, SnapshotProvider
from polarvault.snapshots.names import name_of
from polarvault.snapshots.trees import Trees
from polarvault.snapshots.zfs import Zfs
from support.file_systems import HOOK, FileSystem, Unavailable, file_system
from support.small_disk import small_disk

PROVIDERS = ("zfs", "btrfs", "reflink-on-xfs", "reflink-on-btrfs", "commands", "copy")
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Site:
    """A provider, a directory that it takes (a volume of its own where that counts), and room for clones."""

    provider: SnapshotProvider
    source: Path
    area: Path
    disk: FileSystem | None = None

    def another_source(self, name: str) -> Path:
        """Return a second directory that the provider can take together with the first one."""
        return _new_source(self.disk, self.area.parent, name)

    def clone(self, snapshot: Made) -> tuple[Made, Path]:
        """Clone a snapshot of one directory; return the clone and where its files are."""
        id_ = new_id()
        made = self.provider.clone(snapshot, str(self.area / name_of(Kind.CLONE, id_)), id_)
        return made, Path(made.places[0].path or "")


def new_id() -> str:
    return secrets.token_hex(8)


def _new_source(disk: FileSystem | None, parent: Path, name: str) -> Path:
    path = parent / name
    if disk is not None and disk.dataset is not None:
        subprocess.run(["zfs", "create", f"{disk.dataset}/{name}"], check=True)
    elif disk is not None and disk.kind == "btrfs":
        subprocess.run(["btrfs", "subvolume", "create", str(path)], check=True, capture_output=True)
    else:
        path.mkdir()
    return path


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, FileSystem | str]]:
    """Every file system that can be made here, and why where it cannot; made when it is first asked for."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        class Lazily(dict[str, "FileSystem | str"]):
            def __missing__(self, kind: str) -> FileSystem | str:
                try:
                    directory = tmp_path_factory.mktemp(kind)
                    found: FileSystem | str = stack.enter_context(file_system(kind, directory))
                except Unavailable as reason:
                    found = str(reason)
                self[kind] = found
                return found

        yield Lazily()


@pytest.fixture(params=PROVIDERS)
def site(request: pytest.FixtureRequest, tmp_path: Path, disks: dict[str, FileSystem | str]) -> Site:
    return make_site(request.param, tmp_path, disks)


def make_site(word: str, tmp_path: Path, disks: dict[str, FileSystem | str]) -> Site:
    kind = {"zfs": "zfs", "btrfs": "btrfs", "reflink-on-xfs": "xfs", "reflink-on-btrfs": "btrfs"}.get(word)
    disk = None
    parent = tmp_path
    if kind is not None:
        found = disks[kind]
        if isinstance(found, str):
            pytest.skip(found)
        disk, parent = found, found.path / secrets.token_hex(4)
        if kind == "zfs":
            subprocess.run(["zfs", "create", f"{found.dataset}/{parent.name}"], check=True)
            disk = FileSystem("zfs", parent, f"{found.dataset}/{parent.name}")
        else:
            parent.mkdir()
    source = _new_source(disk if word in ("zfs", "btrfs") else None, parent, "source")
    area = parent / "area"
    area.mkdir()
    if word == "commands":
        program, store = tmp_path / "hook.sh", tmp_path / "store"
        program.write_text(HOOK)
        program.chmod(0o755)
        store.mkdir()
        base = (str(program), str(store))
        words = CommandWords(
            create=(*base, "create", "{name}", "{source}"), clone=(*base, "clone", "{name}", "{snapshot}", "{target}"),
            list=(*base, "list"), destroy=(*base, "destroy", "{name}"), timeout_s=20,
        )  # fmt: skip
        return Site(Commands(str(area), words), source, area)
    if word == "zfs":
        return Site(Zfs.of([str(source)]), source, area, disk)
    if word == "btrfs":
        return Site(Btrfs(str(area)), source, area, disk)
    return Site(Trees(str(area), shares=word != "copy"), source, area, None)


def fill(source: Path) -> None:
    """Make files of every sort that a cluster has, and names that are odd."""
    (source / "base").mkdir(mode=0o700)
    (source / "base" / "1").write_bytes(os.urandom(3 * MIB + 5))
    (source / "base" / "empty").touch(mode=0o640)
    (source / "empty directory").mkdir()
    (source / "odd\nname \u00e9").write_text("odd")
    Path(os.fsdecode(bytes(source) + b"/not\xff utf-8")).write_text("bytes")
    with (source / "hole").open("wb") as stream:
        stream.truncate(8 * MIB)
        stream.write(b"head")
    os.symlink("/nowhere/at all", source / "link")
    (source / "base" / "1").chmod(0o600)


def fill_up(path: Path) -> None:
    """Write a file until nothing more fits."""
    with path.open("wb", buffering=0) as stream, suppress(OSError):
        while True:
            stream.write(os.urandom(MIB))


def picture(root: Path) -> dict[bytes, tuple[object, ...]]:
    """Return everything below a directory: kinds, modes, owners, contents."""
    found: dict[bytes, tuple[object, ...]] = {}
    for directory, names, files in os.walk(bytes(root)):
        for name in (*names, *files):
            path = os.path.join(directory, name)
            status = os.lstat(path)
            inside = os.path.relpath(path, bytes(root))
            content: bytes | str = b""
            if stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(status.st_mode):
                content = Path(os.fsdecode(path)).read_bytes()
            found[inside] = (stat.S_IFMT(status.st_mode), stat.S_IMODE(status.st_mode), status.st_uid, content)
    return found


class TestMaking:
    """A snapshot stays what it was, and clones can be written."""

    def test_a_clone_is_what_the_source_was(self, site: Site) -> None:
        fill(site.source)
        before = picture(site.source)
        snapshot = site.provider.create([str(site.source)], new_id())
        (site.source / "base" / "1").write_bytes(b"changed since")
        (site.source / "new").write_text("made since")
        (site.source / "odd\nname \u00e9").unlink()
        _, files = site.clone(snapshot)
        assert picture(files) == before

    def test_writing_a_clone_changes_neither_the_snapshot_nor_the_source(self, site: Site) -> None:
        fill(site.source)
        before = picture(site.source)
        snapshot = site.provider.create([str(site.source)], new_id())
        _, first = site.clone(snapshot)
        (first / "base" / "1").write_bytes(b"written in the clone")
        (first / "mine").write_text("made in the clone")
        _, second = site.clone(snapshot)
        assert picture(second) == before == picture(site.source)
        assert (first / "mine").read_text() == "made in the clone"

    def test_several_directories_keep_their_order(self, site: Site) -> None:
        other = site.another_source("other")
        (site.source / "which").write_text("first")
        (other / "which").write_text("second")
        snapshot = site.provider.create([str(site.source), str(other)], new_id())
        assert [place.source for place in snapshot.places] == [str(site.source), str(other)]
        id_ = new_id()
        made = site.provider.clone(snapshot, str(site.area / name_of(Kind.CLONE, id_)), id_)
        assert [Path(place.path or "", "which").read_text() for place in made.places] == ["first", "second"]
        assert [place.source for place in made.places] == [str(site.source), str(other)]

    def test_an_id_that_is_taken_is_refused(self, site: Site) -> None:
        snapshot = site.provider.create([str(site.source)], new_id())
        with pytest.raises(SnapshotRefused):
            site.provider.create([str(site.source)], snapshot.id)
        assert snapshot.id in {one.id for one in site.provider.things()}

    def test_a_directory_that_is_not_there_is_refused(self, site: Site) -> None:
        with pytest.raises(SnapshotRefused):
            site.provider.create([str(site.source / "missing")], new_id())
        assert site.provider.things() == []


class TestListing:
    """What is listed is what was made here, with all that is needed to go on with it."""

    def test_what_was_made_is_listed_as_it_was_returned(self, site: Site) -> None:
        fill(site.source)
        snapshot = site.provider.create([str(site.source)], new_id())
        clone, _ = site.clone(snapshot)
        found = {(one.kind, one.id): one for one in site.provider.things()}
        assert found[Kind.SNAPSHOT, snapshot.id] == snapshot
        # Where a clone was put is its caller's affair: not all providers find it by themselves.
        if (Kind.CLONE, clone.id) in found:
            assert found[Kind.CLONE, clone.id] == clone

    def test_a_listed_snapshot_can_be_cloned(self, site: Site) -> None:
        fill(site.source)
        before = picture(site.source)
        site.provider.create([str(site.source)], new_id())
        (listed,) = site.provider.things()
        _, files = site.clone(listed)
        assert picture(files) == before

    def test_used_bytes_grow_with_what_is_written(self, site: Site) -> None:
        fill(site.source)
        snapshot = site.provider.create([str(site.source)], new_id())
        clone, files = site.clone(snapshot)
        os.sync()
        before = site.provider.used_bytes(clone)
        (files / "more").write_bytes(os.urandom(4 * MIB))
        os.sync()
        # ZFS counts when it has written a group of transactions, which a snapshot makes it do at once.
        site.provider.destroy(site.provider.create([str(site.source)], new_id()))
        after = site.provider.used_bytes(clone)
        assert before is not None
        assert after is not None
        if site.provider.name != "commands":
            assert 3 * MIB < after - before < 6 * MIB


class TestDestroying:
    """What we made goes, and nothing else ever does."""

    def test_a_snapshot_goes_and_is_not_missed_twice(self, site: Site) -> None:
        fill(site.source)
        before = picture(site.source)
        snapshot = site.provider.create([str(site.source)], new_id())
        site.provider.destroy(snapshot)
        site.provider.destroy(snapshot)
        assert site.provider.things() == []
        assert picture(site.source) == before

    def test_a_clone_goes_with_its_directory(self, site: Site) -> None:
        fill(site.source)
        snapshot = site.provider.create([str(site.source)], new_id())
        clone, files = site.clone(snapshot)
        (files / "mine").write_text("x")
        site.provider.destroy(clone)
        assert not files.parent.exists()
        assert [one.id for one in site.provider.things()] == [snapshot.id]
        site.provider.destroy(clone)

    def test_a_snapshot_with_a_clone_stays_or_leaves_the_clone_whole(self, site: Site) -> None:
        fill(site.source)
        before = picture(site.source)
        snapshot = site.provider.create([str(site.source)], new_id())
        clone, files = site.clone(snapshot)
        try:
            site.provider.destroy(snapshot)
        except StillNeeded:
            assert snapshot.id in {one.id for one in site.provider.things()}
            site.provider.destroy(clone)
            site.provider.destroy(snapshot)
        else:
            assert picture(files) == before

    def test_something_with_another_id_is_left_alone(self, site: Site) -> None:
        fill(site.source)
        snapshot = site.provider.create([str(site.source)], new_id())
        wrong = Made(Kind.SNAPSHOT, new_id(), snapshot.provider, snapshot.places)
        if site.provider.name == "commands":
            # Its names are made of ids alone: another id is another thing, which is not there.
            site.provider.destroy(wrong)
        else:
            with pytest.raises(NotOurs):
                site.provider.destroy(wrong)
        assert site.provider.things() == [snapshot]

    def test_somebody_elses_directory_with_our_name_is_left_alone(self, site: Site) -> None:
        id_ = new_id()
        name = name_of(Kind.SNAPSHOT, id_)
        if site.provider.name == "commands":
            (site.area.parent / "store" / name).mkdir()
            place, there = Place("x", name, "0", None), site.area.parent / "store" / name
        elif site.provider.name == "zfs":
            assert site.disk is not None
            subprocess.run(["zfs", "snapshot", f"{site.disk.dataset}/source@{name}"], check=True)
            place, there = Place("x", f"{site.disk.dataset}/source@{name}", "", None), None
        else:
            there = site.area / name / "0"
            there.mkdir(parents=True)
            (there / "precious").write_text("somebody's")
            place = Place("x", str(there), "", str(there))
        with pytest.raises(NotOurs):
            site.provider.destroy(Made(Kind.SNAPSHOT, id_, site.provider.name, (place,)))
        assert site.provider.things() == []
        if there is None:
            subprocess.run(["zfs", "list", place.volume], check=True, capture_output=True)
        else:
            assert there.exists()


class TestMoments:
    """Whoever promises one moment keeps it while somebody writes."""

    def test_an_atomic_snapshot_has_the_order_of_writes(self, site: Site) -> None:
        other = site.another_source("other")
        directories = [str(site.source), str(other)]
        if not site.provider.is_atomic(directories):
            directories = directories[:1]
            other = site.source
        if not site.provider.is_atomic(directories):
            pytest.skip(f"{site.provider.name}: {site.provider.atomicity(directories)}")
        first, second = site.source / "first", other / "second"
        stop = threading.Event()

        def write() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                for path in (first, second):
                    path.with_suffix(".new").write_text(str(number))
                    path.with_suffix(".new").rename(path)

        first.write_text("0")
        second.write_text("0")
        writer = threading.Thread(target=write)
        writer.start()
        try:
            for _ in range(3):
                snapshot = site.provider.create(directories, new_id())
                id_ = new_id()
                made = site.provider.clone(snapshot, str(site.area / name_of(Kind.CLONE, id_)), id_)
                roots = [Path(place.path or "") for place in made.places]
                numbers = int((roots[0] / "first").read_text()), int((roots[-1] / "second").read_text())
                assert numbers[0] - numbers[1] in (0, 1)
                site.provider.destroy(made)
                site.provider.destroy(snapshot)
        finally:
            stop.set()
            writer.join()
        assert site.provider.things() == []


class TestFailures:
    """What fails leaves nothing behind, and says what to do."""

    @pytest.mark.parametrize("word", ["zfs", "btrfs", "reflink-on-xfs"])
    def test_a_full_file_system_leaves_nothing_half(self, word: str, tmp_path: Path) -> None:
        kind = "xfs" if word == "reflink-on-xfs" else word
        try:
            with file_system(kind, tmp_path, size_mb=320) as disk:
                site = make_site(word, tmp_path / "x", {kind: disk})
                fill(site.source)
                snapshot = site.provider.create([str(site.source)], new_id())
                fill_up(site.area / "filler")
                # What takes no room may still be made; what is not made leaves nothing.
                with suppress(PolarvaultError):
                    clone, _ = site.clone(snapshot)
                    site.provider.destroy(clone)
                assert site.provider.things() == [snapshot]
                assert os.listdir(site.area) == ["filler"] or site.provider.name != "zfs"
        except Unavailable as reason:
            pytest.skip(str(reason))

    def test_a_copy_without_room_is_taken_back(self, tmp_path: Path) -> None:
        site = make_site("copy", tmp_path, {})
        (site.source / "small").write_text("fits")
        (site.source / "file").write_bytes(os.urandom(4 * MIB))
        with small_disk(site.area, "2m"):
            with pytest.raises(DiskFull):
                site.provider.create([str(site.source)], new_id())
            assert os.listdir(site.area) == []

    @pytest.mark.parametrize("body", ["exit 3", "sleep 600", "echo", "kill -9 $$"])
    def test_a_command_that_fails_hangs_or_does_nothing_leaves_nothing(self, body: str, tmp_path: Path) -> None:
        site = make_site("commands", tmp_path, {})
        bad = tmp_path / "bad.sh"
        bad.write_text(f"#!/bin/sh\n{body}\n")
        bad.chmod(0o755)
        good = site.provider._words  # type: ignore[attr-defined]
        words = CommandWords((str(bad), "{name}"), good.clone, good.list, good.destroy, timeout_s=1)
        with pytest.raises(SnapshotFailed) as raised:
            Commands(str(site.area), words).create([str(site.source)], new_id())
        assert str(bad) in raised.value.message
        assert raised.value.hint
        assert site.provider.things() == []
        assert os.listdir(site.area) == []
        snapshot = site.provider.create([str(site.source)], new_id())
        words = CommandWords(good.create, (str(bad), "{name}"), good.list, good.destroy, timeout_s=1)
        bad_site = Site(Commands(str(site.area), words), site.source, site.area)
        with pytest.raises(SnapshotFailed):
            bad_site.clone(snapshot)
        assert site.provider.things() == [snapshot]

    @pytest.mark.parametrize("body", ["exit 3", "sleep 600", "kill -9 $$"])
    @pytest.mark.parametrize("word", ["zfs", "btrfs"])
    def test_the_program_of_a_file_system_that_fails_or_hangs(
        self, word: str, body: str, tmp_path: Path, disks: dict[str, FileSystem | str]
    ) -> None:
        site = make_site(word, tmp_path, disks)
        program = tmp_path / word
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
        bad: SnapshotProvider = (
            Zfs.of([str(site.source)], program=str(program), timeout_s=1)
            if word == "zfs"
            else Btrfs(str(site.area), program=str(program), timeout_s=1)
        )
        with pytest.raises(SnapshotFailed) as raised:
            bad.create([str(site.source)], new_id())
        assert str(program) in raised.value.message
        assert site.provider.things() == []

    def test_a_program_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        words = CommandWords(("/nowhere/create",), ("x",), ("/nowhere/list",), ("x",))
        with pytest.raises(SnapshotFailed, match="/nowhere/list"):
            Commands(str(tmp_path), words).create([str(tmp_path)], new_id())

    def test_a_copy_that_was_cut_off_is_known_and_can_be_removed(self, tmp_path: Path) -> None:
        site = make_site("copy", tmp_path, {})
        snapshot = site.provider.create([str(site.source)], new_id())
        mark = site.area / name_of(Kind.SNAPSHOT, snapshot.id) / ".polarvault-made.json"
        mark.write_text(mark.read_text().replace('"whole": true', '"whole": false'))
        (found,) = site.provider.things()
        assert not found.is_whole
        site.provider.destroy(found)
        assert os.listdir(site.area) == []


class TestRefusals:
    """What would be missing in a snapshot is found before it is made."""

    def test_btrfs_refuses_nested_subvolumes(self, tmp_path: Path, disks: dict[str, FileSystem | str]) -> None:
        site = make_site("btrfs", tmp_path, disks)
        nested = site.source / "nested"
        subprocess.run(["btrfs", "subvolume", "create", str(nested)], check=True, capture_output=True)
        with pytest.raises(SnapshotRefused, match="nested"):
            site.provider.create([str(site.source)], new_id())
        assert site.provider.things() == []

    @pytest.mark.parametrize("word", ["zfs", "btrfs", "reflink-on-xfs"])
    def test_a_file_system_mounted_inside_is_refused(
        self, word: str, tmp_path: Path, disks: dict[str, FileSystem | str]
    ) -> None:
        site = make_site(word, tmp_path, disks)
        inner = site.source / "inner"
        inner.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(inner)], check=True)
        try:
            with pytest.raises(SnapshotRefused, match="inner"):
                site.provider.create([str(site.source)], new_id())
        finally:
            subprocess.run(["umount", str(inner)], check=True)

    def test_zfs_takes_no_more_than_was_asked_for(self, tmp_path: Path, disks: dict[str, FileSystem | str]) -> None:
        site = make_site("zfs", tmp_path, disks)
        assert site.disk is not None
        other = site.another_source("other")
        site.another_source("unrelated")
        snapshot = site.provider.create([str(site.source), str(other)], new_id())
        listed = subprocess.run(
            ["zfs", "list", "-H", "-r", "-t", "snapshot", "-o", "name", str(site.disk.dataset)],
            capture_output=True, text=True, check=True,
        ).stdout.split()  # fmt: skip
        assert listed == sorted({place.volume for place in snapshot.places}, reverse=False)

    def test_a_snapshot_that_somebody_took_of_our_clone_is_not_ours(
        self, tmp_path: Path, disks: dict[str, FileSystem | str]
    ) -> None:
        site = make_site("zfs", tmp_path, disks)
        snapshot = site.provider.create([str(site.source)], new_id())
        clone, _ = site.clone(snapshot)
        dataset = clone.places[0].volume
        subprocess.run(["zfs", "snapshot", f"{dataset}@{name_of(Kind.SNAPSHOT, clone.id)}"], check=True)
        assert {one.id for one in site.provider.things() if one.kind is Kind.SNAPSHOT} == {snapshot.id}
        with pytest.raises(StillNeeded):
            site.provider.destroy(clone)
        assert clone in site.provider.things()

    def test_the_provider_is_found_from_the_path(self, tmp_path: Path, disks: dict[str, FileSystem | str]) -> None:
        found = {}
        for word in ("zfs", "btrfs", "reflink-on-xfs"):
            kind = "xfs" if word == "reflink-on-xfs" else word
            if isinstance(disks[kind], str):
                continue
            site = make_site(word, tmp_path / word, disks)
            found[word] = provider_for([str(site.source)], str(site.area)).name
        assert found == {word: word.removesuffix("-on-xfs") for word in found}
        # Two file systems share nothing.
        if isinstance(xfs := disks["xfs"], FileSystem):
            assert provider_for([str(tmp_path)], str(xfs.path)).name == "copy"
