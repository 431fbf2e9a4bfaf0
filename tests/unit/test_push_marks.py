"""Marks of what was pushed ahead: they hold for one file, once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from polarvault.errors import StoreUnreachable
from polarvault.storage.state_directory import state_directory
from polarvault.walarchive.pushing.ahead import Ahead, waiting_beside
from polarvault.walarchive.pushing.marks import Marks, file_identity, open_marks

NAME = "000000010000000000000003"


@pytest.fixture
def segment(tmp_path: Path) -> Path:
    path = tmp_path / "pg_wal" / NAME
    (path.parent / "archive_status").mkdir(parents=True)
    path.write_bytes(b"first page" * 1000)
    return path


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A file that says which repository this is."""
    path = tmp_path / "polarvault.json"
    path.write_text("one")
    return path


def marks_of(tmp_path: Path, told: str = "--cluster shop") -> Marks:
    found = open_marks({"XDG_STATE_HOME": str(tmp_path / "state")}, told, outside=[str(tmp_path / "pg_wal")])
    assert found is not None
    return found


def leave(tmp_path: Path, segment: Path, place: Path) -> None:
    marks_of(tmp_path).leave(str(segment), file_identity(str(segment)), [str(place)])


def test_a_mark_holds_once(tmp_path: Path, segment: Path, place: Path) -> None:
    leave(tmp_path, segment, place)
    assert marks_of(tmp_path).has(str(segment))
    assert marks_of(tmp_path).take(str(segment))
    assert not marks_of(tmp_path).take(str(segment))


def test_a_mark_is_of_no_other_file_with_the_name(tmp_path: Path, segment: Path, place: Path) -> None:
    leave(tmp_path, segment, place)
    content, times = segment.read_bytes(), segment.stat()
    segment.rename(segment.with_suffix(".old"))
    # The same bytes, size and times; recovery makes a new file.
    segment.write_bytes(content)
    os.utime(segment, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert not marks_of(tmp_path).take(str(segment))


def test_a_mark_ends_when_the_file_is_written_again(tmp_path: Path, segment: Path, place: Path) -> None:
    leave(tmp_path, segment, place)
    times = segment.stat()
    with segment.open("r+b") as stream:
        stream.seek(5000)
        stream.write(b"x")
    # Whoever puts the time of change back cannot put that of the inode back.
    os.utime(segment, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert not marks_of(tmp_path).take(str(segment))


def test_a_mark_is_of_one_repository_and_one_command_line(tmp_path: Path, segment: Path, place: Path) -> None:
    leave(tmp_path, segment, place)
    assert not marks_of(tmp_path, "--cluster other").has(str(segment))
    place.unlink()
    assert not marks_of(tmp_path).has(str(segment))
    place.write_text("another")
    assert not marks_of(tmp_path).has(str(segment))


def test_what_a_crash_leaves_of_a_mark_is_none(tmp_path: Path, segment: Path, place: Path) -> None:
    leave(tmp_path, segment, place)
    (mark,) = (tmp_path / "state").rglob(NAME)
    whole = mark.read_bytes()
    for end in range(0, len(whole), 7):
        mark.write_bytes(whole[:end])
        assert not marks_of(tmp_path).has(str(segment))
    mark.write_bytes(bytes(len(whole)))
    assert not marks_of(tmp_path).has(str(segment))


def test_a_file_that_changed_while_it_was_pushed_gets_no_mark(tmp_path: Path, segment: Path, place: Path) -> None:
    identity = file_identity(str(segment))
    segment.write_bytes(b"other")
    marks_of(tmp_path).leave(str(segment), identity, [str(place)])
    assert not marks_of(tmp_path).has(str(segment))


def test_state_lies_in_no_data_directory_and_in_none_that_others_write(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    assert state_directory({"XDG_STATE_HOME": str(data)}, "pushed", outside=[str(data)]) is None
    assert state_directory({"XDG_STATE_HOME": "relative", "HOME": str(data)}, outside=[str(data)], system="/no") is None
    good = {"XDG_STATE_HOME": str(tmp_path)}
    found = state_directory(good, "pushed", outside=[str(data)])
    assert found == str(tmp_path / "polarvault" / "pushed")
    os.chmod(found, 0o777)
    assert state_directory(good, "pushed", outside=[str(data)]) is None
    os.rmdir(found)
    os.symlink(data, found)
    assert state_directory(good, "pushed", outside=[str(data)]) is None


def test_what_fails_ahead_has_no_mark_and_stops_nobody(tmp_path: Path, segment: Path, place: Path) -> None:
    names = [f"0000000100000000000000{number:02X}" for number in range(4, 12)]
    for name in [*names, "00000002.history", "junk"]:
        (segment.parent / name).write_bytes(name.encode())
        (segment.parent / "archive_status" / f"{name}.ready").touch()
    beside = waiting_beside(str(segment))
    assert [os.path.basename(path) for path in beside] == names
    pushed: list[str] = []

    def push(path: str) -> None:
        if path.endswith(names[5]):
            raise StoreUnreachable("away")
        pushed.append(os.path.basename(path))

    ahead = Ahead(push, marks_of(tmp_path), lambda: [str(place)])
    ahead.begin(beside)
    ahead.join()
    marked = [name for name in names if marks_of(tmp_path).has(str(segment.parent / name))]
    assert marked == sorted(pushed)
    assert names[5] not in marked
    assert len(marked) == len(names) - 1
