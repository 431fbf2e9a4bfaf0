"""A cluster with a million files: what is kept of each member of a stream is little more than its name."""

from __future__ import annotations

import subprocess
import sys

_MEMBERS = 150_000
_PROGRAM = f"""
from polarvault.pipeline.page_check import PageCheck
from polarvault.taking.archive import ArchiveInput, MemberLog
from polarvault.taking.facts import ArchiveNames

class Nowhere:
    def accept(self, event): pass
    def finish(self): pass
    def abandon(self): pass

def header(name, size):
    head = bytearray(512)
    fields = {{0: name.encode(), 100: b"0000600", 124: b"%011o" % size, 136: b"%011o" % 1700000000, 156: b"0"}}
    for at, text in {{**fields, 257: b"ustar", 148: b" " * 8}}.items():
        head[at : at + len(text)] = text
    head[148:156] = b"%06o\\0 " % sum(head)
    return bytes(head)

def peak():
    # Not ru_maxrss: that begins with what the process had that started this one.
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))

log = MemberLog()
log.begin(ArchiveNames())
pages = PageCheck(start_lsn=1, wal_repairs_torn_pages=True, relation_segment_bytes=1 << 30)
archive = ArchiveInput("base.tar", Nowhere(), stages=[log, pages], links={{}})

def feed(numbers):
    content = bytearray()
    for number in numbers:
        # Tables without rows, and their keys of one page.
        size = number % 2 * 8192
        content += header(f"base/{{16384 + number // 20000}}/{{100000 + number}}", size) + bytes(size)
        if len(content) > 1 << 20:
            archive.write([memoryview(content)])
            content = bytearray()
    archive.write([memoryview(content)])

feed(range(10_000))
before = peak()
feed(range(10_000, {_MEMBERS}))
print(log.member_count, (peak() - before) / ({_MEMBERS} - 10_000))
"""


def test_a_million_files_take_a_hundred_megabytes():
    said = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True)
    count, bytes_each = said.stdout.split()
    assert int(count) == _MEMBERS
    # 400 MB for a million of them, less what the program needs itself, would be 300.
    assert 20 < float(bytes_each) < 200
