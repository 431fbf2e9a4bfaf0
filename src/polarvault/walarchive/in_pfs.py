"""WAL paths of a server on PFS: what a restore_command is to fill, and what an archive_command is to read.

Theory. On PFS %p is a path of PFS (/DISK/DIRECTORY/pg_wal/NAME). A fetch fills a file of this machine, as anywhere, and
that is written into PFS under a name of its own and renamed; a push reads the file out of PFS first, with what it looks
for beside it. The files are kept in a directory of the server's data directory whose name no backup takes; holes stay
holes on both ways, because most of a segment of 1 GB that was switched is zeros.

The disk is mounted as PFS's own tools do it (host 0 and their flag): no number has to be set aside for this.
"""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress

from polarvault.errors import StorageFailed, UsageError
from polarvault.model.pfs_address import PfsAddress, disk_of_path, is_pfs_address, parse_pfs_address, parse_pfs_path
from polarvault.storage.files import storage_failed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from polarvault.storage.trees.pfs.tree import PfsTree, PfsWritableTree

# BASE_BACKUP takes nothing of such a name (server: backup/basebackup.c, PG_TEMP_FILE_PREFIX).
_SCRATCH = "pgsql_tmp_polarvault_"
_BLOCK_BYTES = 4 << 20
_HOLE_BYTES = 8192
_ZEROS = bytes(_HOLE_BYTES)
_TEMPORARY = ".polarvault"
# Tools of PFS have one number together, and one at a time writes on each machine.
_WAIT_S = 30.0
_POLL_S = 0.5


def wal_place(path: str) -> PfsAddress | None:
    """Return where in PFS a %p of the server lies; None for a path of this machine. Raises UsageError."""
    if is_pfs_address(path):
        return _checked(parse_pfs_address(path, "%p"))
    if not path.startswith("/") or disk_of_path(path, os.path.isdir, _is_block_device) is None:
        return None
    return _checked(parse_pfs_path(path, "%p"))


def _checked(address: PfsAddress) -> PfsAddress:
    if address.directory.count("/") < 2:
        raise UsageError(f"%p: {address} is no file in a pg_wal", hint="the server gives the path: write %p")
    return address


def _is_block_device(path: str) -> bool:
    import stat

    try:
        return stat.S_ISBLK(os.stat(path).st_mode)
    except OSError:
        return False


def opened_for_reading(place: PfsAddress, cluster: str) -> PfsTree:
    """Open a directory in PFS as a host that nobody on this machine is; raise StorageFailed."""
    from polarvault.storage.trees.pfs.mount import PfsMount
    from polarvault.storage.trees.pfs.tree import PfsTree

    try:
        return PfsTree(PfsMount(place, cluster=cluster))
    except OSError as problem:
        raise storage_failed(problem, "mount", str(place)) from problem


def opened_for_writing(place: PfsAddress, cluster: str) -> PfsWritableTree:
    """Open a directory in PFS for writing as PFS's own tools do, once no other one writes; raise StorageFailed."""
    from polarvault.storage.trees.pfs.mount import TOOLS, PfsMount
    from polarvault.storage.trees.pfs.tree import PfsWritableTree

    give_up_at = time.monotonic() + _WAIT_S
    while True:
        try:
            return PfsWritableTree(PfsMount(place, cluster=cluster, host_id=TOOLS))
        except OSError as problem:
            if problem.errno != errno.EACCES or time.monotonic() > give_up_at:
                raise storage_failed(problem, "mount", str(place)) from problem
        # Another tool writes; each holds the number for the time of one file.
        time.sleep(_POLL_S)


def fetch_into_pfs(
    fetch: Callable[[str], bool],
    name: str,
    address: PfsAddress,
    cluster: str,
    *,
    reading: Callable[[PfsAddress, str], PfsTree] = opened_for_reading,
    writing: Callable[[PfsAddress, str], PfsWritableTree] = opened_for_writing,
) -> bool:
    """Have `fetch` fill a file here, and put it at its place in PFS; return what `fetch` returned.

    A segment that the server has itself is laid beside it, because a fetch serves no less than the server has.
    """
    directory, _, target = address.directory.rpartition("/")
    place = PfsAddress(address.disk, directory)
    with _Scratch() as scratch:
        if target != name:
            tree = reading(place, cluster)
            try:
                _take_out(tree, name, scratch.path(name))
            except OSError as problem:
                raise storage_failed(problem, "read", f"{place}/{name}") from problem
            finally:
                tree.close()
        if not fetch(scratch.path(target)):
            return False
        _put(scratch.path(target), writing(place, cluster), target)
    return True


