"""The settings of a drill's server: nobody reaches it, it reaches nobody, and it hides nothing. Pure.

They are written like `--set`, so that they win over every line of the backup's own files. Some are for libraries
that the copy may preload; the server ignores the setting of a library that is not there (manual, 20.16).
"""

from __future__ import annotations

from collections.abc import Sequence

from polarvault.errors import UsageError
from polarvault.model import versions

# Behind listen_addresses = '' the number only names the socket; it stays clear of the ports of real servers.
_PORTS = range(20000, 32000)
# A socket's path has at most 107 bytes (unix(7)): the directory, "/.s.PGSQL." and five digits.
SOCKET_PATH_BYTES = 107
_SOCKET_NAME_BYTES = len("/.s.PGSQL.65535")

# With the local socket of a directory that only the account can enter, trust lets in nobody else.
HBA = b"# Written by polarvault drill: nobody from outside.\nlocal all all trust\n"

_FIXED = (
    # Nobody reaches it.
    ("unix_socket_permissions", "0700"),
    ("unix_socket_group", ""),
    ("bonjour", "off"),
    ("ssl", "off"),
    # It reaches nobody: no archive, no publisher, no job, no standby that a commit waits for.
    ("archive_mode", "off"),
    ("max_logical_replication_workers", "0"),
    ("synchronous_standby_names", ""),
    # A library of the server's own, not one that the backup names.
    ("jit_provider", "llvmjit"),
    # Libraries with workers of their own: pg_cron's jobs, Citus' maintenance (which would end prepared transactions on
    # the source's worker nodes), TimescaleDB's jobs and telemetry.
    ("cron.launch_active_jobs", "off"),
    ("citus.recover_2pc_interval", "-1"),
    ("citus.distributed_deadlock_detection_factor", "-1"),
    ("citus.enable_statistics_collection", "off"),
    ("timescaledb.max_background_workers", "0"),
    ("timescaledb.telemetry_level", "off"),
    # A server that takes no queries in recovery would shut down where it is to pause (manual, 20.5.6).
    ("hot_standby", "on"),
    # Errors show, in one file that can be read.
    ("zero_damaged_pages", "off"),
    ("ignore_checksum_failure", "off"),
    ("ignore_invalid_pages", "off"),
    ("logging_collector", "off"),
    ("log_destination", "stderr"),
    ("log_min_messages", "warning"),
    ("lc_messages", "C"),
    # A page that makes one process crash must not keep the others from being read.
    ("restart_after_crash", "on"),
    ("update_process_title", "on"),
)
# By what the copy is for. A drill only reads, by itself; a clone is worked with.
_FOR = {
    "drill": (
        ("autovacuum", "off"),
        # A transaction that was prepared on the source holds its locks in the copy, too: nothing may wait for ever.
        ("lock_timeout", "10s"),
        ("statement_timeout", "0"),
    ),
    "clone": (("autovacuum", "on"),),
    "image": (("autovacuum", "off"),),
}
# It starts beside production. Only these yield to --set.
_SMALL = (
    ("shared_buffers", "128MB"),
    ("huge_pages", "off"),
)
# A trigger on login would run when we connect (manual, 40.1); the setting came together with it.
_SINCE_17 = (("event_triggers", "off"),)
# CREATE EXTENSION amcheck runs the script of the server's own, and of no directory that the backup names.
_SINCE_18 = (("extension_control_path", "$system"),)
# What --set may not touch: each would open the copy or point it at something of the source's.
_OURS = {
    *(name for name, _ in (*_FIXED, *_SINCE_17, *_SINCE_18)),
    "listen_addresses", "cluster_name", "autovacuum", "port",
    "unix_socket_directories", "hba_file", "ident_file", "data_directory", "config_file", "external_pid_file",
    "archive_command", "archive_library", "archive_cleanup_command", "recovery_end_command", "restore_command",
    "primary_conninfo", "primary_slot_name", "include", "include_if_exists", "include_dir",
    "polar_datadir", "polar_enable_shared_storage_mode",
    "polar_vfs.localfs_mode",
}  # fmt: skip


def check_settings(settings: Sequence[tuple[str, str]], what: str = "a drill") -> None:
    """Raise UsageError for a --set that would open the copy to the world or the world to the copy; what: makes it."""
    ours = _OURS | {name for name, _ in _FOR[what.removeprefix("a ")]}
    for name, _ in settings:
        if name.lower() in ours or name.lower().startswith("recovery_target"):
            hint = "leave it out"
            if name.lower() == "restore_command":
                hint = "name the directory that holds the WAL: --wal DIR"
            elif name.lower().startswith("recovery_target"):
                hint = "give the target with --target-time, --target-lsn, --target-xid, --target-name or --target"
            raise UsageError(
                f"--set {name}: {what} sets this itself, so that its copy is closed to the world", hint=hint
            )


def fits_socket(directory: str) -> bool:
    """Tell whether a socket in this directory has a path that the kernel takes."""
    return len(directory.encode()) + _SOCKET_NAME_BYTES <= SOCKET_PATH_BYTES


def choose_port(draw: int) -> int:
    """Return the port for a random number."""
    return _PORTS[draw % len(_PORTS)]


def private_settings(
    *,
    socket_directory: str,
    hba_file: str,
    ident_file: str,
    wanted: Sequence[tuple[str, str]],
    purpose: str = "drill",
    listen_addresses: str = "",
) -> tuple[tuple[str, str], ...]:
    """Return what the copy's server is started with, the user's own settings in their place.

    purpose: drill, clone or image.
    """
    asked = {name.lower() for name, _ in wanted}
    places = (
        ("unix_socket_directories", f'"{socket_directory}"'),
        ("hba_file", hba_file),
        ("ident_file", ident_file),
    )
    small = tuple(setting for setting in _SMALL if setting[0] not in asked)
    named = (("listen_addresses", listen_addresses), ("cluster_name", f"polarvault {purpose}"))
    return (*small, *wanted, *_FIXED, *_FOR[purpose], *named, *places)


def settings_of_version(major: int) -> tuple[tuple[str, str], ...]:
    """Return what an older server would not understand."""
    version = versions.of_server(major * 10000)
    return (
        *(_SINCE_17 if version.can_disable_event_triggers else ()),
        *(_SINCE_18 if version.has_extension_path else ()),
    )
