"""Large backups: memory that does not grow with the database, files of several tables, many small files."""

from __future__ import annotations

import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from polarvault.repository.index.files import FileKind, FileRow
from polarvault.repository.reading.verify import verify_backup
from polarvault.repository.writing.backup_writer import Member
from support.repositories import NOW, PARTS, facts, new_repository

pytestmark = pytest.mark.slow

# Data packs are thrown away, as if the store were elsewhere; the index is kept, because the next backup reads it.
WRITER = """
import random, re, sys
from datetime import timedelta
from polarvault.repository.index.files import FileKind
from polarvault.repository.writing.backup_writer import Member
from polarvault.storage.objects.memory import MemoryStore
from polarvault.storage.objects.write_once import WriteOnce
from support.repositories import NOW, PARTS, facts, new_repository

class Elsewhere(MemoryStore):
    def put_new(self, name, views, *, from_reserve=False):
        if not ("/packs/" in name and bytes(views[0][10:12]) == b"\\x0b\\0"):
            super().put_new(name, views, from_reserve=from_reserve)
            return
        with self._lock:
            self._objects[name] = b"", NOW

def index_bytes(store):
    return sum(len(content) for content, _ in store._objects.values())

store = Elsewhere()
repository = new_repository(WriteOnce(store))
size, gigabytes = 1 << 30, int(sys.argv[1])
# A third of every page does not compress, so that packs fill up.
chance = random.Random(1)
block = bytearray(b"".join(chance.randbytes(2700) + bytes(5492) for _ in range(128)))
parent = None
for number in range(2):
    writer = repository.begin_backup("shop", started=NOW + timedelta(minutes=number), parts=PARTS, parent=parent)
    for file in range(gigabytes):
        writer.begin(Member(0, b"base/5/%d" % file, FileKind.FILE, size))
        for part in range(size >> 20):
            for page in range(0, len(block), 8192):
                stamp = file << 40 | part << 20 | page | (number and not part % 50)
                block[page : page + 8] = stamp.to_bytes(8, "big")
            writer.data([block])
        writer.end()
    outcome = writer.commit(facts())
    parent = outcome.label
    # Not ru_maxrss: that begins with what the process that started this one has.
    peak = int(re.search("VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) // 1024
    print(peak - index_bytes(store) // (1 << 20), outcome.counts.changed_bytes, outcome.counts.stored_bytes, flush=True)
"""


def test_a_backup_of_20_gb_takes_less_than_200_mb() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", WRITER, "20"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": "src:tests"},
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    (full, *_), (more, changed, _) = [list(map(int, line.split())) for line in ran.stdout.splitlines()]
    assert changed > 0
    # What the store holds here would lie elsewhere; it is taken off.
    assert max(full, more) < 200, ran.stdout


def page_of(number: int, version: int) -> bytes:
    """Return a page that is known by its number, in the version that a backup holds."""
    return (number * 1_000_003 + version).to_bytes(16, "big") * 4 + bytes(8192 - 64)


def test_a_file_of_several_tables_grows_changes_and_is_cut_at_their_borders() -> None:
    repository = new_repository()
    table = (1 << 30) // 8192
    chance = random.Random(1)
    versions: dict[int, int] = {}
    parent, label = None, ""
    # Pages at the end of each round: in the second table, all of two, one page more than one, exactly one.
    for number, pages in enumerate((table + 40, 2 * table, table + 1, table, table + 7)):
        for page in [*chance.sample(range(pages), 50), 0, min(table, pages - 1), table - 1, pages - 1]:
            versions[page] = number
        writer = repository.begin_backup("shop", started=NOW + timedelta(minutes=number), parts=PARTS, parent=parent)
        writer.begin(Member(0, b"base/5/1", FileKind.FILE, pages * 8192))
        for first in range(0, pages, 128):
            last = min(first + 128, pages)
            writer.data([b"".join(page_of(page, versions.get(page, 0)) for page in range(first, last))])
        writer.end()
        outcome = writer.commit(facts(number))
        parent = label = outcome.label
        if number:
            assert outcome.counts.stored_bytes < 6 << 20 or pages == 2 * table
        reader = repository.open_backup("shop", label)
        seen = bytearray(pages)

        def deliver(row: FileRow, offset: int, view: memoryview, seen: bytearray = seen) -> None:
            for at in range(0, len(view), 8192):
                page = (offset + at) // 8192
                assert view[at : at + 64] == page_of(page, versions.get(page, 0))[:64]
                seen[page] += 1

        for share in reader.shares():
            share.deliver(deliver)
        assert bytes(seen) == bytes([1]) * pages
        (row,) = reader.rows()
        border = reader.read(row, (min(table, pages) - 1) * 8192, 3 * 8192)
        expected = range(min(table, pages) - 1, min(table + 2, pages))
        assert border == b"".join(page_of(page, versions.get(page, 0)) for page in expected)
    with ThreadPoolExecutor(2) as pool:
        assert list(verify_backup(repository.open_backup("shop", label), repository.page_key, pool)) == []
