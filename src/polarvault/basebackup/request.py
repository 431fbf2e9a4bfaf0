"""What the user asked for, checked before anything is touched; the messages are pg_basebackup's."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from polarvault.errors import UsageError
from polarvault.taking.request import ServerRequest, SourceKind

STDOUT = "-"
_NO_STREAM_TO_STDOUT = "cannot stream write-ahead logs in tar mode to stdout"


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupRequest(ServerRequest):
    """One base backup; field names follow the long options."""

    directory: str | None = None
    write_recovery_conf: bool = False
    tablespace_mapping: dict[str, str] = field(default_factory=dict)
    waldir: str | None = None
    clean: bool = True
    sync: bool = True
    sync_method: str = "fsync"
    progress: bool = False
    verbose: bool = False
    polardata: str | None = None
    polar_disk_name: str | None = None
    polar_host_id: str | None = None
    polar_storage_cluster_name: str | None = None
    keep_all: bool = False
    copy_configuration: bool = False

    @property
    def is_plain(self) -> bool:
        """Tell whether the output is a directory tree."""
        return self.target is None and self.format == "plain"

    @property
    def to_stdout(self) -> bool:
        """Tell whether the tar goes to standard output."""
        return self.directory == STDOUT


def check_request(request: BackupRequest) -> None:
    """Refuse combinations that make no sense; raise UsageError."""
    for wrong, message in _contradictions(request):
        if wrong:
            hint = 'try "polarvault basebackup --help" for more information'
            if message == _NO_STREAM_TO_STDOUT:
                hint = "add -X fetch, with which the WAL comes inside of the tar, or -X none"
            raise UsageError(message, hint=hint)
    for old, new in request.tablespace_mapping.items():
        for which, path in (("old", old), ("new", new)):
            if not os.path.isabs(path):
                raise UsageError(f"{which} directory is not an absolute path in tablespace mapping: {path}")


def _contradictions(request: BackupRequest) -> list[tuple[bool, str]]:
    plain, target, wal = request.format == "plain", request.target is not None, request.wal_method
    client_compression = request.compression.algorithm != "none" and request.compression.location == "client"
    return [
        (request.copy_configuration and (request.directory is None or request.to_stdout),
         "--copy-configuration needs a directory: the copy is made beside it"),
        (request.directory is None and not target, "must specify output directory or backup target"),
        (request.directory is not None and target, "cannot specify both output directory and backup target"),
        (request.format is not None and target, "cannot specify both format and backup target"),
        (request.write_recovery_conf and target,
         "recovery configuration cannot be written when a backup target is used"),
        (target and client_compression, "client-side compression is not possible when a backup target is specified"),
        (plain and client_compression, "only tar mode backups can be compressed"),
        (plain and request.to_stdout, "cannot write plain format to stdout; use -Ft"),
        (target and wal == "stream", "WAL cannot be streamed when a backup target is specified"),
        (not plain and request.to_stdout and wal == "stream", _NO_STREAM_TO_STDOUT),
        (request.slot is not None and wal != "stream", "replication slots can only be used with WAL streaming"),
        (request.no_slot and request.slot is not None, "--no-slot cannot be used with slot name"),
        (request.create_slot and request.slot is None, "--create-slot needs a slot to be specified using --slot"),
        (request.create_slot and request.no_slot, "--create-slot and --no-slot are incompatible options"),
        (request.waldir is not None and target,
         "WAL directory location cannot be specified along with a backup target"),
        (request.waldir is not None and not plain, "WAL directory location can only be specified in plain mode"),
        (request.waldir is not None and not os.path.isabs(request.waldir),
         "WAL directory location must be an absolute path"),
        (request.source is SourceKind.LOCAL and request.incremental is not None,
         "an incremental base backup is made by the server, which knows what has changed: use --source stream"),
        (request.progress and not request.estimate_size, "--progress and --no-estimate-size are incompatible options"),
        (not request.manifest and request.manifest_checksums is not None,
         "--no-manifest and --manifest-checksums are incompatible options"),
        (not request.manifest and request.manifest_force_encode,
         "--no-manifest and --manifest-force-encode are incompatible options"),
        (plain and not target and None not in (request.directory, request.polardata)
         and os.path.abspath(request.directory or "") == os.path.abspath(request.polardata or ""),
         "-D and --polardata name the same directory, but each half needs one of its own in plain mode"),
        (bool(request.polar_disk_name) and request.polardata is None,
         "--polar_disk_name needs --polardata, the directory on that disk"),
        (bool(request.polar_disk_name) and not request.polar_host_id,
         "polar_disk_name and polar_host_id must be specified together"),
    ]  # fmt: skip
