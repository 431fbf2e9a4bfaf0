"""The server's manifest on its way into the backup: in memory while it is small, in a file without a name beyond that.

A cluster of millions of files has a manifest of a gigabyte, and a server that is not well can send one without end.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

from polarvault.errors import RemoteProtocolError
from polarvault.model import limits
from polarvault.storage import files

_IN_MEMORY_BYTES = 8 << 20
_PART_BYTES = 1 << 20


class ManifestSpool:
    """Collects the manifest; directory is where there is space for it, None for that of temporary files."""

    def __init__(self, directory: str | None) -> None:
        self.size_bytes = 0
        self._where = directory or tempfile.gettempdir()
        # It has no name, so nothing is left of it however the program ends.
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES, dir=directory)  # noqa: SIM115  # closed by close

    def append(self, content: bytes) -> None:
        """Take the next bytes; raise StorageFailed."""
        try:
            self._file.write(content)
        except OSError as problem:
            raise files.storage_failed(problem, "write the manifest to a file in", self._where) from problem
        self.size_bytes += len(content)

    def parts(self) -> Iterator[bytes]:
        """Yield everything in order; raise StorageFailed."""
        try:
            self._file.seek(0)
            while part := self._file.read(_PART_BYTES):
                yield part
        except OSError as problem:
            raise files.storage_failed(problem, "read the manifest from a file in", self._where) from problem

    def content(self) -> bytes:
        """Return everything at once, for who has to parse it."""
        if self.size_bytes > limits.PARSED_MANIFEST_BYTES:
            raise RemoteProtocolError(
                f"the manifest of the backup has {self.size_bytes} bytes, more than can be split into halves",
                hint="take the backup without a manifest: --no-manifest",
            )
        return b"".join(self.parts())

    def close(self) -> None:
        """Forget it; safe to call twice."""
        self._file.close()
