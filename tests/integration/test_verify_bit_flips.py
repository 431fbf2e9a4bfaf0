"""Single bits flipped anywhere in a backup: each is found, or shown to be where nothing looks.

The backup is cut down to some of its relations, on disk and in the manifest, so that 200 verifications are quick: a
file is judged on its own, whatever else is there. Each flip is undone after it was looked for. The seed is the one that
pytest prints in its header.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import core as hypothesis_core

from polarvault.instance.account import server_account
from polarvault.instance.model import Binaries
from support.backups import back_up_with_postgres, run_program
from support.cluster import Cluster
from support.servers import ServerPool, missing_reason
from support.verifying import flip, ours, rewrite_manifest, rewrite_tar

pytestmark = pytest.mark.postgres

FLIPS = 200
SEGMENT = 1 << 20
# Relations of the backup that are kept, beside the test's own and all that is no relation.
KEPT = ("global/", "base/1/1259", "base/1/2619", "base/1/PG_VERSION", "base/1/pg_filenode.map")


@dataclass(frozen=True, slots=True)
class Lab:
    """A plain backup and a tar one, cut down."""

    installation: Binaries
    plain: Path
    tar: Path
    seed: int


@pytest.fixture(scope="module")
def lab(servers: ServerPool) -> Iterator[Lab]:
    major = next((major for major in (18, 15) if major in servers.installations), None)
    if major is None:
        pytest.skip(missing_reason(18))
    installation = servers.installations[major]
    directory = Path(tempfile.mkdtemp(prefix="pv-", dir="/tmp"))
    directory.chmod(0o755)
    server_account().own(directory)
    with Cluster.made(installation, directory / "cluster", wal_segment_mb=1) as cluster:
        location = cluster.add_tablespace("one", rows=500)
        own = [
            path for (path,) in cluster.query("SELECT pg_relation_filepath(unnest('{accounts,in_one}'::regclass[]))")
        ]
        with cluster.pgbench(clients=1):
            back_up_with_postgres(cluster, directory / "plain", "-T", f"{location}={directory}/tablespace")
        back_up_with_postgres(cluster, directory / "tar", "-Ft")

    def is_kept(path: str) -> bool:
        # A database without a file of its own would be called missing.
        is_database = path.startswith("base/") and path.endswith("/PG_VERSION")
        return not path.startswith(("base/", "pg_tblspc/")) or is_database or path.startswith(KEPT) or path in own

    cut_down(directory / "plain", is_kept)
    cut_down(directory / "tar", is_kept)
    for name in ("plain", "tar"):
        verdict = ours(directory / name)
        assert verdict.is_good, verdict.errors
    yield Lab(installation, directory / "plain", directory / "tar", hypothesis_core.global_force_seed or 0)
    shutil.rmtree(directory)


def cut_down(backup: Path, is_kept: Callable[[str], bool]) -> None:
    listed = [entry["Path"] for entry in json.loads((backup / "backup_manifest").read_bytes())["Files"]]
    dropped = {path for path in listed if not is_kept(path)}
    for path in dropped:
        (backup / path).unlink(missing_ok=True)
    for tar in backup.glob("*.tar"):
        prefix = f"pg_tblspc/{tar.stem}/" if tar.stem.isdigit() else ""
        if tar.stem != "pg_wal":
            rewrite_tar(tar, {name: None for name in names_of(tar) if prefix + name in dropped})

    def edit(fields: dict[str, list[dict[str, str]]]) -> None:
        fields["Files"] = [entry for entry in fields["Files"] if entry["Path"] not in dropped]

    rewrite_manifest(backup / "backup_manifest", edit)


def names_of(tar: Path) -> list[str]:
    with tarfile.open(tar) as archive:
        return archive.getnames()


# What is flipped


@dataclass(frozen=True, slots=True)
class Flip:
    """A bit of a file; of_wal: the segment and the position there, if it lies in one."""

    path: Path
    position: int
    bit: int
    of_wal: tuple[str, int] | None = None

    def __call__(self) -> None:
        flip(self.path, self.position, self.bit)


def of_plain(backup: Path, chance: random.Random) -> Iterator[Flip]:
    """Yield flips without end: each kind of file gets its share, whatever its size."""
    files = [path for path in sorted(backup.rglob("*")) if path.is_file() and path.stat().st_size]
    files += [path for path in sorted((backup / "pg_tblspc").resolve().rglob("*")) if path.is_file()]
    for link in (backup / "pg_tblspc").iterdir():
        files += [path for path in sorted(link.resolve().rglob("*")) if path.is_file() and path.stat().st_size]
    named = [backup / name for name in ("backup_manifest", "backup_label", "global/pg_control", "postgresql.auto.conf")]
    segments = [path for path in files if path.parent.name == "pg_wal" and len(path.name) == 24]
    begins, ends = wal_range(backup)
    while True:
        kind = chance.choice(("any", "any", "named", "wal", "used wal", "used wal"))
        if kind == "used wal":
            lsn = chance.randrange(begins, ends)
            path, position = segments[lsn // SEGMENT - int(segments[0].name[-8:], 16)], lsn % SEGMENT
        else:
            path = chance.choice({"any": files, "named": named, "wal": segments}[kind])
            position = chance.randrange(path.stat().st_size)
        yield Flip(path, position, chance.randrange(8), (path.name, position) if path in segments else None)


def of_tar(backup: Path, chance: random.Random) -> Iterator[Flip]:
    """Yield flips without end, in headers more often than their size would have it."""
    tars = sorted(backup.glob("*.tar"))
    members = {}
    for tar in tars:
        with tarfile.open(tar) as archive:
            members[tar] = archive.getmembers()
    while True:
        kind = chance.choice(("any", "header", "member", "member", "manifest"))
        path = backup / "backup_manifest" if kind == "manifest" else chance.choice(tars)
        position = chance.randrange(path.stat().st_size)
        if kind in ("header", "member"):
            member = chance.choice([found for found in members[path] if found.size or kind == "header"])
            begins = member.offset if kind == "header" else member.offset_data
            position = begins + chance.randrange(512 if kind == "header" else member.size)
        of_wal = None
        for member in members.get(path, ()):
            within = position - member.offset_data
            if path.name == "pg_wal.tar" and len(member.name) == 24 and 0 <= within < member.size:
                of_wal = (member.name, within)
        yield Flip(path, position, chance.randrange(8), of_wal)


def wal_range(backup: Path) -> tuple[int, int]:
    (wanted,) = json.loads((backup / "backup_manifest").read_bytes())["WAL-Ranges"]
    begins, ends = (int(wanted[key].replace("/", ""), 16) for key in ("Start-LSN", "End-LSN"))
    # The half in front of the slash counts 4 GB; these LSNs are below that.
    assert wanted["Start-LSN"].startswith("0/")
    return begins, ends


# Where nothing looks


@pytest.fixture
def wal(lab: Lab, workspace: Path) -> Callable[[Path], Path]:
    """A function that returns a copy of a backup's WAL segments in a directory of their own."""

    def copied(backup: Path) -> Path:
        target = workspace / "wal"
        if (backup / "pg_wal").is_dir():
            shutil.copytree(backup / "pg_wal", target)
        else:
            target.mkdir()
            subprocess.run(["tar", "-xf", backup / "pg_wal.tar", "-C", target], check=True)
        return target

    return copied


