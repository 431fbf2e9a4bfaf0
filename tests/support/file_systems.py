"""File systems that can share, in images on this machine: XFS and btrfs through loop devices, ZFS through zfs-fuse.

Only root can make them. Every maker raises `Unavailable` with the reason where it cannot.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_SIZE_MB = {"xfs": 320, "btrfs": 320}
# Commands of a user for the provider that runs them.
HOOK = """#!/bin/sh
# The user's own storage: a directory of copies.
set -e
store="$1"; verb="$2"; shift 2
case "$verb" in
create)
    name="$1"; shift; mkdir "$store/$name.new"; n=0
    for source in "$@"; do cp -a "$source" "$store/$name.new/$n"; n=$((n+1)); done
    mv "$store/$name.new" "$store/$name";;
clone) cp -a "$store/$2" "$3"; ln -s "$3" "$store/$1";;
list) cd "$store"; for name in *; do if [ -e "$name" ] || [ -h "$name" ]; then echo "$name 4096"; fi; done;;
destroy) if [ -h "$store/$1" ]; then rm -r "$(readlink "$store/$1")"; rm "$store/$1"; else rm -r "$store/$1"; fi;;
esac
"""
_DAEMON_FILES = Path("/tmp/polarvault-zfs-fuse")


class Unavailable(Exception):
    """The file system cannot be made here; says why."""


@dataclass(frozen=True, slots=True)
class FileSystem:
    """A file system of its own. dataset: of ZFS the name of the pool."""

    kind: str
    path: Path
    dataset: str | None = None


@contextmanager
def file_system(kind: str, directory: Path, *, size_mb: int | None = None) -> Iterator[FileSystem]:
    """Make one of xfs, btrfs, zfs below a directory, mount it, and remove it at the end."""
    if os.geteuid() != 0:
        raise Unavailable(f"{kind}: only root can mount a file system")
    maker = _pool if kind == "zfs" else _image
    with maker(kind, directory, size_mb or _SIZE_MB.get(kind, 320)) as made:
        yield made


@contextmanager
def _image(kind: str, directory: Path, size_mb: int) -> Iterator[FileSystem]:
    maker = shutil.which(f"mkfs.{kind}", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if maker is None:
        package = {"xfs": "xfsprogs", "btrfs": "btrfs-progs"}[kind]
        raise Unavailable(f"{kind}: there is no mkfs.{kind} (Debian: {package})")
    image, point = directory / f"{kind}.img", directory / kind
    with image.open("wb") as stream:
        stream.truncate(size_mb << 20)
    _run(kind, maker, "-q", *(["-m", "reflink=1"] if kind == "xfs" else []), str(image))
    point.mkdir()
    _run(kind, "mount", "-o", "loop", str(image), str(point))
    try:
        yield FileSystem(kind, point)
    finally:
        _unmount(point)
        image.unlink()


def _unmount(point: Path) -> None:
    for _ in range(50):
        if subprocess.run(["umount", str(point)], capture_output=True, check=False).returncode == 0:
            return
        # What a test has killed is still going away.
        time.sleep(0.1)
    subprocess.run(["umount", "--lazy", str(point)], check=True)


@contextmanager
def _pool(kind: str, directory: Path, size_mb: int) -> Iterator[FileSystem]:
    with _zfs_daemon():
        name = f"pvtest{uuid.uuid4().hex[:12]}"
        image, point = directory / f"{name}.img", directory / "zfs"
        with image.open("wb") as stream:
            stream.truncate(size_mb << 20)
        _run(kind, "zpool", "create", "-m", str(point), name, str(image))
        try:
            yield FileSystem(kind, point, name)
        finally:
            for _ in range(50):
                if subprocess.run(["zpool", "destroy", name], capture_output=True, check=False).returncode == 0:
                    break
                time.sleep(0.1)
            else:
                _run(kind, "zpool", "destroy", "-f", name)
            image.unlink()


@contextmanager
def _zfs_daemon() -> Iterator[None]:
    """Have ZFS answer: the kernel's, or zfs-fuse, of which a machine has one; who uses it last ends ours."""
    if shutil.which("zpool") is None:
        raise Unavailable("zfs: there is no zpool program (Debian: zfs-fuse, or zfsutils-linux with its module)")
    _DAEMON_FILES.mkdir(exist_ok=True)
    pid_file = _DAEMON_FILES / "pid"
    with (_DAEMON_FILES / "making").open("w") as making, (_DAEMON_FILES / "users").open("w") as users:
        fcntl.flock(making, fcntl.LOCK_EX)
        fcntl.flock(users, fcntl.LOCK_SH)
        if not _answers():
            _start_daemon(pid_file)
        fcntl.flock(making, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(making, fcntl.LOCK_EX)
            try:
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _end_daemon(pid_file)
            except BlockingIOError:
                pass  # Others use it.


def _answers() -> bool:
    return subprocess.run(["zpool", "list", "-H"], capture_output=True, check=False).returncode == 0


def _start_daemon(pid_file: Path) -> None:
    if shutil.which("zfs-fuse") is None or not os.path.exists("/dev/fuse"):
        raise Unavailable("zfs: neither the kernel's ZFS answers nor is there a zfs-fuse with /dev/fuse")
    started = subprocess.Popen(
        ["zfs-fuse", "--no-daemon", "--no-kstat-mount"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, cwd="/",
    )  # fmt: skip
    for _ in range(100):
        if _answers():
            pid_file.write_text(str(started.pid))
            # It outlives us if others use it: nobody waits for it.
            started.returncode = 0
            return
        if started.poll() is not None:
            break
        time.sleep(0.1)
    started.kill()
    started.wait()
    raise Unavailable("zfs: zfs-fuse was started and does not answer")


def _end_daemon(pid_file: Path) -> None:
    if not pid_file.exists():
        return
    pid = int(pid_file.read_text())
    pid_file.unlink()
    try:
        if b"zfs-fuse" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGTERM)
    except (FileNotFoundError, ProcessLookupError):
        return
    for _ in range(100):
        if not _answers():
            return
        time.sleep(0.1)


def _run(kind: str, *words: str) -> None:
    outcome = subprocess.run(words, capture_output=True, text=True, check=False)
    if outcome.returncode != 0:
        raise Unavailable(f"{kind}: {' '.join(words)}: {outcome.stderr.strip()}")
