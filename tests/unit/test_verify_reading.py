"""Files read in pieces by several threads, and what bad pages mean."""

from __future__ import annotations

import hashlib
import struct
import threading
from pathlib import Path

import pytest

from polarvault.model.finding import Finding
from polarvault.model.lsn import Lsn
from polarvault.pgfiles.manifest import checksum
from polarvault.pgfiles.pages import PAGE_BYTES, BadPage, load_kernel, page_checksum
from polarvault.pgfiles.relation_paths import relation_of, unlogged_path
from polarvault.storage.below import Below
from polarvault.verify.files.reading import KEPT_PAGES, FileReading, FileTask, read_files, read_in_this_thread
from polarvault.verify.files.trees import IgnoreRules, is_layout_link, list_tree
from polarvault.verify.pages.findings import PageJudge


@pytest.fixture
def loaded() -> threading.Event:
    load_kernel()
    event = threading.Event()
    event.set()
    return event


def page(block: int, *, filler: int = 0, lsn: int = 0x1000) -> bytes:
    """Return a page with its right checksum."""
    content = bytearray(bytes([(block + filler) % 251 + 1]) * PAGE_BYTES)
    struct.pack_into("<IIHHHH", content, 0, lsn >> 32, lsn & 0xFFFFFFFF, 0, 0, 24, 8000)
    struct.pack_into("<H", content, 8, page_checksum(content, block))
    return bytes(content)


def pages(count: int, first: int = 0) -> bytes:
    return b"".join(page(first + number) for number in range(count))


def read_all(
    tasks: list[FileTask], loaded: threading.Event, *, jobs: int = 3, piece_bytes: int = 2 * PAGE_BYTES
) -> dict[str, FileReading]:
    ticks: list[int] = []
    found = read_files(tasks, jobs=jobs, kernel_loaded=loaded, on_tick=ticks.append, piece_bytes=piece_bytes)
    readings = {reading.task.name: reading for reading in found}
    assert ticks == sorted(ticks)
    return readings


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("bad", [0, 1, 2, 6])
def test_pages_are_numbered_on_across_pieces_and_segments(
    tmp_path: Path, loaded: threading.Event, count: int, bad: int
) -> None:
    # The second segment of a relation: its first page has the number of a whole segment's pages.
    first = 131072
    content = bytearray(pages(count, first))
    if bad < count:
        content[bad * PAGE_BYTES + 100] ^= 4
    path = tmp_path / "16384.1"
    path.write_bytes(content)
    task = FileTask("16384.1", str(path), len(content), None, "CRC32C", first)
    found = read_all([task], loaded)["16384.1"]
    assert (found.size, found.checked_pages) == (len(content), count)
    assert found.checksum == checksum(bytes(content), "CRC32C")
    assert [wrong.block for wrong in found.bad_pages] == ([first + bad] if bad < count else [])
    assert found.bad_count == len(found.bad_pages)


def test_members_of_a_tar_are_read_where_they_lie(tmp_path: Path, loaded: threading.Event) -> None:
    contents = {"one": pages(5), "two": b"", "three": pages(3, 40), "four": b"short"}
    path, tasks, tar = tmp_path / "base.tar", [], b""
    for name, content in contents.items():
        tar += b"x" * 512
        first_block = {"one": 0, "three": 40}.get(name)
        tasks.append(FileTask(name, str(path), len(content), len(tar), "CRC32C", first_block))
        tar += content + bytes(-len(content) % 512)
    path.write_bytes(tar)
    for name, found in read_all(tasks, loaded).items():
        assert (found.size, found.checksum) == (len(contents[name]), checksum(contents[name], "CRC32C"))
        assert not found.bad_count
    # Cut within a member, the rest of it is not there.
    path.write_bytes(tar[: tasks[2].offset or 0])
    assert read_all(tasks, loaded)["three"].size == 0


