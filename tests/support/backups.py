"""Base backups in tests: taken by us or by PostgreSQL's own tool, listed, unpacked and verified.

Nothing here uses the program's own code for tar files, compression or manifests.
"""

from __future__ import annotations

import gzip
import os
import re
import stat
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import lz4.frame
import zstandard

from polarvault.instance.model import Binaries
from support.cluster import Cluster
from support.program import program_environment, run_polarvault

TIMEOUT_S = 120
_SEGMENT = re.compile(r"(^|/)[0-9A-F]{24}$")
# Complete segments are marked; how far a stream gets before the backup ends is a matter of luck.
_MARK = re.compile(r"archive_status/[0-9A-F]{24}\.done$")
# Made when vacuum first visits a table, so they may appear between two backups of an idle server.
_MAPS = re.compile(r"_(?:fsm|vm)$")
_COMPRESSED = (".gz", ".lz4", ".zst")


def back_up(cluster: Cluster, target: Path | str, *options: str, **how: Any) -> subprocess.CompletedProcess[str]:
    """Take a backup with polarvault; the checkpoint is fast and nothing is synced."""
    return run_polarvault(
        "basebackup", "-d", cluster.conninfo(), "-c", "fast", "-N", "-D", os.fspath(target), *options,
        timeout_s=TIMEOUT_S, **how,
    )  # fmt: skip


def back_up_with_postgres(cluster: Cluster, target: Path | str, *options: str) -> subprocess.CompletedProcess[str]:
    """Take a backup with the pg_basebackup of the server's version."""
    return cluster.run("pg_basebackup", "-d", cluster.conninfo(), "-c", "fast", "-N", "-D", os.fspath(target), *options)


def run_program(installation: Binaries, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a client program of an installation as us."""
    return subprocess.run(
        [installation.program(name), *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        env=program_environment({"PATH": f"{installation.directory}:{os.environ['PATH']}"}), cwd="/",
        timeout=TIMEOUT_S, check=False,
    )  # fmt: skip


def verify(installation: Binaries, directory: Path, *options: str) -> None:
    """Run the version's own pg_verifybackup."""
    finished = run_program(installation, "pg_verifybackup", *options, str(directory))
    assert finished.returncode == 0, finished.stdout + finished.stderr


def plain_listing(directory: Path) -> dict[str, str]:
    """Return name -> mode of everything below a directory; WAL segments by kind only, links not followed."""
    found: dict[str, str] = {}
    for path in [directory, *directory.rglob("*")]:
        name = _comparable(str(path.relative_to(directory)))
        if name is not None:
            found[name] = stat.filemode(path.lstat().st_mode)
    return found


def tar_listing(path: Path) -> dict[str, str]:
    """Return name -> kind and mode of a tar file's members, whatever its compression."""
    with open_plain(path) as plain, tarfile.open(fileobj=plain, mode="r|") as archive:
        found: dict[str, str] = {}
        for member in archive:
            name = _comparable(member.name.removeprefix("./"))
            if name is not None:
                assert name == "SEGMENT" or name not in found or member.isdir(), f"{member.name} is there twice"
                found[name] = f"{member.type.decode()}{member.mode & 0o7777:o}"
        return found


def backup_listing(directory: Path) -> dict[str, Any]:
    """Return everything in a backup, looking into tar files."""
    if (directory / "PG_VERSION").exists():
        return plain_listing(directory)
    return {
        path.name: tar_listing(path) if ".tar" in path.name else stat.filemode(path.lstat().st_mode)
        for path in directory.iterdir()
    }


def open_plain(path: Path) -> IO[bytes]:
    """Open a file that may be compressed, by its name."""
    if path.suffix == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if path.suffix == ".lz4":
        return lz4.frame.open(path, "rb")  # type: ignore[no-any-return]
    if path.suffix == ".zst":
        return zstandard.open(path, "rb")  # type: ignore[no-any-return]
    return open(path, "rb")


def unpack(archive: Path, directory: Path) -> Path:
    """Extract one tar file, compressed or not, with the tar program."""
    directory.mkdir(mode=0o700, exist_ok=True)
    with open_plain(archive) as plain:
        tar = subprocess.Popen(["tar", "-x", "-f", "-", "-C", str(directory)], stdin=subprocess.PIPE)
        assert tar.stdin is not None
        with tar.stdin:
            while piece := plain.read(1 << 20):
                tar.stdin.write(piece)
        assert tar.wait(TIMEOUT_S) == 0
    return directory


def unpack_backup(backup: Path, directory: Path, tablespaces: Sequence[Path] = ()) -> Path:
    """Extract base.tar, pg_wal.tar and the manifest of a tar backup into a data directory."""
    for archive in sorted(backup.iterdir()):
        if archive.name.startswith("base.tar"):
            unpack(archive, directory)
    for archive in backup.iterdir():
        if archive.name.startswith("pg_wal.tar"):
            unpack(archive, directory / "pg_wal")
    if (backup / "backup_manifest").exists():
        (directory / "backup_manifest").write_bytes((backup / "backup_manifest").read_bytes())
    return directory


def left_behind(cluster: Cluster) -> tuple[list[str], int]:
    """Return what a backup must not leave on the server: replication slots, and how many WAL senders still run."""
    return cluster.slots(), cluster.backends("walsender")


def _comparable(name: str) -> str | None:
    """Return a name that is the same in two backups of one idle server."""
    if _MAPS.search(name) or _MARK.search(name):
        return None
    return _SEGMENT.sub(lambda match: f"{match[1]}SEGMENT", name)
