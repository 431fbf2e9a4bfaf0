"""Which settings a restore changes, and why: a list of rules over the source's configuration. Pure.

Order counts: what names the source's place is switched off first, then the role's settings are made, then PolarDB's,
and `--set` comes last and wins.

Where a setting goes: a server may be started with another postgresql.conf than the one in its data directory (Debian's
layout; `-c config_file`), and then reads nothing of that one. So what decides about recovery, and what keeps a copy
away from the source's archive and storage, always goes into postgresql.auto.conf, which is read in every layout; the
rest does too, where postgresql.conf is known to lie elsewhere, or not known at all.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from polarvault.errors import UsageError
from polarvault.instance.debian import DebianCluster
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
from polarvault.recovery.settings import archive_recovery_settings, target_setting
from polarvault.recovery.target import TargetKind
from polarvault.restore.model import Change, Layout, RestoreRequest
from polarvault.restore.plan.archiving import archive_settings, archive_warnings
from polarvault.restore.plan.confined import (
    LIBRARY_LISTS,
    LIBRARY_PATH,
    without_brought_directories,
    without_brought_libraries,
)
from polarvault.restore.standby.follow_checks import hot_standby_shortfalls

NOTE = "polarvault restore"
# With none of them nobody starts the workers of a subscription, whatever the catalogs say (manual, 31.12).
LOGICAL_WORKERS = "max_logical_replication_workers"

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
    ("hosts_file", "names a file outside of the restored directory"),
    ("log_directory", "would mix this server's log with the source's"),
    ("stats_temp_directory", "would be shared with the source"),
    ("log_filename", "would mix this server's log with the source's"),
    ("krb_server_keyfile", "names a file outside of the restored directory"),
)
# Where a relative one begins, if that is not the data directory.
_RELATIVE_TO = {"log_filename": "log_directory"}
# What a name is set to where its line cannot be taken away; None: leave it, the check before the start finds it.
_NEUTRAL: dict[str, str | None] = {
    "recovery_target_action": "pause",
    "recovery_target_inclusive": "on",
    "recovery_target_timeline": "latest",
    "recovery_min_apply_delay": "0",
    "log_directory": "log",
    "stats_temp_directory": "pg_stat_tmp",
    "log_filename": "postgresql-%Y-%m-%d_%H%M%S.log",
    "data_directory": None,
    "hba_file": None,
    "ident_file": None,
    "hosts_file": None,
}
# Must hold whatever postgresql.conf the server is started with: a target that is not read is a recovery to somewhere
# else, an archive_command that is read after all writes into the source's WAL archive.
_EVERYWHERE = frozenset(
    {
        "restore_command", "primary_conninfo", "primary_slot_name",
        "archive_mode", "archive_command", "archive_library",
        "recovery_target", "recovery_target_action", "recovery_target_inclusive", "recovery_target_lsn",
        "recovery_target_name", "recovery_target_time", "recovery_target_timeline", "recovery_target_xid", DATADIR,
        "max_logical_replication_workers",
    }
)  # fmt: skip
# What an unknown postgresql.conf may hold that acts during any recovery; empty is harmless where it holds nothing.
_EMPTIED_IF_UNKNOWN = (
    ("archive_cleanup_command", "would delete from the source's WAL archive, if a postgresql.conf elsewhere sets it"),
    ("recovery_end_command", "was meant for another recovery, if a postgresql.conf elsewhere sets it"),
)
_TARGETS = tuple(sorted(name for kind in TargetKind if (name := target_setting(kind)) is not None))
# These belong to the cluster in /etc where its own file sets them, whatever was restored into its data directory.
_OF_THE_CLUSTER = frozenset({"data_directory", "external_pid_file"})
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

_DEBIANS_SOCKETS = "/var/run/postgresql"


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
    debian: DebianCluster | None = None
    """The cluster of Debian's tools that the data directory belongs to."""
    recovery: RecoveryPlan | None = None
    restore_command: str | None = None
    primary_settings: Mapping[str, str] = field(default_factory=dict)
    replica_settings: tuple[Wanted, ...] = ()
    changes: list[Change] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    _elsewhere: bool = False

    def plan(self) -> None:
        """Run every rule; afterwards the configuration holds the edited files."""
        is_unknown = not self.configuration.has_main_file
        if is_unknown:
            self._make_main_file()
        self._elsewhere = is_unknown or self.debian is not None
        if self.request.confined_to is not None:
            self._leave_out_what_the_backup_brings()
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
        if self._is_from_the_source("huge_pages") and is_true(self.configuration.value("huge_pages")):
            self._set("huge_pages", "try", "this machine may have none reserved")
        if is_unknown:
            self._empty_other_targets()
        for wanted in self._role_settings():
            self._set(wanted.name, wanted.value, wanted.why)
        for wanted in self._polardb_settings():
            self._set(wanted.name, wanted.value, wanted.why)
        if is_unknown:
            self._empty_what_may_act()
        if self.request.role is Role.PRIMARY and not self.request.recovery.keep_archiving:
            self._set(LOGICAL_WORKERS, "0", "subscriptions of the source would take its place at their publishers")
        if self.request.port is not None:
            self._set("port", str(self.request.port), "--port")
        for name, value in self.request.settings:
            self._set(name, value, "--set")
        self._check_given_settings()

    def _is_from_the_source(self, name: str) -> bool:
        """Tell whether the deciding line came with the backup: what /etc says of this host's cluster is its own."""
        winner = self.configuration.winner(name)
        return winner is not None and (self.debian is None or self.configuration.is_editable(winner))

    def _empty_what_may_act(self) -> None:
        for name, why in _EMPTIED_IF_UNKNOWN:
            if self.configuration.value(name) is None:
                self._set(name, "", why)

    def _empty_other_targets(self) -> None:
        target = self.recovery and target_setting(self.recovery.target.kind)
        for name in _TARGETS if target else ():
            # The server takes one target only; a second, from wherever, would keep it from starting. These lines stand
            # before the target's, because it refuses even an empty one that follows another kind.
            if name != target and self.configuration.value(name) is None:
                self._set(name, "", "only one target can be set, should a postgresql.conf elsewhere set another")

    def _set(self, name: str, value: str, why: str) -> None:
        before = self.configuration.winner(name)
        try:
            quote_value(value)
        except ValueError as problem:
            raise UsageError(f"{name}: {problem}") from problem
        everywhere = self._must_hold_everywhere(name)
        unchanged = before is not None and (before.value == value or (value == "on" and is_true(before.value)))
        holds = before is not None and (not everywhere or before.path == self.configuration.auto_path)
        if unchanged and holds and len(self.configuration.lines(name)) == 1:
            return
        path = self.configuration.set(name, value, NOTE, everywhere=everywhere)
        self._record(name, before.value if before else None, value, path, why)

    def _must_hold_everywhere(self, name: str) -> bool:
        # A replica's postgresql.conf is what arms it, last of all its files (replica.py).
        return self._elsewhere or (name.lower() in _EVERYWHERE and self.request.role is not Role.REPLICA)

    def _disable(self, name: str, why: str) -> None:
        if name in _OF_THE_CLUSTER and not self._is_from_the_source(name):
            return
        lines = self.configuration.disable(name, f"{NOTE}: {why}")
        if not lines:
            return
        before = lines[-1].value
        # Files that are not ours to edit, and polar_settings.conf, which WAL replay can bring back, are overridden.
        outside = self.configuration.winner(name) is not None
        in_cluster_file = any(line.path.endswith(POLAR_FILE) for line in lines)
        neutral = _NEUTRAL.get(name, "")
        if (outside or in_cluster_file) and neutral is not None:
            path = self.configuration.set(name, neutral, NOTE, everywhere=self._must_hold_everywhere(name))
            self._record(name, before, neutral, path, why)
        elif before and not outside:
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
        if self.debian is not None:
            self.warnings.append(f'"{self.debian.main_file}" of cluster {self.debian} cannot be read')
            return
        self.warnings.append(
            "the backup holds no postgresql.conf (Debian keeps it in /etc/postgresql): a minimal one is written; what "
            "must hold, should the server be started with another one, is in postgresql.auto.conf"
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
        own = self.debian.directory + "/" if self.debian else None
        for path in self.configuration.outside_files():
            if own and path.startswith(own):
                continue
            if not path.endswith("global/polar_settings.conf"):
                self.warnings.append(f'the settings include "{path}", outside of the restored directory')

    def _leave_out_what_the_backup_brings(self) -> None:
        """Keep a throw-away copy from files outside of it, and from libraries inside of the backup."""
        for include in list(self.configuration.outside_includes):
            self.warnings.append(
                f'{posixpath.basename(include.path)} line {include.line} includes "{include.target}", '
                "which is outside of the backup: the line is commented out"
            )
            self.configuration.disable_include(include, f"{NOTE}: outside of the copy")
        asked = {name.lower() for name, _ in self.request.settings}
        for name in (*LIBRARY_LISTS, LIBRARY_PATH):
            value = self.configuration.value(name)
            if value is None or name in asked:
                continue
            leave_out = without_brought_directories if name == LIBRARY_PATH else without_brought_libraries
            kept, dropped = leave_out(value, self.request.backup)
            if dropped:
                self.warnings.append(f"{name}: {', '.join(dropped)} lies in the backup, and is left out")
                self._set(name, kept, "libraries that a backup brings along are not loaded")

    def _disable_outside_path(self, name: str, why: str) -> None:
        value = self.configuration.value(name)
        if value and not self._is_inside(self._absolute(name, value)) and self._is_from_the_source(name):
            self._disable(name, why)

    def _absolute(self, name: str, value: str) -> str:
        """Return the path that a setting means, however it is spelled: `../x` leaves the directory as `/x` does."""
        base = self.layout.local
        if name in _RELATIVE_TO:
            base = posixpath.join(base, self.configuration.value(_RELATIVE_TO[name]) or "log")
        # A Kerberos key can be named with its kind in front.
        return posixpath.normpath(posixpath.join(base, value.removeprefix("FILE:")))

    def _is_inside(self, path: str) -> bool:
        return posixpath.normpath(path).startswith(self.layout.local + "/")

    def _ssl(self) -> None:
        missing = []
        if self.debian is not None and not self._is_from_the_source("ssl"):
            return
        for name, default in _SSL_FILES:
            value = self.configuration.value(name) or default
            path = self._absolute(name, value)
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
        if value is None and self.debian is None and self.exists(_DEBIANS_SOCKETS):
            # What no file sets is decided by how the programs were built, and Debian's have a directory of one group.
            if not self.usable_socket_directory(_DEBIANS_SOCKETS):
                why = f"only group postgres may use {_DEBIANS_SOCKETS}, the default of Debian's programs"
                self._set("unix_socket_directories", "/tmp", why)
            return
        if value is None or not self._is_from_the_source("unix_socket_directories"):
            return
        directories = [part.strip().strip('"') for part in value.split(",") if part.strip()]
        usable = [part for part in directories if part.startswith("@") or self._is_usable_socket_directory(part)]
        if usable != directories:
            self._set(
                "unix_socket_directories", ", ".join(usable) or "/tmp", "the source's directory cannot be used here"
            )

    def _is_usable_socket_directory(self, directory: str) -> bool:
        path = self._absolute("unix_socket_directories", directory)
        if path != self.layout.local and not self._is_inside(path):
            return self.usable_socket_directory(path)
        # What is not there yet, but lies in the backup, will be.
        return path == self.layout.local or self.exists(path)

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
            yield self._primary_conninfo(self.request.primary_conninfo)
        if self.request.slot:
            made = "--slot, made on the primary" if self.request.create_slot else "--slot"
            yield Wanted("primary_slot_name", self.request.slot, made)
        yield from self._raised_for_hot_standby("as on the primary, which hot standby demands")
        if self.configuration.value("hot_standby") and not is_true(self.configuration.value("hot_standby")):
            yield Wanted("hot_standby", "on", "a standby has to answer queries")

    def _primary_conninfo(self, given: str) -> Wanted:
        """Return the setting; a standby that synchronises slots (17 and later) needs a database in it."""
        if not is_true(self._settled_value("sync_replication_slots")):
            return Wanted("primary_conninfo", given, "--primary-conninfo")
        # Loaded only here: a restore that speaks to no primary does without libpq.
        from psycopg.conninfo import conninfo_to_dict, make_conninfo

        for name, is_there in (
            ("--slot", bool(self.request.slot)),
            ("hot_standby_feedback = on", is_true(self._settled_value("hot_standby_feedback"))),
        ):
            if not is_there:
                self.warnings.append(
                    f"sync_replication_slots is on, but slots are synchronised only with {name}: add it"
                    + ("" if name.startswith("--") else ", --set hot_standby_feedback=on")
                )
        words = conninfo_to_dict(given)
        if words.get("dbname") or "service" in words:
            return Wanted("primary_conninfo", given, "--primary-conninfo")
        complete = make_conninfo("", **{**words, "dbname": "postgres"})
        return Wanted("primary_conninfo", complete, "--primary-conninfo; sync_replication_slots needs a dbname")

    def _settled_value(self, name: str) -> str | None:
        """Return what a setting will be: --set outranks what the backup's files say."""
        given = {given.lower(): value for given, value in self.request.settings}
        return given.get(name, self.configuration.value(name))

    def _raised_for_hot_standby(self, why: str) -> Iterator[Wanted]:
        for name, value in hot_standby_shortfalls(self._hot_standby_values(), self._hot_standby_needs()).items():
            yield Wanted(name, value, why)

    def _hot_standby_needs(self) -> dict[str, str]:
        """Return what hot standby needs at least: by the primary, by the WAL, and by what the source ran with."""
        needs = {name: int(value) for name, value in self.primary_settings.items() if value.isdecimal()}
        in_wal = self.recovery.hot_standby_needs if self.recovery else {}
        for name in _HOT_STANDBY_DEFAULTS:
            # With options on its command line the source ran with other values than its files say.
            ran_with = 0 if self.control is None else int(getattr(self.control, name))
            needs[name] = max(needs.get(name, 0), in_wal.get(name, 0), ran_with)
        return {name: str(value) for name, value in needs.items()}

    def _check_given_settings(self) -> None:
        """Raise UsageError for a --set with which the server would stop on its way (manual, 26.4.3)."""
        if self.request.role is Role.REPLICA or not is_true(self.configuration.value("hot_standby") or "on"):
            return
        given = {name.lower(): value for name, value in self.request.settings}
        for name, value in hot_standby_shortfalls(self._hot_standby_values(), self._hot_standby_needs()).items():
            if name in given:
                raise UsageError(
                    f"--set {name}={given[name]}: hot standby needs at least {value}, as the source had when it wrote "
                    "the WAL; the server would stop in the middle of the recovery",
                    hint=f"leave it out, set it after the promotion, or give at least {value}",
                )

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
