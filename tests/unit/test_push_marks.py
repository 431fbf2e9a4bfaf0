"""Marks of what was pushed ahead: they hold for one file, once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from polarvault.errors import StoreUnreachable
from polarvault.storage.state_directory import state_directory
from polarvault.walarchive.detached import hold, is_alive, say_work
from polarvault.walarchive.pushing.ahead import Ahead, waiting_beside, work_of
from polarvault.walarchive.pushing.forerunner import Forerunner
from polarvault.walarchive.pushing.marks import Marks, file_identity, open_marks, place_identity
from support.waiting import wait_until

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
    marks_of(tmp_path).leave(str(segment), file_identity(str(segment)), [place_identity(str(place))])


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
    marks_of(tmp_path).leave(str(segment), identity, [place_identity(str(place))])
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


def make_ready(segment: Path, names: list[str]) -> None:
    for name in names:
        (segment.parent / name).write_bytes(name.encode())
        (segment.parent / "archive_status" / f"{name}.ready").touch()


def forerunner(marks: Marks, segment: Path, push: Callable[[str], object], **more: Any) -> Forerunner:
    return Forerunner(marks, str(segment.parent), push, [], own=NAME, **{"linger_s": 0.1} | more)


NAMES = [f"0000000100000000000000{number:02X}" for number in range(4, 12)]


def test_all_that_waits_is_pushed_in_the_servers_order_but_what_the_call_pushes_itself(
    tmp_path: Path, segment: Path
) -> None:
    make_ready(segment, [NAME, *NAMES, "00000002.history", "junk"])
    (segment.parent / NAMES[2]).unlink()
    (segment.parent / NAMES[2]).symlink_to(segment)
    assert [os.path.basename(path) for path in waiting_beside(str(segment))] == [*NAMES[:2], *NAMES[3:]]
    pushed: list[str] = []
    marks = marks_of(tmp_path)
    forerunner(marks, segment, lambda path: pushed.append(os.path.basename(path))).run()
    assert sorted(pushed) == [*NAMES[:2], *NAMES[3:]]
    assert all(marks.has(str(segment.parent / name)) for name in pushed)
    # Another one finds nothing to do.
    forerunner(marks, segment, lambda path: pushed.append("again")).run()
    assert "again" not in pushed


def test_what_comes_meanwhile_is_pushed_too_and_what_is_asked_for_without_a_mark(tmp_path: Path, segment: Path) -> None:
    make_ready(segment, [NAME, NAMES[0]])
    marks = marks_of(tmp_path)
    pushed: list[str] = []

    def push(path: str) -> None:
        name = os.path.basename(path)
        pushed.append(name)
        if name == NAMES[0] and pushed.count(name) == 1:
            make_ready(segment, [NAMES[1]])
        elif name == NAMES[1]:
            # The first call has failed, and the server asks again.
            Path(marks.directory, ".asked").write_text(NAME)

    forerunner(marks, segment, push, linger_s=0.5).run()
    assert pushed == [NAMES[0], NAMES[1], NAME]
    used = marks.take(str(segment.parent / NAMES[0]))
    assert used

    def ask_again(path: str) -> None:
        pushed.append(os.path.basename(path))
        if path.endswith(NAMES[3]):
            # Its mark is used, and whoever did was killed before the server heard of it.
            assert marks.take(str(segment.parent / NAMES[1]))
            Path(marks.directory, ".asked").write_text(NAMES[1])

    pushed.clear()
    make_ready(segment, [NAMES[3]])
    (segment.parent / "archive_status" / f"{NAMES[0]}.ready").unlink()
    forerunner(marks, segment, ask_again, linger_s=0.5).run()
    assert pushed == [NAMES[3], NAMES[1]]
    assert marks.has(str(segment.parent / NAMES[1]))


def test_what_fails_ahead_has_no_mark_and_is_left_to_its_call(tmp_path: Path, segment: Path) -> None:
    make_ready(segment, NAMES)
    pushed: list[str] = []
    given_up: list[bool] = []

    def push(path: str) -> None:
        if path.endswith(NAMES[5]):
            raise StoreUnreachable("away")
        pushed.append(os.path.basename(path))

    marks = marks_of(tmp_path)
    forerunner(marks, segment, push, give_up=lambda: given_up.append(True)).run()
    assert given_up == [True]
    marked = [name for name in NAMES if marks.has(str(segment.parent / name))]
    assert marked == sorted(pushed)
    # Nothing is begun behind it but what other threads were at.
    assert set(NAMES[:5]) <= set(marked) <= {*NAMES[:5], *NAMES[6:8]}


def test_it_ends_when_the_server_is_gone_or_takes_nothing(tmp_path: Path, segment: Path) -> None:
    make_ready(segment, NAMES)
    pushed: list[str] = []
    forerunner(marks_of(tmp_path), segment, pushed.append, is_wanted=lambda: False).run()
    assert pushed == []
    began = time.monotonic()
    forerunner(marks_of(tmp_path), segment, pushed.append, idle_s=0.3, linger_s=30).run()
    assert len(pushed) == len(NAMES)
    assert time.monotonic() - began < 10


def test_a_call_waits_for_the_process_that_is_at_its_work_and_no_longer(tmp_path: Path, segment: Path) -> None:
    make_ready(segment, [NAME])
    marks = marks_of(tmp_path)
    ahead = Ahead(marks, str(segment), wait_s=0.2)
    assert not ahead.take()
    lock = hold(marks.directory)
    assert lock is not None
    assert is_alive(marks.directory)
    # It works on something else.
    say_work(lock, work_of(marks, "/elsewhere"))
    assert not ahead.take()
    assert not Path(marks.directory, ".asked").exists()
    # It hangs.
    say_work(lock, work_of(marks, str(segment.parent)))
    assert not ahead.take()
    assert Path(marks.directory, ".asked").read_text() == NAME
    patient = Ahead(marks, str(segment), wait_s=60)

    def waited(end: Callable[[], object]) -> bool:
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(patient.take)
            wait_until(lambda: Path(marks.directory, ".asked").exists(), "it asks")
            assert not answer.done()
            end()
            Path(marks.directory, ".asked").unlink()
            return answer.result(timeout=20)

    Path(marks.directory, ".asked").unlink()
    assert waited(lambda: marks.leave(str(segment), file_identity(str(segment)), []))
    # It has given up, and then it is dead.
    assert not waited(lambda: say_work(lock, b""))
    say_work(lock, work_of(marks, str(segment.parent)))
    assert not waited(lambda: os.close(lock))
