"""PolarDB: one manifest for each half, and the backup's own description for restore.

The server's manifest names the files of both halves without saying which is which, some of them twice, so that no stock
tool can use it (facts 1.7). Each half gets one that lists exactly its own files; the server's is kept beside them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from polarvault.pgfiles import manifest as manifests
from polarvault.pgfiles.manifest import Manifest, ManifestFile
from polarvault.taking.facts import ArchiveNames

SERVER_MANIFEST = "backup_manifest.server"


@dataclass(frozen=True, slots=True)
class HalfManifests:
    """The two manifests, encoded."""

    local: bytes
    shared: bytes


def make_half_manifests(
    server_manifest: bytes, local: ArchiveNames, shared: ArchiveNames, *, added: dict[str, bytes], finished: datetime
) -> HalfManifests:
    """Split the server's manifest; `added` are files that we put into the local half ourselves."""
    parsed = manifests.parse_manifest(server_manifest)
    local_files, shared_files = manifests.split_by_half(parsed, local.sent, shared.sent)
    # A server that was restored from a backup of ours still has that backup's own files; ours replace them.
    local_files = [entry for entry in local_files if entry.path not in added]
    algorithm = next((entry.algorithm for entry in parsed.files if entry.algorithm), None)
    modified = finished.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S GMT")
    own = [
        manifests.entry_for(name, content, last_modified=modified, algorithm=algorithm)
        for name, content in added.items()
    ]
    # The local half holds no WAL: with a range, pg_verifybackup would look for a pg_wal that is not there.
    local_half = Manifest(parsed.version, _kept(local_files, local) + own, [], parsed.system_identifier)
    shared_half = Manifest(parsed.version, _kept(shared_files, shared), parsed.wal_ranges, parsed.system_identifier)
    return HalfManifests(manifests.encode_manifest(local_half), manifests.encode_manifest(shared_half))


def _kept(entries: list[ManifestFile], names: ArchiveNames) -> list[ManifestFile]:
    return [entry for entry in entries if entry.path not in names.left_out]
