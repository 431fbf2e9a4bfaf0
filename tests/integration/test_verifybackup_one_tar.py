"""A backup that is one tar, as `-D - -Ft` writes it: from a file or from standard input, compressed or not."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import lz4.frame
import pytest
import zstandard

from support.backups import back_up
from support.cluster import Cluster
from support.program import command_line, program_environment, run_polarvault
from support.servers import ServerPool, missing_reason
from support.verifying import copy, findings, flip, ours, rewrite_tar

pytestmark = pytest.mark.postgres

GOOD = "backup successfully verified\n"
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress, "zst": zstandard.compress, "lz4": lz4.frame.compress
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Lab:
    directory: Path
    table: str

    @property
    def tar(self) -> Path:
        return self.directory / "one.tar"


@pytest.fixture(scope="module", params=[15, 18])
def lab(request: pytest.FixtureRequest, servers: ServerPool) -> Iterator[Lab]:
    major = request.param
    if major not in servers.installations:
        pytest.skip(missing_reason(major))
    directory = Path(tempfile.mkdtemp(prefix="pv-", dir="/tmp"))
    directory.chmod(0o755)
    with Cluster.made(
        servers.installations[major], directory / "cluster", settings={"wal_keep_size": "64MB"}, wal_segment_mb=1
    ) as cluster:
        ((table,),) = cluster.query("SELECT pg_relation_filepath('accounts')")
        for name, options in (
            ("one.tar", ["-X", "fetch"]),
            ("none.tar", ["-X", "none"]),
            ("sha256.tar", ["-X", "fetch", "--manifest-checksums", "SHA256"]),
            ("sha512.tar", ["-X", "fetch", "--manifest-checksums", "SHA512"]),
        ):
            with open(directory / name, "wb") as file:
                words = ["pg_basebackup", "-d", cluster.conninfo(), "-c", "fast", "-D", "-", "-Ft", *options]
                subprocess.run(
                    [cluster.installation.program(words[0]), *words[1:]], stdout=file, check=True, cwd="/"
                )  # fmt: skip
        copy(cluster.data / "pg_wal", directory / "wal")
    yield Lab(directory, table)
    shutil.rmtree(directory)


def through_a_pipe(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    with open(path, "rb") as stream:
        return subprocess.run(
            command_line("verifybackup", "-", *options), stdin=stream, capture_output=True, text=True, cwd="/",
            env=program_environment({}), check=False, timeout=120,
        )  # fmt: skip


@pytest.mark.parametrize("name", ["one.tar", "sha256.tar"])
def test_one_tar_is_verified_as_a_file_and_from_a_pipe(lab: Lab, name: str) -> None:
    mine = ours(lab.directory / name)
    assert (mine.status, mine.output, mine.errors) == (0, GOOD, "")
    piped = through_a_pipe(lab.directory / name, "--summary")
    assert (piped.returncode, piped.stdout) == (0, GOOD), piped.stderr
    assert "page checksums" in piped.stderr
    assert "WAL records" in piped.stderr
    assert "not checked" not in piped.stderr


@pytest.mark.parametrize("kind", COMPRESS)
def test_compressed_ones_are_told_by_their_first_bytes(lab: Lab, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "backup"
    path.write_bytes(COMPRESS[kind](lab.tar.read_bytes()))
    assert ours(path).output == GOOD
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    mine = ours(path)
    assert mine.status == 1
    assert "is damaged or incomplete" in mine.errors


def test_checksums_of_other_kinds_are_said_to_be_left_out(lab: Lab) -> None:
    mine = ours("--summary", lab.directory / "sha512.tar")
    assert mine.output == GOOD
    assert "not checked: checksums: SHA512 in one tar; unpack it" in mine.errors


def test_what_is_wrong_in_one_tar_is_found(lab: Lab, tmp_path: Path) -> None:
    path = tmp_path / "one.tar"

    def found(**changes: bytes | None) -> set[tuple[str, str]]:
        shutil.copy(lab.tar, path)
        rewrite_tar(path, changes)
        return {(check, subject) for severity, check, subject in findings(path) if severity == "problem"}

    assert found(**{lab.table: None}) == {("missing-file", lab.table)}
    assert ("wrong-size", "PG_VERSION") in found(PG_VERSION=b"15")
    assert ("label-missing", "backup_label") in found(backup_label=None)
    assert ("manifest", "backup_manifest") in found(backup_manifest=None)
    assert ("manifest", "backup_manifest") in found(backup_manifest=b"{}")
    shutil.copy(lab.tar, path)
    content = path.read_bytes()
    position = content.index(lab.table.encode() + b"\0") + 512 + 20000
    flip(path, position)
    assert ("page-checksum", lab.table) in {(check, subject) for _, check, subject in findings(path)}
    path.write_bytes(content[:-200_000])
    assert "tar-damaged" in {check for _, check, _ in findings(path)}


def test_wal_is_looked_for_in_the_tar_or_where_it_is_said_to_be(lab: Lab) -> None:
    none = lab.directory / "none.tar"
    assert {check for severity, check, _ in findings(none) if severity == "problem"} == {"wal-absent"}
    assert ours("-n", none).output == GOOD
    assert ours("-w", lab.directory / "wal", none).output == GOOD


def test_an_encrypted_tar_is_called_encrypted(tmp_path: Path) -> None:
    path = tmp_path / "one.tar.gpg"
    path.write_bytes(b"age-encryption.org/v1\n" + os.urandom(2000))
    mine = run_polarvault("verifybackup", path, check=False)
    assert mine.returncode == 1
    assert "encrypted with age" in mine.stderr
    assert "damaged" not in mine.stderr
    piped = through_a_pipe(path)
    assert piped.returncode == 1
    assert "standard input is encrypted with age" in piped.stderr
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    assert "it is empty" in through_a_pipe(empty).stderr


def test_a_backup_of_ours_on_standard_output_is_verified(lab: Lab, servers: ServerPool, tmp_path: Path) -> None:
    with Cluster.made(servers.installations[15], lab.directory / "other", wal_segment_mb=1) as cluster:
        with open(tmp_path / "ours.tar", "wb") as file:
            words = ["basebackup", "-d", cluster.conninfo(), "-c", "fast", "-D", "-", "-Ft", "-X", "fetch"]
            subprocess.run(
                command_line(*words), stdout=file, cwd="/", env=program_environment({}), check=True, timeout=120
            )
        back_up(cluster, lab.directory / "beside", "-Ft", "-X", "fetch")
    assert ours(tmp_path / "ours.tar").output == GOOD
    # base.tar of a directory is one tar, too; its manifest lies beside it.
    base = lab.directory / "beside/base.tar"
    assert "the tar holds no backup_manifest" in ours(base).errors
    assert ours("-m", lab.directory / "beside/backup_manifest", base).output == GOOD
