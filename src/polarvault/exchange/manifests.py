"""The manifest of a backup on its way into another form: compared with what passes, made where there is none."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from polarvault.backupset.listing import Disagreement, Listing, key_of
from polarvault.backupset.model import DESCRIPTION_NAME, Area
from polarvault.basebackup.halves import SERVER_MANIFEST
from polarvault.errors import IntegrityError
from polarvault.model import versions
from polarvault.pgfiles.digest import Digest, new_digest
from polarvault.pgfiles.manifest import Manifest, ManifestFile, ManifestRange, parse_manifest

ALGORITHM = "CRC32C"
# What we write beside a server's files, and what is made anew for another form.
OWN_FILES = frozenset({DESCRIPTION_NAME, SERVER_MANIFEST})
TABLESPACE_MAP = "tablespace_map"


class Comparison:
    """Checksums of files as they pass, against a listing; what is not listed is collected for a manifest of our own."""

    def __init__(self, listing: Listing) -> None:
        self._listing = listing
        self.made: list[ManifestFile] = []
        self.settings: list[Disagreement] = []
        """Configuration files that are not as the manifest says: people edit them."""
        self._digest: Digest | None = None
        self._key = (Area.LOCAL, "")
        self._size = 0
        self._modified = ""
        self._algorithm: str | None = None

    def begin(self, area: Area, name: str, *, oid: int, mtime: int) -> None:
        """A file begins."""
        self._key, self._size = key_of(area, name, oid), 0
        self._modified = datetime.fromtimestamp(max(0, mtime), UTC).strftime("%Y-%m-%d %H:%M:%S GMT")
        entries = self._listing.of(self._key) if self._listing.is_known else ()
        self._algorithm = entries[0].algorithm if entries else ALGORITHM
        self._digest = new_digest(self._algorithm)

    def data(self, view: memoryview) -> None:
        """Take the next bytes of it."""
        self._size += len(view)
        if self._digest is not None:
            self._digest.update(bytes(view))

    def end(self) -> None:
        """It is complete; raise IntegrityError if it is not what the manifest lists."""
        checksum = self._digest.hexdigest() if self._digest is not None else ""
        if not self._listing.is_known:
            self.made.append(ManifestFile(self._key[1], self._size, self._modified, self._algorithm, checksum))
            return
        found = self._listing.judge_content(self._key, self._size, checksum)
        if found is not None and found.is_setting:
            self.settings.append(found)
        elif found is not None:
            raise IntegrityError(
                f"not what the manifest lists: {found}",
                hint="the copy that was read is damaged: use another one, and look at its storage",
            )


def merge_halves(contents: Mapping[Area, bytes]) -> Manifest:
    """Return one manifest of both halves, the local one's files first, as PolarDB's server would list them."""
    local, shared = parse_manifest(contents[Area.LOCAL]), parse_manifest(contents[Area.SHARED])
    files = [entry for entry in local.files if entry.path not in OWN_FILES]
    identifier = local.system_identifier or shared.system_identifier
    return Manifest(local.version, files + shared.files, local.wal_ranges or shared.wal_ranges, identifier)


def make_manifest(
    files: list[ManifestFile], needed: ManifestRange, *, system_identifier: int, server_version: int
) -> Manifest:
    """Return a manifest for files that came without one."""
    version = versions.of_server(server_version).manifest_version
    return Manifest(version, files, [needed], system_identifier if version > 1 else None)
