"""What is often done with a tree, on any implementation."""

from __future__ import annotations

import errno
import os

from polarvault.model import limits
from polarvault.storage.trees.model import EntryKind, Tree, WritableTree


def read_file(tree: Tree, name: str, most_bytes: int = limits.SMALL_FILE_BYTES) -> bytes:
    """Return the content of a small file; OSError with EFBIG for a larger one."""
    file = tree.open(name)
    try:
        buffer = bytearray(min(file.size(), most_bytes) + 1)
        size = file.read_into(0, memoryview(buffer))
    finally:
        file.close()
    if size > most_bytes:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), tree.path(name))
    return bytes(buffer[:size])


def write_file(tree: WritableTree, name: str, content: bytes, mode: int, *, sync: bool = False) -> None:
    """Make a file with this content; FileExistsError if something has the name."""
    file = tree.create(name, mode)
    try:
        if content:
            file.write(0, memoryview(content))
        if sync:
            file.sync()
    finally:
        file.close()


def is_directory(tree: Tree, name: str) -> bool:
    """Tell whether a directory has the name."""
    try:
        return tree.status(name).kind is EntryKind.DIRECTORY
    except (FileNotFoundError, NotADirectoryError):
        return False


def exists(tree: Tree, name: str) -> bool:
    """Tell whether anything has the name."""
    try:
        tree.status(name)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def make_directories(tree: WritableTree, name: str, mode: int) -> None:
    """Make a directory and what is missing above it; it may be there."""
    if not name or is_directory(tree, name):
        return
    make_directories(tree, name.rpartition("/")[0], mode)
    try:
        tree.make_directory(name, mode)
    except FileExistsError:
        if not is_directory(tree, name):
            raise


def remove_contents(tree: WritableTree, name: str = "") -> None:
    """Remove everything below a directory, as far as it can be: raise the first failure after the rest was tried."""
    failure: OSError | None = None
    for entry in tree.list(name):
        path = f"{name}/{entry.name}" if name else entry.name
        try:
            if entry.kind is EntryKind.DIRECTORY:
                remove_contents(tree, path)
                tree.remove_directory(path)
            else:
                tree.remove(path)
        except OSError as problem:
            failure = failure or problem
    if failure is not None:
        raise failure
