"""The file of a dump: nobody's is overwritten, nobody else may read it, and it has its name only when it is whole."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from polarvault.flashback.errors import FlashbackRefused
from polarvault.storage.files import create_file, fsync_parent, storage_failed


def check_output(path: str) -> None:
    """Raise FlashbackRefused for a path that is taken, StorageFailed for a directory that cannot be written to."""
    if os.path.lexists(path):
        raise FlashbackRefused(f'"{path}" is there already, and is not overwritten', hint="name another file: -o FILE")
    parent = os.path.dirname(path)
    if not os.path.isdir(parent):
        raise FlashbackRefused(f'there is no directory "{parent}"', hint=f"mkdir -p {parent}")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise storage_failed(PermissionError(errno.EACCES, os.strerror(errno.EACCES)), "write into", parent)


@contextmanager
def new_file(path: str) -> Iterator[int]:
    """Yield a descriptor to write to; when the block ends the file has its name, and is durable.

    When the block fails nothing is left. Raises FlashbackRefused if somebody else has taken the name meanwhile.
    """
    temporary = os.path.join(os.path.dirname(path), f".{os.path.basename(path)[:200]}.{secrets.token_hex(4)}.tmp")
    try:
        descriptor = create_file(temporary, 0o600, os.O_RDWR | os.O_EXCL)
    except OSError as problem:
        raise storage_failed(problem, "write", temporary) from problem
    try:
        try:
            yield descriptor
            os.fsync(descriptor)
        except OSError as problem:
            raise storage_failed(problem, "write", path) from problem
        finally:
            os.close(descriptor)
        _publish(temporary, path)
    finally:
        # After a link the second name goes; after a failure the only one.
        with suppress(FileNotFoundError):
            os.unlink(temporary)
    fsync_parent(path)


def _publish(temporary: str, path: str) -> None:
    """Give a file its name, unless somebody has it: a rename would take it away from him."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise FlashbackRefused(
            f'"{path}" was made by somebody else meanwhile, and is not overwritten',
            hint="run it again with another name",
        ) from None
    except OSError as problem:
        if problem.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise storage_failed(problem, "write", path) from problem
        # A file system without hard links (vfat, some network ones): the name is held by an empty file of ours.
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
        except FileExistsError:
            raise FlashbackRefused(f'"{path}" was made by somebody else meanwhile') from None
        os.rename(temporary, path)
