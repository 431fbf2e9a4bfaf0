"""Is what was received what the server's manifest says? Every file's CRC-32C, computed as its bytes pass.

Kept of each file is a hash of path, size and checksum, 8 bytes: a million files take 8 MB, and the manifest, which
comes last, names what is missing.
"""

from __future__ import annotations

import array
from collections.abc import Iterable, Sequence

import google_crc32c
import numpy

from polarvault.errors import IntegrityError
from polarvault.model.names import shown_name
from polarvault.pgfiles.manifest import ManifestFile, parse_manifest

ALGORITHM = "CRC32C"
_MOST_NAMED = 3


class ReceivedFiles:
    """What was received, file by file; paths as in the manifest: below the data directory."""

    def __init__(self) -> None:
        # Python's hash of bytes has 64 bits and a secret of its own: nobody can choose files that meet.
        self._hashes = array.array("q")
        self._path = b""
        self._size = 0
        self._crc = 0

    def begin(self, path: bytes) -> None:
        """A regular file begins."""
        self._path, self._size, self._crc = path, 0, 0

    def data(self, views: Sequence[memoryview]) -> None:
        """Take the next bytes of it."""
        for view in views:
            self._crc = google_crc32c.extend(self._crc, bytes(view))
            self._size += len(view)

    def end(self) -> None:
        """It is complete."""
        self._hashes.append(_hash(self._path, self._size, self._crc.to_bytes(4, "little")))

    def add(self, path: bytes, size: int, checksum: str) -> None:
        """A file was received, with the CRC-32C that its reader has summed up, as a manifest spells it; any thread."""
        self._hashes.append(_hash(path, size, bytes.fromhex(checksum)))

    def compare(self, manifest: bytes) -> int:
        """Return how many files the manifest lists; raise IntegrityError that names those that were received otherwise.

        What is there and not listed (WAL) is the concern of whoever restores it. PolarDB's manifest lists some paths
        twice, once for each half; each of the two must have been received.
        """
        files = parse_manifest(manifest).files
        listed = numpy.fromiter((_hash_of(entry) for entry in files), numpy.int64, len(files))
        missing = numpy.flatnonzero(~numpy.isin(listed, numpy.frombuffer(self._hashes, numpy.int64)))
        if len(missing):
            raise IntegrityError(
                f"{len(missing)} of {len(files)} files were received otherwise than the server's manifest says: "
                f"{_named(files[number] for number in missing[:_MOST_NAMED])}{', ...' * (len(missing) > _MOST_NAMED)}",
                hint="nothing was recorded; look at the server's memory and the network, then take the backup again",
            )
        return len(files)


def _hash_of(entry: ManifestFile) -> int:
    path = entry.path.encode("utf-8", "surrogateescape")
    return _hash(path, entry.size, bytes.fromhex(entry.checksum or ""))


def _hash(path: bytes, size: int, checksum: bytes) -> int:
    return hash(b"%d %b %b" % (size, checksum, path))


def _named(files: Iterable[ManifestFile]) -> str:
    return ", ".join(shown_name(entry.path) for entry in files)
