"""Which settings a restore changes, and why: a list of rules over the source's configuration. Pure.

Order counts: what names the source's place is switched off first, then the role's settings are made, then PolarDB's,
and `--set` comes last and wins.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from polarvault.errors import UsageError
from polarvault.instance.model import Role
from polarvault.pgconf.configuration import POLAR_FILE, Configuration
from polarvault.pgconf.grammar import quote_value
from polarvault.pgfiles.control import ControlFile
from polarvault.polardb.settings import (
    DATADIR,
    Wanted,
    is_true,
    merged_settings,
    shared_storage_settings,
)
from polarvault.recovery.reachability import RecoveryPlan
from polarvault.recovery.settings import archive_recovery_settings
from polarvault.restore.model import Change, Layout, RestoreRequest
from polarvault.restore.plan.archiving import archive_settings, archive_warnings
from polarvault.restore.standby.follow_checks import hot_standby_shortfalls

NOTE = "polarvault restore"

_POINT_AT_SOURCE = (
    ("primary_conninfo", "would follow the source's primary"),
    ("primary_slot_name", "would use the source's slot"),
    ("restore_command", "the WAL archive of the source is used only when --wal names it"),
    ("archive_cleanup_command", "would delete from the source's WAL archive"),
    ("recovery_end_command", "was meant for another recovery"),
    ("promote_trigger_file", "was meant for another server"),
    ("recovery_target", "was meant for another recovery"),
    ("recovery_target_action", "was meant for another recovery"),
    ("recovery_target_inclusive", "was meant for another recovery"),
    ("recovery_target_lsn", "was meant for another recovery"),
    ("recovery_target_name", "was meant for another recovery"),
    ("recovery_target_time", "was meant for another recovery"),
    ("recovery_target_timeline", "was meant for another recovery"),
    ("recovery_target_xid", "was meant for another recovery"),
    ("recovery_min_apply_delay", "would hold recovery back"),
    ("data_directory", "names the source's data directory"),
    ("external_pid_file", "names a file of the source"),
)
_ARCHIVE_OF_SOURCE = (
    ("archive_command", "would write into the source's WAL archive"),
    ("archive_library", "would write into the source's WAL archive"),
)
_OUTSIDE_PATHS = (
    ("hba_file", "names a file outside of the restored directory"),
    ("ident_file", "names a file outside of the restored directory"),
    ("log_directory", "would mix this server's log with the source's"),
    ("stats_temp_directory", "would be shared with the source"),
)
# What a name is set to where its line cannot be taken away; None: leave it, the check before the start finds it.
_NEUTRAL: dict[str, str | None] = {
    "recovery_target_action": "pause",
    "recovery_target_inclusive": "on",
    "recovery_target_timeline": "latest",
    "recovery_min_apply_delay": "0",
    "log_directory": "log",
    "stats_temp_directory": "pg_stat_tmp",
    "data_directory": None,
    "hba_file": None,
    "ident_file": None,
}
# What the server takes where nothing is set, for the settings in which hot standby must not have less than the primary.
_HOT_STANDBY_DEFAULTS = {
    "max_connections": "100",
    "max_worker_processes": "8",
    "max_wal_senders": "10",
    "max_prepared_transactions": "0",
    "max_locks_per_transaction": "64",
}
_SSL_FILES = (
    ("ssl_cert_file", "server.crt"),
    ("ssl_key_file", "server.key"),
    ("ssl_ca_file", ""),
    ("ssl_crl_file", ""),
    ("ssl_crl_dir", ""),
    ("ssl_dh_params_file", ""),
)


@dataclass(slots=True)
class SettingsPlanner:
    """Apply the rules to a configuration and keep book of every change; `exists` asks about paths in the target."""

    configuration: Configuration
    layout: Layout
    request: RestoreRequest
    exists: Callable[[str], bool]
    usable_socket_directory: Callable[[str], bool]
    direct_io: bool
    is_polardb: bool
    had_shared_half: bool
    control: ControlFile | None
    recovery: RecoveryPlan | None = None
    restore_command: str | None = None
    primary_settings: Mapping[str, str] = field(default_factory=dict)
    replica_settings: tuple[Wanted, ...] = ()
    changes: list[Change] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def plan(self) -> None:
        """Run every rule; afterwards the configuration holds the edited files."""
        if not self.configuration.has_main_file:
            self._make_main_file()
        self._check_includes()
        sources_archive_command = self.configuration.value("archive_command")
        for name, why in _POINT_AT_SOURCE:
            self._disable(name, why)
        for name, why in _OUTSIDE_PATHS:
            self._disable_outside_path(name, why)
        self._ssl()
        self._sockets()
        if not self.request.recovery.keep_archiving:
            for name, why in _ARCHIVE_OF_SOURCE:
                self._disable(name, why)
            for wanted in archive_settings(self.request):
                self._set(wanted.name, wanted.value, wanted.why)
        self.warnings += archive_warnings(self.request, sources_archive_command)
        if is_true(self.configuration.value("huge_pages")):
            self._set("huge_pages", "try", "this machine may have none reserved")
        for wanted in self._role_settings():
            self._set(wanted.name, wanted.value, wanted.why)
        for wanted in self._polardb_settings():
            self._set(wanted.name, wanted.value, wanted.why)
        if self.request.port is not None:
            self._set("port", str(self.request.port), "--port")
        for name, value in self.request.settings:
            self._set(name, value, "--set")

    def _set(self, name: str, value: str, why: str) -> None:
        before = self.configuration.winner(name)
        try:
            quote_value(value)
        except ValueError as problem:
            raise UsageError(f"{name}: {problem}") from problem
        unchanged = before is not None and (before.value == value or (value == "on" and is_true(before.value)))
        if unchanged and len(self.configuration.lines(name)) == 1:
            return
        path = self.configuration.set(name, value, NOTE)
        self._record(name, before.value if before else None, value, path, why)

    def _disable(self, name: str, why: str) -> None:
        lines = self.configuration.disable(name, f"{NOTE}: {why}")
        if not lines:
            return
        before = lines[-1].value
        # Files that are not ours to edit, and polar_settings.conf, which WAL replay can bring back, are overridden.
        outside = self.configuration.winner(name) is not None
        in_cluster_file = any(line.path.endswith(POLAR_FILE) for line in lines)
        neutral = _NEUTRAL.get(name, "")
        if (outside or in_cluster_file) and neutral is not None:
            path = self.configuration.set(name, neutral, NOTE)
            self._record(name, before, neutral, path, why)
        elif before:
            self._record(name, before, None, lines[-1].path, why)

    def _record(self, name: str, before: str | None, after: str | None, path: str, why: str) -> None:
        # Several rules can touch one setting; people want to see what it was in the backup and what it is now.
        earlier = next((change for change in self.changes if change.name == name), None)
        if earlier is not None:
            before = earlier.before
            self.changes.remove(earlier)
        if before != after:
            self.changes.append(Change(name, before, after, path, why))

    def _make_main_file(self) -> None:
        self.warnings.append(
            "the backup holds no postgresql.conf (Debian keeps it in /etc/postgresql): a minimal one is written"
        )
        if self.control is None:
            return
        # Hot standby refuses to start with less than the source had (manual, 26.4.3).
        for name, value in (
            ("max_connections", self.control.max_connections),
            ("max_worker_processes", self.control.max_worker_processes),
            ("max_wal_senders", self.control.max_wal_senders),
            ("max_prepared_transactions", self.control.max_prepared_transactions),
            ("max_locks_per_transaction", self.control.max_locks_per_transaction),
        ):
            self._set(name, str(value), "as in the source, which hot standby demands")

    def _check_includes(self) -> None:
        for include in list(self.configuration.bad_includes):
            self.warnings.append(
                f'{posixpath.basename(include.path)} line {include.line} includes "{include.target}", '
                "which is not here: the line is commented out"
            )
            self.configuration.disable_include(include, f"{NOTE}: the file is not here")
        for path in self.configuration.outside_files():
            if not path.endswith("global/polar_settings.conf"):
                self.warnings.append(f'the settings include "{path}", outside of the restored directory')

    def _disable_outside_path(self, name: str, why: str) -> None:
        value = self.configuration.value(name)
        if value and posixpath.isabs(value) and not self._is_inside(value):
            self._disable(name, why)

    def _is_inside(self, path: str) -> bool:
        return posixpath.normpath(path).startswith(self.layout.local + "/")

    def _ssl(self) -> None:
        missing = []
        for name, default in _SSL_FILES:
            value = self.configuration.value(name) or default
            path = posixpath.join(self.layout.local, value)
            if not value or self.exists(path):
                continue
            if default:
                missing.append(value)
            elif self.configuration.value(name):
                self._disable(name, f"{value} is not here")
        if missing and is_true(self.configuration.value("ssl")):
            self.warnings.append(f"ssl is switched off, because {', '.join(missing)} is not here")
            self._set("ssl", "off", f"{missing[0]} is not here")

    def _sockets(self) -> None:
        value = self.configuration.value("unix_socket_directories")
        if value is None:
            return
        directories = [part.strip().strip('"') for part in value.split(",") if part.strip()]
        usable = [part for part in directories if part.startswith("@") or self._is_usable_socket_directory(part)]
        if usable != directories:
            self._set(
                "unix_socket_directories", ", ".join(usable) or "/tmp", "the source's directory cannot be used here"
            )

    def _is_usable_socket_directory(self, directory: str) -> bool:
        if posixpath.isabs(directory):
            return self.usable_socket_directory(directory)
        # It counts from the data directory, which is not there yet: what lies in the backup will be.
        path = posixpath.normpath(posixpath.join(self.layout.local, directory))
        return path == self.layout.local or (self._is_inside(path) and self.exists(path))

    def _role_settings(self) -> Iterator[Wanted]:
        if self.request.role is Role.PRIMARY:
            yield from archive_recovery_settings(
                self.recovery, self.restore_command, self.configuration.value("hot_standby")
            )
            yield from self._raised_for_hot_standby("as the source had it, which hot standby demands")
            if self.configuration.value("synchronous_standby_names"):
                self._disable("synchronous_standby_names", "commits would wait for standbys of the source")
            return
        if self.restore_command is not None:
            yield Wanted("restore_command", self.restore_command, "--wal")
        if self.request.primary_conninfo:
            yield Wanted("primary_conninfo", self.request.primary_conninfo, "--primary-conninfo")
        if self.request.slot:
            made = "--slot, made on the primary" if self.request.create_slot else "--slot"
            yield Wanted("primary_slot_name", self.request.slot, made)
        yield from self._raised_for_hot_standby("as on the primary, which hot standby demands")
        if self.configuration.value("hot_standby") and not is_true(self.configuration.value("hot_standby")):
            yield Wanted("hot_standby", "on", "a standby has to answer queries")

    def _raised_for_hot_standby(self, why: str) -> Iterator[Wanted]:
        needs = {name: int(value) for name, value in self.primary_settings.items() if value.isdigit()}
        in_wal = self.recovery.hot_standby_needs if self.recovery else {}
        for name in _HOT_STANDBY_DEFAULTS:
            # With options on its command line the source ran with other values than its files say.
            ran_with = 0 if self.control is None else int(getattr(self.control, name))
            needs[name] = max(needs.get(name, 0), in_wal.get(name, 0), ran_with)
        shortfalls = hot_standby_shortfalls(self._hot_standby_values(), {n: str(v) for n, v in needs.items()})
        for name, value in shortfalls.items():
            yield Wanted(name, value, why)

    def _hot_standby_values(self) -> dict[str, str]:
        """Return what the copy would have: as set, else what the source ran with, else PostgreSQL's default."""
        found = {}
        for name, default in _HOT_STANDBY_DEFAULTS.items():
            ran_with = default if self.control is None else str(getattr(self.control, name))
            found[name] = self.configuration.value(name) or ran_with
        return found

    def _polardb_settings(self) -> list[Wanted]:
        host_id = self.request.host_id
        own_number = [] if host_id is None else [Wanted("polar_hostid", str(host_id), "--hostid")]
        return [*self._storage_settings(), *own_number]

    def _storage_settings(self) -> list[Wanted]:
        if self.request.role is Role.REPLICA:
            return list(self.replica_settings)
        if not self.is_polardb:
            return []
        if self.layout.shared is not None:
            # The losers are commented out by set(), so that no RESET can bring the live storage back.
            return shared_storage_settings(self.layout.shared, self.configuration.value, direct_io=self.direct_io)
        if self.had_shared_half:
            self._disable(DATADIR, "both halves are in one directory")
            return merged_settings()
        return []
