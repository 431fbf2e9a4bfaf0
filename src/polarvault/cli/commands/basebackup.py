"""`polarvault basebackup`: drop-in for pg_basebackup 13-19 and polar_basebackup."""

from __future__ import annotations

import fcntl
import os
import re
from contextlib import ExitStack
from typing import Any

import click

from polarvault.cli import signals
from polarvault.cli.json_output import current_events, current_output, json_option
from polarvault.cli.options.drop_in import (
    DropInCommand,
    connection_options,
    connection_settings,
    progress_json_option,
    status_interval,
    version_option,
)
from polarvault.cli.options.source import source_option
from polarvault.errors import StorageFailed, UsageError
from polarvault.model.c_numbers import BLANKS, strtod

_MIN_RATE_KB, _MAX_RATE_KB = 32, 1 << 20
# Who gives one of these calls polar_basebackup otherwise, and the server knows that name.
_OF_POLAR_BASEBACKUP = ("polardata", "polar_disk_name", "polar_host_id", "polar_storage_cluster_name")


LAST_COMPRESSION = "polarvault.last_compression"


def last_of_two(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """Remember which of -z and -Z came last: that one counts."""
    source = context.get_parameter_source(parameter.name or "")
    if source is click.core.ParameterSource.COMMANDLINE:
        context.meta[LAST_COMPRESSION] = parameter.name
    return value


@click.command("basebackup", cls=DropInCommand, context_settings={"help_option_names": ["-?", "--help"]})
@click.option("-D", "--pgdata", metavar="DIRECTORY", help="Receive base backup into directory; - is standard output.")
@click.option("-F", "--format", "format_name", metavar="p|t", help="Output format: plain (default), tar.")
@click.option("-i", "--incremental", metavar="OLDMANIFEST", help="Take incremental backup (PostgreSQL 17 and later).")
@click.option("-r", "--max-rate", metavar="RATE", help="Maximum transfer rate, in kB/s or with suffix k or M.")
@click.option("-R", "--write-recovery-conf", is_flag=True, help="Write configuration for replication.")
@click.option("-t", "--target", metavar="TARGET[:DETAIL]", help="Backup target, if other than client.")
@click.option(
    "-T", "--tablespace-mapping", metavar="OLDDIR=NEWDIR", multiple=True,
    help="Relocate tablespace in OLDDIR to NEWDIR.",
)  # fmt: skip
@click.option("--waldir", metavar="WALDIR", help="Location for the write-ahead log directory.")
@click.option("-X", "--wal-method", metavar="none|fetch|stream", help="Include required WAL files with this method.")
@click.option("-z", "--gzip", is_flag=True, callback=last_of_two, help="Compress tar output.")
@click.option(
    "-Z", "--compress", metavar="[{client|server}-]METHOD[:DETAIL]", callback=last_of_two,
    help="Compress on client or server.",
)  # fmt: skip
@click.option("-c", "--checkpoint", metavar="fast|spread", help="Set fast or spread (default) checkpointing.")
@click.option("-C", "--create-slot", is_flag=True, help="Create replication slot.")
@click.option("-l", "--label", metavar="LABEL", default="pg_basebackup base backup", help="Set backup label.")
@click.option("-n", "--no-clean", is_flag=True, help="Do not clean up after errors.")
@click.option("-N", "--no-sync", is_flag=True, help="Do not wait for changes to be written safely to disk.")
@click.option(
    "-P", "--progress", is_flag=True, help="Show progress information; --progress=json: as JSON (docs/json.md)."
)
@progress_json_option
@click.option("-S", "--slot", metavar="SLOTNAME", help="Replication slot to use.")
@click.option("-v", "--verbose", is_flag=True, help="Output verbose messages.")
@click.option("--manifest-checksums", metavar="ALGORITHM", help="SHA{224,256,384,512}|CRC32C|NONE for the manifest.")
@click.option("--manifest-force-encode", is_flag=True, help="Hex encode all file names in manifest.")
@click.option("--no-estimate-size", is_flag=True, help="Do not estimate backup size in server side.")
@click.option("--no-manifest", is_flag=True, help="Suppress generation of backup manifest.")
@click.option("--no-slot", is_flag=True, help="Prevent creation of temporary replication slot.")
@click.option("--no-verify-checksums", is_flag=True, help="Do not verify checksums.")
@click.option("--sync-method", metavar="fsync|syncfs", default="fsync", help="Set method for syncing files to disk.")
@click.option("-s", "--status-interval", metavar="SECS", default="10", help="Time between status packets.")
@connection_options
@click.option(
    "--polardata", metavar="DIRECTORY",
    help="PolarDB: receive the shared half into this directory, or one in PFS: pfsd:///DISK/DIR.",
)  # fmt: skip
@click.option(
    "--polar_disk_name", "--polar-disk-name", "--polar_disk_home", metavar="DISK", help="PolarDB on PFS: disk name."
)
@click.option("--polar_host_id", "--polar-host-id", metavar="ID", help="PolarDB on PFS: host id.")
@click.option(
    "--polar_storage_cluster_name", "--polar-storage-cluster-name", metavar="NAME", help="PolarDB on PFS: cluster."
)
@source_option("stream")
@click.option("--keep-all", is_flag=True, help="PolarDB: also write what a restore has no use for (caches, logs).")
@click.option(
    "--copy-configuration", is_flag=True,
    help="Keep postgresql.conf, pg_hba.conf and what they include in DIRECTORY.configuration, never keys.",
)  # fmt: skip
@click.option(
    "--checkpoint-timeout", metavar="SECS", type=float, default=60.0, show_default=True,
    help="PolarDB: give up and name the slot when one holds the checkpoint up for so long.",
)  # fmt: skip
@json_option
@version_option
@click.argument("rest", nargs=-1, metavar="")
def command(rest: tuple[str, ...], **options: Any) -> int:
    """Take a base backup of a running PostgreSQL or PolarDB server.

    Every option of pg_basebackup 13 to 19 and of polar_basebackup, the same environment variables, the same files, the
    same exit status.
    """
    if rest:
        raise UsageError(f'too many command-line arguments (first is "{rest[0]}")')
    from polarvault.basebackup.places import check_places
    from polarvault.basebackup.request import check_request
    from polarvault.report.basebackup import outcome_fields, outcome_lines, request_fields
    from polarvault.report.events import BackupEvents
    from polarvault.report.taking import TextReporter

    request = _request({**options, "last_compression": click.get_current_context().meta.get(LAST_COMPRESSION)})
    check_request(request)
    check_places(request)
    if request.to_stdout and fcntl.fcntl(1, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise StorageFailed("cannot write the backup to standard output: it is closed", hint="-D - needs | or >")
    output = current_output()
    if output is not None:
        output.add(**request_fields(request))

    from polarvault.basebackup.take import take_base_backup
    from polarvault.server.connection import Connector

    names = ("dbname", "host", "port", "username", "no_password", "password")
    given = {name: options[name] for name in names}
    stands_for = "polar_basebackup" if any(options[name] for name in _OF_POLAR_BASEBACKUP) else "pg_basebackup"
    settings = connection_settings(**given, application_name=stands_for)
    connector = Connector(settings, on_connected=signals.interrupt)
    events = current_events()
    with ExitStack() as stack:
        reporter = (
            BackupEvents(events)
            if events is not None
            else stack.enter_context(
                TextReporter(verbose=request.verbose, progress=request.progress and output is None)
            )
        )
        if output is not None:
            reporter.warnings, reporter.notes = output.warnings, output.notes
        outcome = take_base_backup(request, connector, reporter)
    if output is not None:
        output.add(**outcome_fields(outcome))
        output.notes += outcome.closing_notes
    else:
        for line in outcome_lines(outcome):
            if events is None:
                click.echo(line, err=request.to_stdout)
            else:
                events.emit("note", message=line)
    return 0


def _request(options: dict[str, Any]) -> Any:
    """Turn parsed options into a request; values are checked with pg_basebackup's words."""
    from dataclasses import replace

    from polarvault.basebackup.request import BackupRequest
    from polarvault.model.compression import Compression
    from polarvault.taking.request import SourceKind

    target = options["target"] if options["target"] != "client" else None
    format_name = _choice(
        options["format_name"], {"p": "plain", "plain": "plain", "t": "tar", "tar": "tar"},
        'invalid output format "{}", must be "plain" or "tar"',
    )  # fmt: skip
    if format_name is None and target is None:
        format_name = "plain"
    if options["compress"] is not None and options["last_compression"] != "gzip":
        compression = Compression.parse(options["compress"], by_server=target is not None)
    else:
        compression = Compression("gzip") if options["gzip"] else Compression()
    if compression.location is None and compression.algorithm != "none":
        compression = replace(compression, location="server" if target else "client")
    return BackupRequest(
        directory=options["pgdata"],
        target=target,
        format=format_name,
        max_rate_kb=_rate(options["max_rate"]),
        write_recovery_conf=options["write_recovery_conf"],
        tablespace_mapping=_mappings(options["tablespace_mapping"]),
        waldir=_waldir(options["waldir"]),
        wal_method=_choice(
            "stream" if options["wal_method"] is None else options["wal_method"],
            {"n": "none", "none": "none", "f": "fetch", "fetch": "fetch", "s": "stream", "stream": "stream"},
            'invalid wal-method option "{}", must be "fetch", "stream", or "none"',
        )
        or "stream",
        compression=compression,
        checkpoint_fast=_choice(
            "spread" if options["checkpoint"] is None else options["checkpoint"], {"fast": "fast", "spread": "spread"},
            'invalid checkpoint argument "{}", must be "fast" or "spread"', ignore_case=True,
        )
        == "fast",
        create_slot=options["create_slot"],
        label=options["label"],
        clean=not options["no_clean"],
        sync=not options["no_sync"],
        sync_method=_choice(
            options["sync_method"], {"fsync": "fsync", "syncfs": "syncfs"}, 'unrecognized sync method: {}'
        )
        or "fsync",
        progress=options["progress"],
        slot=options["slot"],
        no_slot=options["no_slot"],
        verbose=options["verbose"],
        manifest=not options["no_manifest"],
        manifest_checksums=_manifest_algorithm(options["manifest_checksums"]),
        manifest_force_encode=options["manifest_force_encode"],
        estimate_size=not options["no_estimate_size"],
        verify_checksums=not options["no_verify_checksums"],
        incremental=options["incremental"],
        status_interval_s=status_interval(options["status_interval"]),
        polardata=options["polardata"],
        polar_disk_name=options["polar_disk_name"],
        polar_host_id=options["polar_host_id"],
        polar_storage_cluster_name=options["polar_storage_cluster_name"],
        keep_all=options["keep_all"],
        copy_configuration=options["copy_configuration"],
        checkpoint_timeout_s=options["checkpoint_timeout"],
        source=SourceKind(options["source"]),
    )  # fmt: skip


def _waldir(text: str | None) -> str | None:
    if text is None or not text.strip("/"):
        return "/" if text else text
    return text.rstrip("/")


def _choice(value: str | None, known: dict[str, str], complaint: str, *, ignore_case: bool = False) -> str | None:
    if value is None:
        return None
    word = value.lower() if ignore_case else value
    if word not in known:
        raise UsageError(complaint.format(value))
    return known[word]


def _rate(text: str | None) -> int | None:
    """Read a rate as pg_basebackup does, with strtod and a suffix."""
    if text is None:
        return None
    number, rest = strtod(text)
    if number is None or number != number:
        raise UsageError(f'transfer rate "{text}" is not a valid value', hint='use kB/s, or a suffix: "k" or "M"')
    if number <= 0:
        raise UsageError("transfer rate must be greater than zero")
    unit = rest.lstrip(BLANKS)
    if unit[1:].strip(BLANKS) or (unit and unit[0] not in "kM"):
        raise UsageError(f'invalid --max-rate unit: "{unit}"', hint='use kB/s, or a suffix: "k" or "M"')
    kilobytes = number * (1024 if unit[:1] == "M" else 1)
    if not _MIN_RATE_KB <= kilobytes <= _MAX_RATE_KB:
        raise UsageError(f'transfer rate "{text}" is out of range: {_MIN_RATE_KB} to {_MAX_RATE_KB} kB/s')
    return int(kilobytes)


def _manifest_algorithm(text: str | None) -> str | None:
    if text is not None and text.upper() not in ("NONE", "CRC32C", "SHA224", "SHA256", "SHA384", "SHA512"):
        raise UsageError(f'unrecognized checksum algorithm: "{text}"', hint="one of SHA224 to SHA512, CRC32C, NONE")
    return text


def _mappings(texts: tuple[str, ...]) -> dict[str, str]:
    """Parse OLDDIR=NEWDIR; a backslash escapes an equals sign in a directory's name."""
    found = {}
    for text in texts:
        parts = [part.replace("\\=", "=") for part in re.split(r"(?<!\\)=", text)]
        if len(parts) > 2:
            raise UsageError('multiple "=" signs in tablespace mapping')
        if len(parts) != 2 or not all(parts):
            raise UsageError(f'invalid tablespace mapping format "{text}", must be "OLDDIR=NEWDIR"')
        found[parts[0].rstrip("/") or "/"] = parts[1].rstrip("/") or "/"
    return found
