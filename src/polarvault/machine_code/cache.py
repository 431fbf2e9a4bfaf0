"""Keeps compiled kernels on disk from one run to the next.

What is loaded from here runs with all that the program may do, so an entry has to be one that this very account has
made, and nobody else could have changed or put there:

- The directory is $XDG_CACHE_HOME/polarvault, else ~/.cache/polarvault; `machine-code` in it. All links of the path are
  resolved first; then every directory on it has to belong to root or to this account, and nobody else may write to it
  (a sticky one, such as /tmp, may have others' entries beside ours). The last two are this account's own, as is the
  file: root does not use what belongs to somebody else, even if HOME leads there, as it does below sudo.
- A file is opened relative to its directory, never through a link, and only if it is a regular one of this account's
  that nobody else may write to. What is checked afterwards is what was read: nobody gets at memory.
- Its name is the digest of all that went into the code (`Key`), and it repeats it, so that no file can be taken for
  another; a digest of the content tells what a disk, or a run that was killed, has spoilt. This protects from damage,
  not from malice: against that stand the owners.

Anything else than a sound entry is as good as none: the kernel is compiled, and written again under a temporary name,
then renamed. Nothing here raises, and nothing is waited for: without a place the program works as it does without a
cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from polarvault.machine_code.image import MOST_IMAGE_BYTES, Image, NotLinkable, packed, unpacked
from polarvault.model.ownership import others_may_change, others_may_replace_within

_MAGIC = b"polarvault machine code 1\n"
_DIGEST_BYTES = hashlib.sha256().digest_size
_MOST_BYTES = 2 * MOST_IMAGE_BYTES
_DIRECTORIES = ("polarvault", "machine-code")
_MODE = 0o700
_FILE_MODE = 0o600
# Those of older versions stay behind. There are four kernels.
_MOST_ENTRIES = 32
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Key:
    """Everything that decides what code comes out: parts in any number, of any length."""

    parts: Sequence[bytes]

    def digest(self) -> bytes:
        """Return 32 bytes; no two lists of parts have the same."""
        whole = hashlib.sha256(_MAGIC)
        for part in self.parts:
            # With its length in front, so that no two parts can pass for one.
            whole.update(len(part).to_bytes(8, "little"))
            whole.update(part)
        return whole.digest()


class CodeCache:
    """The entries of one account; `base` is what `cache_base` returns."""

    def __init__(self, base: str | None) -> None:
        self._base = base

    def load(self, key: Key) -> Image | None:
        """Return the image of a key; None if there is no sound one."""
        digest = key.digest()
        with contextlib.suppress(OSError, ValueError), self._directory(make=False) as directory:
            if directory is not None:
                return _entry(_read(directory, digest.hex()), digest)
        return None

    def store(self, key: Key, image: Image) -> None:
        """Keep an image, if there is a place for it."""
        digest = key.digest()
        with contextlib.suppress(OSError, NotLinkable), self._directory(make=True) as directory:
            if directory is not None:
                payload = packed(image)
                _write(directory, digest.hex(), _MAGIC + digest + hashlib.sha256(payload).digest() + payload)
                _remove_oldest(directory)

    @contextlib.contextmanager
    def _directory(self, *, make: bool) -> Iterator[int | None]:
        """Open the directory of the entries; None if there is none that can be trusted."""
        descriptor = None if self._base is None else _open_base(self._base, make=make)
        try:
            for name in _DIRECTORIES if descriptor is not None else ():
                assert descriptor is not None
                outer = descriptor
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(name, _MODE, dir_fd=outer)
                descriptor = os.open(name, _DIRECTORY, dir_fd=outer)
                os.close(outer)
                if others_may_change(os.fstat(descriptor)):
                    os.close(descriptor)
                    descriptor = None
                    break
            yield descriptor
        finally:
            if descriptor is not None:
                os.close(descriptor)


def cache_base(environment: Mapping[str, str]) -> str | None:
    """Return the directory for caches: $XDG_CACHE_HOME, else ~/.cache; None if neither is known."""
    named = environment.get("XDG_CACHE_HOME", "")
    # The XDG Base Directory Specification: a relative path there is to be ignored.
    if named.startswith("/"):
        return named
    home = environment.get("HOME") or os.path.expanduser("~")
    return os.path.join(home, ".cache") if home.startswith("/") else None


def _open_base(base: str, *, make: bool) -> int | None:
    """Open a directory if everything on the way to it belongs to root or to us, and to nobody else in any way."""
    if make and not os.path.isdir(base):
        # The home directory itself is not made: who has none gets none.
        os.mkdir(base, _MODE)
    real = os.path.realpath(base, strict=True)
    descriptor = os.open("/", _DIRECTORY)
    try:
        for name in [part for part in real.split("/") if part]:
            outer = descriptor
            if others_may_replace_within(os.fstat(outer)):
                os.close(outer)
                return None
            # What is not followed any more is a link that was put there since.
            descriptor = os.open(name, _DIRECTORY, dir_fd=outer)
            os.close(outer)
    except OSError:
        os.close(descriptor)
        raise
    if others_may_replace_within(os.fstat(descriptor)):
        os.close(descriptor)
        return None
    return descriptor


def _read(directory: int, name: str) -> bytes:
    # On a FIFO this returns at once; on a regular file the flag changes nothing (open(2)).
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(name, flags, dir_fd=directory)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or others_may_change(found) or found.st_size > _MOST_BYTES:
            raise ValueError("it is not a file of ours")
        return os.read(descriptor, _MOST_BYTES)
    finally:
        os.close(descriptor)


def _entry(content: bytes, digest: bytes) -> Image:
    """Return the image in a file; raise ValueError if it is not the one that was written."""
    head = len(_MAGIC) + _DIGEST_BYTES
    payload = content[head + _DIGEST_BYTES :]
    if content[:head] != _MAGIC + digest:
        raise ValueError("it is not the entry of this key")
    if content[head : head + _DIGEST_BYTES] != hashlib.sha256(payload).digest():
        raise ValueError("it is damaged")
    return unpacked(payload)


def _write(directory: int, name: str, content: bytes) -> None:
    """Write a file under a temporary name, then rename it; not durable: a damaged one is noticed, and made anew."""
    temporary = f"{name}.{os.getpid()}.{os.urandom(4).hex()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, _FILE_MODE, dir_fd=directory)
    try:
        try:
            # Short only on a disk that is full; its digest then tells.
            os.write(descriptor, content)
        finally:
            os.close(descriptor)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=directory)
        raise


def _remove_oldest(directory: int) -> None:
    """Keep the newest entries, and nothing else: other versions' and what killed runs have left."""
    found = []
    for name in os.listdir(directory):
        with contextlib.suppress(OSError):
            found.append((os.stat(name, dir_fd=directory, follow_symlinks=False).st_mtime_ns, name))
    for _, name in sorted(found, reverse=True)[_MOST_ENTRIES:]:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=directory)