def dump(lab: Lab, wal: Path, span: tuple[int, int]) -> str:
    begins, ends = (f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}" for lsn in span)
    options = ["-p", str(wal), "-s", begins, "-e", ends]
    finished = run_program(lab.installation, "pg_waldump", *options)
    return f"{finished.returncode} {finished.stdout} {finished.stderr}"


def contents(tar: Path, content: bytes) -> list[object]:
    """Return all that a restore takes from a tar."""
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return [
            (member.name, member.type, member.size, member.mode, member.linkname, read(archive, member))
            for member in archive
        ]


def read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    found = archive.extractfile(member) if member.isfile() else None
    return b"" if found is None else found.read()


def names_it(verdict_errors: str, path: Path, of_wal: Sequence[object] | None) -> bool:
    """Tell whether the file is named, as a problem or a warning; WAL by its segment, LSN or timeline."""
    if of_wal is not None:
        return "WAL" in verdict_errors or str(of_wal[0]) in verdict_errors
    lines = [line for line in verdict_errors.splitlines() if line.startswith(("polarvault: error", "polarvault: warn"))]
    # A flip in a tar is named by the tar or by the member that is not what it was.
    return any(path.name in line for line in lines) if path.suffix != ".tar" else bool(lines)


@pytest.mark.parametrize("form", ["plain", "tar"])
def test_every_flipped_bit_is_found_or_unused(lab: Lab, wal: Callable[[Path], Path], form: str) -> None:
    print(f"seed: {lab.seed}")
    chance = random.Random(lab.seed)
    backup = lab.plain if form == "plain" else lab.tar
    flips = of_plain(backup, chance) if form == "plain" else of_tar(backup, chance)
    span, segments = wal_range(backup), wal(backup)
    expected = dump(lab, segments, span)
    assert expected.startswith("0 ")
    found = unused = 0
    for _, flipped in zip(range(FLIPS), flips, strict=False):
        before = flipped.path.read_bytes() if flipped.path.suffix == ".tar" else b""
        flipped()
        try:
            verdict = ours(backup)
            assert "Traceback" not in verdict.errors
            if verdict.status == 1 or "warning" in verdict.errors:
                assert names_it(verdict.errors, flipped.path, flipped.of_wal), (flipped, verdict)
                found += 1
                continue
            if flipped.of_wal is not None:
                # What the server's own reader reads is the same as before.
                name, position = flipped.of_wal
                flip(segments / name, position, flipped.bit)
                assert dump(lab, segments, span) == expected, flipped
                flip(segments / name, position, flipped.bit)
            else:
                # Padding, the terminator, a space that became a zero: what is in the tar is the same as before.
                assert flipped.path.suffix == ".tar", flipped
                assert contents(flipped.path, flipped.path.read_bytes()) == contents(flipped.path, before), flipped
            unused += 1
        finally:
            flipped()
    print(f"{found} of {FLIPS} flips found, {unused} where nothing looks")
    assert found > FLIPS // 2
    assert ours(backup).is_good


def test_every_bit_of_the_first_wal_page_that_is_needed(lab: Lab, wal: Callable[[Path], Path]) -> None:
    """The same for one bit of each of the first bytes: page header, and the first records."""
    span, segments = wal_range(lab.plain), wal(lab.plain)
    expected = dump(lab, segments, span)
    path = next(found for found in sorted(segments.iterdir()) if len(found.name) == 24)
    original = lab.plain / "pg_wal" / path.name
    first = span[0] % SEGMENT // 8192 * 8192
    end = min(span[0] % SEGMENT + 200, SEGMENT)
    for position in [*range(first, first + 40), *range(span[0] % SEGMENT, end)]:
        bit = position % 8
        flip(original, position, bit)
        try:
            verdict = ours("-s", lab.plain)
            if verdict.is_good and "warning" not in verdict.errors:
                flip(path, position, bit)
                assert dump(lab, segments, span) == expected, (position, bit)
                flip(path, position, bit)
        finally:
            flip(original, position, bit)


def test_the_flips_are_undone(lab: Lab) -> None:
    assert ours(lab.plain).is_good
    assert ours(lab.tar).is_good
    assert os.path.exists(lab.plain / "global/pg_control")
