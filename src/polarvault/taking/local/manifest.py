"""The manifest of a backup whose files we read ourselves, as the server would write it (server: backup_manifest.c)."""

from __future__ import annotations

import time
from collections.abc import Callable

from polarvault.model import versions
from polarvault.pgfiles.manifest import Manifest, ManifestFile, ManifestRange, encode_manifest
from polarvault.server.identity import ServerIdentity


class ManifestLog:
    """Collects the entries in the order of the backup; checksums arrive later, from any thread."""

    def __init__(self, *, algorithm: str | None, force_encode: bool) -> None:
        self._algorithm = algorithm
        self._force_encode = force_encode
        # Section, path, size and time of each; the checksum takes its place in a list beside it.
        self._files: list[tuple[int, str, int, int]] = []
        self._checksums: list[str | None] = []

    def add(self, path: str, size: int, modified: float, *, section: int) -> Callable[[str | None], None]:
        """Note a file; return what is to be told its checksum. Sections come in the order of their numbers."""
        number = len(self._files)
        self._files.append((section, path, size, int(modified)))
        self._checksums.append(None)

        def ended(checksum: str | None) -> None:
            self._checksums[number] = checksum

        return ended

    def encode(self, identity: ServerIdentity, wal: ManifestRange) -> bytes:
        """Return the manifest; every file that was read has its checksum by now."""
        found = sorted(zip(self._files, self._checksums, strict=True), key=lambda entry: entry[0][0])
        entries = [
            ManifestFile(
                path, size, time.strftime("%Y-%m-%d %H:%M:%S GMT", time.gmtime(modified)), self._algorithm, checksum,
                self._force_encode or not _is_text(path),
            )
            for (_, path, size, modified), checksum in found
            # What the sink did not want was not read, and no manifest of a half lists it (PolarDB's polar_fullpage).
            if checksum is not None or self._algorithm is None
        ]  # fmt: skip
        version = versions.of_server(identity.version_num).manifest_version
        system = int(identity.system_identifier) if version > 1 else None
        return encode_manifest(Manifest(version, entries, [wal], system))


def _is_text(path: str) -> bool:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
