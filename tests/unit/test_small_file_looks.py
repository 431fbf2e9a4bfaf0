"""Looking at many small files at a time gives the verdict that reading each of them gives."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import google_crc32c
import pytest

from polarvault.pgfiles.manifest import ManifestFile, checksum
from polarvault.pgfiles.pages import PAGE_BYTES, page_checksum
from polarvault.storage.below import Below
from polarvault.verify.files.contents import Contents
from polarvault.verify.files.looks import Looked, SmallFilesOf, load_look
from polarvault.verify.files.small_first import look_at_small
from polarvault.verify.layout import Area, Half

READY = threading.Event()
READY.set()


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    if load_look() is None:
        pytest.skip("no code can be made here")


def page(block: int, filling: int = 7) -> bytes:
    content = bytearray(bytes([filling]) * PAGE_BYTES)
    struct.pack_into("<IIHHHH", content, 0, 0, 1, 0, 0, 64, 128)
    struct.pack_into("<H", content, 8, page_checksum(bytes(content), block))
    return bytes(content)


FILES = {
    "base/5/1": b"",
    "base/5/2": page(0),
    "base/5/3": page(0) + page(1, 9),
    "base/5/3_fsm": page(0, 3),
    "base/5/4.1": page(131072),
    "base/5/PG_VERSION": b"15\n",
    "global/1262": page(0),
    "PG_VERSION": b"15\n",
}


def block_of(path: str) -> int | None:
    from polarvault.pgfiles.pages import relation_segment

    segment = relation_segment(path)
    return None if segment is None else segment * 131072


def entries_of(files: dict[str, bytes]) -> dict[str, ManifestFile]:
    return {
        path: ManifestFile(path, len(content), "", "CRC32C", checksum(content, "CRC32C"))
        for path, content in files.items()
    }


def look(
    root: Path,
    entries: dict[str, ManifestFile],
    *,
    sizes: dict[str, int] | None = None,
    with_checksums: bool = True,
    with_pages: bool = True,
) -> tuple[set[str], Sequence[Looked]]:
    found_sizes = {str(p.relative_to(root)): p.lstat().st_size for p in root.rglob("*") if not p.is_dir()}
    with Below(root) as tree:
        found = Contents(Half(Area.LOCAL, str(root), None), sizes or found_sizes, tree=tree)
        taken: list[Looked] = []
        left = look_at_small(
            found, entries, with_checksums=with_checksums, first_block=block_of if with_pages else None, jobs=2,
            kernel_loaded=READY, take=taken.append,
        )  # fmt: skip
    return set(left), taken


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for path, content in FILES.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    return tmp_path


def test_what_is_right_needs_no_other_look(root: Path):
    left, taken = look(root, entries_of(FILES))
    assert left == set()
    assert sum(one.count for one in taken) == len(FILES)
    assert sum(one.size_bytes for one in taken) == sum(map(len, FILES.values()))
    assert sum(one.pages for one in taken) == 6


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _remove(path: Path) -> None:
    path.unlink()


def _link(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("damage", [_flip, _grow, _cut, _remove, _link, _fifo])
def test_what_has_changed_since_it_was_listed_is_left_to_be_read(damage: Callable[[Path], None], root: Path):
    sizes = {path: len(content) for path, content in FILES.items()}
    damage(root / "base/5/2")
    left, taken = look(root, entries_of(FILES), sizes=sizes)
    assert left == {"base/5/2"}
    assert sum(one.count for one in taken) == len(FILES) - 1
    assert sum(one.pages for one in taken) == 5
    assert sum(one.size_bytes for one in taken) == sum(sizes.values()) - PAGE_BYTES


def test_an_empty_file_that_has_grown_is_left(root: Path):
    sizes = {path: len(content) for path, content in FILES.items()}
    _grow(root / "base/5/1")
    assert look(root, entries_of(FILES), sizes=sizes)[0] == {"base/5/1"}


@pytest.mark.parametrize("path", [path for path, content in FILES.items() if len(content) >= PAGE_BYTES])
def test_a_page_that_was_wrong_before_the_backup_is_left(path: str, root: Path):
    wrong = bytearray(FILES[path])
    wrong[100] ^= 1
    (root / path).write_bytes(wrong)
    entries = entries_of({**FILES, path: bytes(wrong)})
    assert look(root, entries)[0] == {path}
    assert look(root, entries, with_pages=False)[0] == set()


def test_without_checksums_pages_are_looked_at_and_the_rest_is_left(root: Path):
    _flip(root / "base/5/2")
    _flip(root / "PG_VERSION")
    left, _ = look(root, entries_of(FILES), with_checksums=False)
    assert left == {"base/5/2", "PG_VERSION", "base/5/PG_VERSION"}


def test_what_the_loop_does_not_know_is_left(root: Path):
    (root / "large").write_bytes(bytes(100_000))
    (root / "extra").write_bytes(b"x")
    (root / "base/5/9").write_bytes(page(0)[:100])
    files = {**FILES, "large": bytes(100_000), "base/5/9": page(0)[:100]}
    entries = entries_of(files)
    entries["PG_VERSION"] = ManifestFile("PG_VERSION", 3, "", "SHA256", "ab" * 32)
    entries["global/1262"] = entries["global/1262"]._replace(size=1)
    left, _ = look(root, entries)
    assert left == {"large", "extra", "base/5/9", "PG_VERSION", "global/1262"}


def test_where_no_code_can_be_made_all_is_left(root: Path):
    with Below(root) as tree:
        files = SmallFilesOf(tree, "base/5")
        files.add("1", 0, 0, 0)
        files.add("2", PAGE_BYTES, None, 0)
        assert files.look(None) == Looked(0, 0, 0, ["base/5/1", "base/5/2"])


def test_a_directory_that_is_gone_is_left(root: Path):
    with Below(root) as tree:
        files = SmallFilesOf(tree, "base/6")
        files.add("1", 0, 0, 0)
        assert files.look(load_look()).others == ["base/6/1"]


def test_names_may_be_any_bytes(tmp_path: Path):
    name = os.fsdecode(b"odd \xff\n name")
    (tmp_path / name).write_bytes(b"x")
    with Below(tmp_path) as tree:
        files = SmallFilesOf(tree, "")
        files.add(name, 1, google_crc32c.value(b"x"), None)
        files.add("missing", 1, None, None)
        assert files.look(load_look()) == Looked(1, 1, 0, ["missing"])
