"""Where something lies in the PolarDB FileSystem: pfsd:///DISK/DIRECTORY, and what looks like it. Pure.

A path of PFS begins with the name of a disk, which is a block device below /dev, and has no place in the name space of
ordinary programs: for them /DISK/DIRECTORY is a directory like any other, which as root is made without a word.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from polarvault.errors import UsageError

PROTOCOL = "pfsd"
_PREFIX = f"{PROTOCOL}://"
# Of disks, names and paths, with the zero that ends them (PolarDB-FileSystem: pfsd_sdk.h).
_MOST_DISK_BYTES, _MOST_NAME_BYTES, _MOST_PATH_BYTES = 63, 255, 4095
_DISK = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*\Z")


@dataclass(frozen=True, slots=True)
class PfsAddress:
    """A directory in PFS; directory: relative to the root of the disk, normalised, never empty."""

    disk: str
    directory: str

    @property
    def path(self) -> str:
        """Return it as the library and PolarDB's settings write it."""
        return f"/{self.disk}/{self.directory}"

    def __str__(self) -> str:
        return f"{_PREFIX}{self.path}"

    def is_within(self, other: PfsAddress) -> bool:
        """Tell whether this is the other one or lies below it."""
        same_disk = self.disk == other.disk
        return same_disk and f"{self.directory}/".startswith(f"{other.directory}/")


def is_pfs_address(text: str) -> bool:
    """Tell whether somebody means PFS, well-formed or not: by the protocol, with any number of slashes."""
    return text.lower().startswith(f"{PROTOCOL}:")


def parse_pfs_address(text: str, option: str = "the address") -> PfsAddress:
    """Parse pfsd:///DISK/DIRECTORY; raise UsageError that names the option for anything else."""
    if not text.startswith(_PREFIX + "/"):
        raise _not_an_address(option, text, "an address in PFS begins with pfsd:/// and the name of the disk")
    return parse_pfs_path(text[len(_PREFIX) :], option)


def parse_pfs_path(path: str, option: str = "the path") -> PfsAddress:
    """Parse /DISK/DIRECTORY, as PolarDB writes it; doubled slashes count once."""
    names = [name for name in path.split("/") if name]
    if not path.startswith("/") or not names or _DISK.match(names[0]) is None:
        raise _not_an_address(option, path, "after the slashes comes the name of the disk, as it is below /dev")
    if len(names) < 2:
        raise _not_an_address(option, path, "it names a whole disk, and a directory on it is needed")
    if any(name in (".", "..") for name in names) or any(ord(letter) < 32 for letter in path):
        raise _not_an_address(option, path, "names must not be . or .. nor hold control characters")
    lengths = [len(name.encode("utf-8", "surrogateescape")) for name in names]
    # What is below the directory needs room, too: the longest name that a server makes there is far shorter.
    too_long = lengths[0] > _MOST_DISK_BYTES or max(lengths) > _MOST_NAME_BYTES
    if too_long or sum(lengths) + len(lengths) > _MOST_PATH_BYTES - 1024:
        raise _not_an_address(option, path, "a name in it is too long for PFS")
    return PfsAddress(names[0], "/".join(names[1:]))


def disk_of_path(path: str, is_directory: Callable[[str], bool], is_block_device: Callable[[str], bool]) -> str | None:
    """Return the disk that a bare path may mean: a device of that name, and no directory /DISK on this machine."""
    names = [name for name in path.split("/") if name]
    if not path.startswith("/") or len(names) < 2 or _DISK.match(names[0]) is None:
        return None
    if is_directory(f"/{names[0]}") or not is_block_device(f"/dev/{names[0]}"):
        return None
    return names[0]


def _not_an_address(option: str, text: str, why: str) -> UsageError:
    return UsageError(
        f"{option}: {text!r} is not a directory in PFS: {why}", hint=f"for example: {PROTOCOL}:///DISK/DIRECTORY"
    )