@pytest.mark.parametrize("algorithm", ["SHA224", "SHA256", "SHA384", "SHA512"])
def test_sums_that_cannot_be_put_together_are_not_split(
    tmp_path: Path, loaded: threading.Event, algorithm: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(pages(9))
    found = read_all([FileTask("file", str(path), 9 * PAGE_BYTES, None, algorithm, 0)], loaded)["file"]
    assert found.checksum == hashlib.new(algorithm, pages(9)).hexdigest()
    assert found.checked_pages == 9


def test_a_file_that_grew_or_shrank_is_read_to_its_end(tmp_path: Path, loaded: threading.Event) -> None:
    path = tmp_path / "file"
    path.write_bytes(pages(7))
    for said in (1, PAGE_BYTES, 6 * PAGE_BYTES, 30 * PAGE_BYTES):
        found = read_all([FileTask("file", str(path), said, None, "CRC32C")], loaded)["file"]
        assert (found.size, found.checksum) == (7 * PAGE_BYTES, checksum(pages(7), "CRC32C"))


def test_what_cannot_be_read_is_said_of_that_file_alone(tmp_path: Path, loaded: threading.Event) -> None:
    (tmp_path / "there").write_bytes(b"content")
    tasks = [FileTask(name, str(tmp_path / name), 7, None, "CRC32C") for name in ("there", "gone")]
    found = read_all(tasks, loaded)
    assert isinstance(found["gone"].problem, FileNotFoundError)
    assert found["there"].problem is None
    assert found["there"].checksum == checksum(b"content", "CRC32C")
    assert read_in_this_thread(tasks[0]).checksum == found["there"].checksum


def test_a_file_full_of_bad_pages_is_counted_but_not_all_kept(tmp_path: Path, loaded: threading.Event) -> None:
    count = KEPT_PAGES + 10
    path = tmp_path / "file"
    path.write_bytes(page(7) * count)
    found = read_all([FileTask("file", str(path), count * PAGE_BYTES, None, None, 0)], loaded)["file"]
    # The page is right where it belongs.
    assert found.bad_count == count - 1
    assert len(found.bad_pages) == KEPT_PAGES
    judge = PageJudge(None, None, wal_repairs=True)
    judge.accept(found, "base/5/1")
    assert len(judge.suspects()) == KEPT_PAGES
    (finding,) = judge.findings(None, is_whole=False)
    assert f"{count - 1} pages" in finding.message
    assert "block 0 " in finding.message
    assert f"and {count - 6} more" in finding.message


def test_closing_the_iterator_early_ends_the_threads(tmp_path: Path, loaded: threading.Event) -> None:
    path = tmp_path / "file"
    path.write_bytes(pages(4))
    tasks = [FileTask(str(number), str(path), 4 * PAGE_BYTES, None, "CRC32C", 0) for number in range(50)]
    before = threading.active_count()
    found = read_files(tasks, jobs=4, kernel_loaded=loaded, on_tick=lambda done: None)
    next(found)
    found.close()
    assert threading.active_count() == before


# Pages that are half old and half new

START, END = Lsn(0x2000), Lsn(0x3000)


def judged(judge: PageJudge, *lsns: int) -> list[str]:
    """Return the checks that are found where the WAL was not read."""
    task = FileTask("base/5/1", "", 0)
    bad = [BadPage(number, 1, 2, lsn) for number, lsn in enumerate(lsns)]
    judge.accept(FileReading(task, checked_pages=10, bad_count=len(bad), bad_pages=bad), "base/5/1")
    return [finding.check for finding in judge.findings(None, is_whole=False)]


def test_without_the_wal_a_page_of_the_backups_time_is_no_more_than_suspicious() -> None:
    judge = PageJudge(START, END, wal_repairs=True)
    assert judged(judge, 0x2000, 0x2FFF, 0x3000) == ["page-unproved"]
    assert (judge.checked_pages, judge.repaired_by_wal, judge.bad_pages) == (10, 0, 0)
    # Nothing in the WAL of the backup can be newer than its end.
    for lsn in (0x1FFF, 0x3001):
        assert judged(PageJudge(START, END, wal_repairs=True), lsn) == ["page-checksum"]
    assert judged(PageJudge(START, END, wal_repairs=True), 0x1FFF, 0x2500) == ["page-checksum", "page-unproved"]


def test_without_full_pages_in_wal_nothing_is_repaired() -> None:
    # PolarDB with full_page_writes off does not write them, not even during a backup.
    assert judged(PageJudge(START, END, wal_repairs=False), 0x2500) == ["page-checksum"]


def test_without_a_label_nothing_is_taken_for_repaired() -> None:
    assert judged(PageJudge(None, None, wal_repairs=True), 0x2500) == ["page-checksum"]
    assert judged(PageJudge(START, None, wal_repairs=True), 0x2500) == ["page-unproved"]


def test_pages_of_an_unlogged_relation_are_made_anew() -> None:
    judge = PageJudge(START, END, wal_repairs=True)
    judge.accept(FileReading(FileTask("base/5/1", "", 0), bad_count=2), "base/5/1", is_made_anew=True)
    assert (judge.suspects(), judge.repaired_by_wal) == ([], 2)


@pytest.mark.parametrize(
    ("path", "relation"),
    [
        ("base/5/16384", ((1663, 5, 16384), 0)),
        ("base/5/16384.12", ((1663, 5, 16384), 0)),
        ("base/5/16384_vm.1", ((1663, 5, 16384), 2)),
        ("global/1260_fsm", ((1664, 0, 1260), 1)),
        ("pg_tblspc/16400/PG_18_202506291/5/16384_init", ((16400, 5, 16384), 3)),
        ("base/5/pg_filenode.map", None),
        ("base/16384", None),
        ("global/5/16384", None),
        ("base/5/t3_16384", None),
    ],
)
def test_the_path_of_a_file_tells_its_relation(path: str, relation: tuple[tuple[int, ...], int] | None) -> None:
    assert relation_of(path) == relation
    is_other = relation is not None and relation[1] != 3
    assert unlogged_path(path) == (f"{path.rpartition('/')[0]}/{relation[0][2]}_init" if is_other else None)


# What is left out


@pytest.mark.parametrize(
    ("path", "is_covered"),
    [
        ("pg_wal", True),
        ("pg_wal/0001", True),
        ("pg_wal2", False),
        ("backup_manifest", True),
        ("backup_manifest.shared", False),
        ("base/backup_manifest", False),
        ("standby.signal", True),
        ("base/5/1", True),
        ("base/5/1.1", False),
        ("base/6/7", True),
        ("base/6", True),
        ("base/66", False),
        ("base", False),
        ("a b/c", True),
        ("", False),
    ],
)
def test_ignored_paths_are_left_out_with_all_below_them(path: str, is_covered: bool) -> None:
    assert IgnoreRules(["base/5/1", "./base//6/", "a b"]).covers(path) is is_covered


def test_a_tree_is_listed_with_odd_names_and_links_that_stay_inside(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    names = ["plain", "with space", "line\nbreak", "\udcff"]
    outside.mkdir()
    (root / "deep/er").mkdir(parents=True)
    for name in names:
        (root / "deep/er" / name).write_bytes(b"12")
    (outside / "in").write_bytes(b"123")
    (root / "link").symlink_to("deep/er")
    (root / "deep/file").symlink_to(root / "deep/er/plain")
    (root / "pg_tblspc").mkdir()
    (root / "pg_tblspc/16384").symlink_to(outside)
    (root / "pg_wal").mkdir()
    (root / "pg_wal/left out").write_bytes(b"")
    with Below(root, links=is_layout_link) as tree:
        found = list_tree(tree, IgnoreRules([]), str, pytest.fail)
    expected = {f"{place}/{name}": 2 for name in names for place in ("deep/er", "link")}
    assert found.sizes == expected | {"deep/file": 2, "pg_tblspc/16384/in": 3}
    assert found.names == {"deep/file": "deep/er/plain"} | {f"link/{name}": f"deep/er/{name}" for name in names}


def test_links_that_lead_out_of_a_tree_are_not_followed(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "base").mkdir(parents=True)
    (outside / "dir").mkdir(parents=True)
    (outside / "dir/in").write_bytes(b"123")
    (root / "base/5").symlink_to(outside / "dir")
    (root / "base/file").symlink_to(outside / "dir/in")
    (root / "pg_tblspc").symlink_to(outside)
    (root / "up").symlink_to("..")
    (root / "here").symlink_to(".")
    (root / "device").symlink_to("/dev/null")
    said: list[Finding] = []
    with Below(root, links=is_layout_link) as tree:
        found = list_tree(tree, IgnoreRules([]), str, said.append)
    assert found.sizes == {"base/file": 3}
    assert found.outside == {"base/file": str(outside / "dir/in")}
    assert {(one.check, one.subject) for one in said} == {
        ("link-outside", "base/5"), ("link-outside", "pg_tblspc"), ("link-outside", "up"), ("not-a-file", "here"),
        ("not-a-file", "device"),
    }  # fmt: skip
    assert found.refused == {one.subject for one in said}