def push_out_of_pfs(
    push: Callable[[str], object],
    address: PfsAddress,
    cluster: str,
    *,
    reading: Callable[[PfsAddress, str], PfsTree] = opened_for_reading,
) -> None:
    """Read a WAL file out of PFS, with what a push looks for beside it, and have `push` archive it."""
    directory, _, name = address.directory.rpartition("/")
    shared, _, wal_directory = directory.rpartition("/")
    with _Scratch() as scratch:
        tree = reading(PfsAddress(address.disk, shared), cluster)
        try:
            os.mkdir(scratch.path("global"))
            os.mkdir(scratch.path("pg_wal"))
            _take_out(tree, "global/pg_control", scratch.path("global/pg_control"))
            own = f"pg_wal/{name}"
            if not _take_out(tree, f"{wal_directory}/{name}", scratch.path(own)):
                raise StorageFailed(
                    f'could not read "{address}": it is not there', hint="see what the server wants archived: %p"
                )
            history = f"{name[:8]}.history"
            if history != name:
                _take_out(tree, f"{wal_directory}/{history}", scratch.path(f"pg_wal/{history}"))
        except OSError as problem:
            raise storage_failed(problem, "read out of PFS", str(address)) from problem
        finally:
            tree.close()
        push(scratch.path(own))


class _Scratch:
    """A directory for one call; what killed calls have left is removed."""

    def __init__(self) -> None:
        # A server runs its commands in its data directory.
        here = os.getcwd()
        self._parent = here if os.access(here, os.W_OK | os.X_OK) else "/var/tmp"
        self._directory = os.path.join(self._parent, f"{_SCRATCH}{os.getpid()}")

    def __enter__(self) -> _Scratch:
        try:
            for name in os.listdir(self._parent):
                process = name.removeprefix(_SCRATCH)
                if process != name and process.isdecimal() and not os.path.exists(f"/proc/{process}"):
                    _remove(os.path.join(self._parent, name))
            _remove(self._directory)
            os.mkdir(self._directory, 0o700)
        except OSError as problem:
            raise storage_failed(problem, "make", self._directory) from problem
        return self

    def __exit__(self, *_: object) -> None:
        _remove(self._directory)

    def path(self, name: str) -> str:
        """Return the path of a file in it."""
        return os.path.join(self._directory, name)


def _remove(directory: str) -> None:
    """Remove a directory of ours; links in it are removed, not followed."""
    if os.path.islink(directory) or not os.path.isdir(directory):
        return
    for path, names, files in os.walk(directory, topdown=False):
        for name in (*files, *names):
            inner = os.path.join(path, name)
            if os.path.isdir(inner) and not os.path.islink(inner):
                os.rmdir(inner)
            else:
                os.unlink(inner)
    os.rmdir(directory)


def _take_out(tree: PfsTree, name: str, path: str) -> bool:
    """Copy a file out of PFS, zeros as holes; return False if it is not there."""
    try:
        file = tree.open(name)
    except FileNotFoundError:
        return False
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            size = file.size()
            for offset in range(0, size, _BLOCK_BYTES):
                piece = memoryview(bytearray(min(_BLOCK_BYTES, size - offset)))
                piece = piece[: file.read_into(offset, piece)]
                for start, stop in _filled(piece):
                    os.pwrite(descriptor, piece[start:stop], offset + start)
            os.ftruncate(descriptor, size)
        finally:
            os.close(descriptor)
    finally:
        file.close()
    return True


def _put(path: str, tree: PfsWritableTree, name: str) -> None:
    """Write a file of this machine into PFS and give it its name, in place of what had it; close the tree."""
    temporary = name + _TEMPORARY
    try:
        # What a killed fetch left.
        with suppress(FileNotFoundError):
            tree.remove(temporary)
        file = tree.create(temporary, 0o600)
        try:
            with open(path, "rb", buffering=0) as stream:
                size = os.fstat(stream.fileno()).st_size
                for offset in range(0, size, _BLOCK_BYTES):
                    piece = memoryview(os.pread(stream.fileno(), _BLOCK_BYTES, offset))
                    for start, stop in _filled(piece):
                        file.write(offset + start, piece[start:stop])
                file.truncate(size)
        finally:
            file.close()
        tree.rename(temporary, name)
    except OSError as problem:
        raise storage_failed(problem, "write", tree.path(name)) from problem
    finally:
        tree.close()


def _filled(piece: memoryview) -> Iterator[tuple[int, int]]:
    """Yield the stretches of a piece that are not zeros."""
    start = -1
    for at in range(0, len(piece), _HOLE_BYTES):
        page = piece[at : at + _HOLE_BYTES]
        # The first byte decides for almost every page.
        is_zero = not page[0] and page == _ZEROS[: len(page)]
        if is_zero and start >= 0:
            yield start, at
            start = -1
        elif not is_zero and start < 0:
            start = at
    if start >= 0:
        yield start, len(piece)
