"""Tar backups: Polarvault verifybackup beside pg_verifybackup 18, and what only ours reads.

pg_verifybackup 18 cannot read WAL in a tar file and asks for -n; ours needs no option. One backup with a tablespace,
as tar files; compressed copies are made of it by this test, so that it does not depend on how a server was built.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import struct
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import lz4.frame
import pytest
import zstandard

from polarvault.instance.account import server_account
from polarvault.instance.model import Binaries
from polarvault.pgfiles.pages import page_checksum
from support.backups import back_up_with_postgres
from support.cluster import Cluster
from support.servers import ServerPool, missing_reason
from support.small_files import with_crc
from support.verifying import (
    Verdict,
    append,
    cut,
    findings,
    flip,
    ours,
    read_member,
    remove,
    rewrite_tar,
    set_aside,
    theirs,
)

pytestmark = pytest.mark.postgres

GOOD = "backup successfully verified\n"
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gz": lambda content: gzip.compress(content, 1),
    "lz4": lz4.frame.compress,
    "zst": lambda content: zstandard.ZstdCompressor(1, write_checksum=True).compress(content),
}


@dataclass(frozen=True, slots=True)
class Lab:
    """A tar backup, the same compressed in each way, and the names in it that a test needs."""

    installation: Binaries
    directory: Path
    table: str
    oid: str

    @property
    def tar(self) -> Path:
        return self.directory / "tar"

    @property
    def base(self) -> Path:
        return self.tar / "base.tar"

    @property
    def space(self) -> Path:
        return self.tar / f"{self.oid}.tar"

    def theirs(self, backup: Path) -> Verdict:
        return theirs(self.installation, "-n", backup)


@pytest.fixture(scope="module")
def lab(servers: ServerPool) -> Iterator[Lab]:
    if 18 not in servers.installations:
        pytest.skip(missing_reason(18))
    installation = servers.installations[18]
    directory = Path(tempfile.mkdtemp(prefix="pv-", dir="/tmp"))
    directory.chmod(0o755)
    server_account().own(directory)
    with Cluster.made(installation, directory / "cluster", wal_segment_mb=1) as cluster:
        cluster.add_tablespace("one", rows=10)
        ((table,),) = cluster.query("SELECT pg_relation_filepath('accounts')")
        ((oid,),) = cluster.query("SELECT oid::text FROM pg_tablespace WHERE spcname = 'one'")
        back_up_with_postgres(cluster, directory / "tar", "-Ft")
    for kind, compress in COMPRESS.items():
        (directory / kind).mkdir()
        for path in (directory / "tar").iterdir():
            if path.suffix == ".tar":
                (directory / kind / f"{path.name}.{kind}").write_bytes(compress(path.read_bytes()))
            else:
                shutil.copy(path, directory / kind)
    yield Lab(installation, directory, table, oid)
    shutil.rmtree(directory)


def test_tars_that_were_not_touched_are_accepted(lab: Lab) -> None:
    assert lab.theirs(lab.tar).output == GOOD
    for options in ([], ["-n"], ["-Ft"], ["--format=tar"]):
        mine = ours(*options, lab.tar)
        assert (mine.status, mine.output) == (0, GOOD), mine.errors
        assert mine.errors == ""
    # The manifest's files, the pages in them and all WAL: as much as in a plain backup.
    said = ours("--summary", lab.tar).errors
    assert re.search(r"checked: 9\d\d files, .*; [1-9]\d+ page checksums; [1-9]\d* WAL records", said)


@pytest.mark.parametrize("kind", COMPRESS)
def test_compressed_tars_that_were_not_touched_are_accepted(lab: Lab, kind: str) -> None:
    backup = lab.directory / kind
    mine = ours("--summary", backup)
    assert (mine.status, mine.output) == (0, GOOD), mine.errors
    assert re.search(r"checked: 9\d\d files, .*; [1-9]\d+ page checksums; [1-9]\d* WAL records", mine.errors)
    other = lab.theirs(backup)
    # A server built without a compression cannot read it; nothing else may differ.
    assert other.output == GOOD or "this build does not support compression" in other.errors


Change = Callable[[Lab], None]


def altered(name: str) -> Change:
    def change(lab: Lab) -> None:
        name_in_tar = lab.table if name == "TABLE" else name
        content = bytearray(read_member(lab.base, name_in_tar))
        content[-1] ^= 1
        rewrite_tar(lab.base, {name_in_tar: bytes(content)})

    return change


def in_tablespace(content: bytes | None) -> Change:
    def change(lab: Lab) -> None:
        with tarfile.open(lab.space) as archive:
            name = next(member.name for member in archive if member.isfile() and member.size)
        rewrite_tar(lab.space, {name: content})

    return change


BAD: dict[str, tuple[Change, str]] = {
    "altered member": (altered("TABLE"), 'checksum mismatch for file "TABLE"'),
    "altered small member": (altered("PG_VERSION"), 'checksum mismatch for file "PG_VERSION"'),
    "altered pg_control": (altered("global/pg_control"), 'checksum mismatch for file "global/pg_control"'),
    "missing member": (
        lambda lab: rewrite_tar(lab.base, {lab.table: None}), '"TABLE" is present in the manifest but not on disk'
    ),
    "extra member": (
        lambda lab: rewrite_tar(lab.base, {}, added=[("base/extra", b"x")]), '"base/extra" is present'
    ),
    "truncated member": (
        lambda lab: rewrite_tar(lab.base, {lab.table: bytes(8192)}), '"TABLE" has size 8192 .* but size .* in the'
    ),
    "altered in a tablespace": (in_tablespace(bytes(8192)), r'checksum mismatch for file "pg_tblspc/OID/PG_18_'),
    "missing in a tablespace": (in_tablespace(None), '"pg_tblspc/OID/PG_18_.*" is present in the manifest but not on'),
    "missing tablespace": (lambda lab: lab.space.unlink(), '"pg_tblspc/OID/PG_18_.*" is present in the manifest'),
    "missing base.tar": (lambda lab: lab.base.unlink(), '"PG_VERSION" is present in the manifest but not on disk'),
    "cut tar": (lambda lab: cut(lab.base, 5_000_001), "base.tar.* ends inside|ended before last file was finished"),
    "header damaged": (lambda lab: flip(lab.base, 3), "base.tar.* damaged|not appear to be a valid tar archive"),
    "unexpected file": (lambda lab: append(lab.tar / "notes.txt"), 'file "notes.txt" is not expected in a tar format'),
    "unexpected copy": (lambda lab: append(lab.tar / "base.tar.old"), '"base.tar.old" is not expected in a tar form'),
    "unexpected directory": (lambda lab: (lab.tar / "notes").mkdir(), "notes"),
    "a directory for a tar": (lambda lab: lab.base.unlink() or lab.base.mkdir(), "base.tar"),
    "missing manifest": (lambda lab: (lab.tar / "backup_manifest").unlink(), "could not open file .*backup_manifest"),
    "altered manifest": (lambda lab: flip(lab.tar / "backup_manifest", 200), "manifest checksum mismatch|could not p"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_both_find_what_is_wrong_in_a_tar(lab: Lab, case: str) -> None:
    change, words = BAD[case]
    words = words.replace("TABLE", lab.table).replace("OID", lab.oid)
    with set_aside(lab.tar, aside=lab.directory):
        change(lab)
        mine, other = ours("-n", lab.tar), lab.theirs(lab.tar)
        assert (other.status, other.output) == (1, "")
        assert re.search(words, other.errors), other.errors
        assert (mine.status, mine.output) == (1, "")
        assert re.search(words, mine.errors), mine.errors
        assert "Traceback" not in mine.errors
        # WAL does not change the verdict.
        assert ours(lab.tar).status == 1


def test_what_is_ignored_in_a_tar_is_not_looked_at(lab: Lab) -> None:
    with set_aside(lab.tar, aside=lab.directory):
        altered("TABLE")(lab)
        append(lab.tar / "notes.txt")
        for options in (["-i", lab.table, "-i", "notes.txt"], ["-i", "base", "-i", "notes.txt"]):
            assert theirs(lab.installation, "-n", *options, lab.tar).is_good
            assert ours(*options, lab.tar).is_good
        for options in (["-i", "base"], ["-i", "notes.txt"], ["-i", lab.table[:-1], "-i", "notes.txt"]):
            assert not theirs(lab.installation, "-n", *options, lab.tar).is_good
            assert not ours("-n", *options, lab.tar).is_good


# What only ours finds, and why


def test_the_same_tar_twice_is_a_problem(lab: Lab) -> None:
    # pg_verifybackup reads both and compares each with the manifest. A restore would have to choose: ours refuses to.
    with set_aside(lab.tar, aside=lab.directory):
        append(lab.tar / "base.tar.gz", gzip.compress(b""))
        assert ("problem", "tar-twice", "base.tar") in findings(lab.tar)


@pytest.mark.parametrize("kind", [None, *COMPRESS])
def test_wal_in_a_tar_is_read(lab: Lab, kind: str | None) -> None:
    # pg_verifybackup 18 cannot read WAL in tar files and insists on -n.
    backup = lab.directory / (kind or "tar")
    assert "-n/--no-parse-wal" in theirs(lab.installation, backup).errors
    path = backup / ("pg_wal.tar" + (f".{kind}" if kind else ""))
    compress = COMPRESS[kind] if kind else bytes
    content = (lab.tar / "pg_wal.tar").read_bytes()

    def checks(damaged: bytes) -> set[str]:
        with set_aside(path, aside=lab.directory):
            path.write_bytes(compress(damaged))
            assert ours("-n", backup).is_good
            assert not ours(backup).is_good
            return {check for severity, check, _ in findings(backup) if severity == "problem"}

    # A byte of the first record, behind the tar's header and the long header of the page.
    first = bytearray(content)
    first[512 + 40 + 24] ^= 1
    assert checks(bytes(first)) == {"wal-damaged"}
    assert checks(bytes(len(content))) == {"wal-absent"}
    assert "wal-unreadable" in checks(content[:700])
    # The header of the last member: what is needed is there, but the tar cannot be unpacked.
    with tarfile.open(lab.tar / "pg_wal.tar") as archive:
        last = archive.getmembers()[-1]
    behind = bytearray(content) + bytes(1024)
    behind[last.offset + 1] ^= 1
    assert checks(bytes(behind)) & {"wal-unreadable", "wal-absent"}
    path.rename(lab.directory / "aside")
    try:
        assert [check for _, check, _ in findings(backup)] == ["wal-absent"]
        assert ours("-w", lab.directory / "aside", backup).is_good is (kind is None)
    finally:
        (lab.directory / "aside").rename(path)


@pytest.mark.parametrize("kind", COMPRESS)
def test_damage_in_compressed_tars_is_found(lab: Lab, kind: str) -> None:
    backup = lab.directory / kind
    name = f"base.tar.{kind}"
    length = (backup / name).stat().st_size
    for change in (
        lambda path: flip(path, length // 2, 3),
        # The checksum that the compressed stream ends with: pg_verifybackup does not look at it, gzip -t does.
        lambda path: flip(path, -5 if kind == "gz" else -2),
        lambda path: cut(path, length // 2),
        lambda path: cut(path, -1),
    ):
        with set_aside(backup / name, aside=lab.directory) as path:
            change(path)
            mine = ours("-n", backup)
            assert mine.status == 1
            # The stream's own checksum is off; in lz4 it may have none, and then the files' checksums tell.
            assert name in mine.errors or (kind == "lz4" and "checksum mismatch for file" in mine.errors)
            # All that stands behind the damage is one line.
            assert mine.errors.count("could not be read from") <= 1
            assert "is present in the manifest but not on disk" not in mine.errors
    for edit, words in (
        (altered("TABLE"), f'checksum mismatch for file "{lab.table}"'),
        (lambda lab: rewrite_tar(lab.base, {lab.table: None}), f'"{lab.table}" is present in the manifest but not'),
        (lambda lab: rewrite_tar(lab.base, {lab.table: bytes(8192)}), f'"{lab.table}" has size 8192'),
        (lambda lab: rewrite_tar(lab.base, {}, added=[("base/x", b"")]), '"base/x" is present on disk but not in the'),
    ):
        with set_aside(lab.base, aside=lab.directory), set_aside(backup / name, aside=lab.directory):
            edit(lab)
            (backup / name).write_bytes(COMPRESS[kind](lab.base.read_bytes()))
            mine = ours(backup)
            assert mine.status == 1
            assert words in mine.errors
            assert "while it was read" not in mine.errors


def test_what_is_behind_the_end_of_a_cut_tar_is_one_finding(lab: Lab) -> None:
    tar = lab.directory / "gz" / f"{lab.oid}.tar.gz"
    with set_aside(lab.base, aside=lab.directory) as base, set_aside(tar, aside=lab.directory) as space:
        cut(base, base.stat().st_size // 2)
        found = [found[1:] for found in findings("-n", lab.tar)]
        # The member that the end lies in is shorter than it should be.
        assert [check for check, _ in found] == ["tar-damaged", "missing-file", "wrong-size", "control-missing"]
        assert found[1] == ("missing-file", "base.tar")
        cut(space, space.stat().st_size // 2)
        found = findings("-n", lab.directory / "gz")
        assert found == [("problem", "tar-damaged", tar.name), ("problem", "missing-file", tar.name)]
        assert "file of the manifest could not be read from" in ours("-n", lab.directory / "gz").errors


def test_a_tar_may_be_called_tgz_and_an_empty_one_lacks_everything(lab: Lab) -> None:
    backup = lab.directory / "gz"
    (backup / "base.tar.gz").rename(backup / "base.tgz")
    try:
        assert ours(backup).output == GOOD
        assert theirs(lab.installation, "-n", backup).is_good
    finally:
        (backup / "base.tgz").rename(backup / "base.tar.gz")
    with set_aside(lab.base, aside=lab.directory) as base:
        cut(base, 0)
        found = [found[1:] for found in findings("-n", lab.tar)]
        assert found.count(("missing-file", "base.tar")) == 1
        assert [check for check, _ in found].count("missing-file") == 1


def test_files_that_are_no_tars_are_not_opened(lab: Lab) -> None:
    for name in ("base.tar", "pg_wal.tar", f"{lab.oid}.tar"):
        with set_aside(lab.tar / name, aside=lab.directory) as path:
            remove(path)
            os.mkfifo(path)
            assert not ours(lab.tar).is_good


def test_pages_are_numbered_by_the_segments_that_pg_control_names(lab: Lab) -> None:
    """A server built with --with-segsize: the second segment of a relation begins with another block number."""
    content = bytearray(b"\1" * 8192)
    struct.pack_into("<HH", content, 8, 0, 0)
    struct.pack_into("<H", content, 8, page_checksum(content, 16))
    control = bytearray(read_member(lab.base, "global/pg_control"))
    struct.pack_into("<I", control, 220, 16)
    with set_aside(lab.tar, aside=lab.directory):
        rewrite_tar(lab.base, {"global/pg_control": with_crc(control, 1800)}, added=[("base/5/99.1", bytes(content))])
        assert [f for f in findings("-i", "global", "-i", "base", lab.tar) if f[0] == "problem"] == []
        plain = {(check, subject) for _, check, subject in findings(lab.tar)}
        # The manifest does not notice pg_control: a CRC-32C over content and its own CRC-32C is always the same.
        assert plain == {("extra-file", "base/5/99.1")}
        # There it is read before pg_control, which is the last file.
        lab.base.with_name("base.tar.gz").write_bytes(COMPRESS["gz"](lab.base.read_bytes()))
        lab.base.unlink()
        assert {(check, subject) for _, check, subject in findings(lab.tar)} == plain
        assert "not checked: page checksums of base/5/99.1" in ours(lab.tar).errors
