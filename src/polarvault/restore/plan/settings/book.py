"""The configuration of the restored server, and every change that is made to it. Pure.

Where a setting goes: a server may be started with another postgresql.conf than the one in its data directory (Debian's
layout; `-c config_file`), and then reads nothing of that one. So what decides about recovery, and what keeps a copy
away from the source's archive and storage, always goes into postgresql.auto.conf, which is read in every layout; the
rest does too, where postgresql.conf is known to lie elsewhere, or not known at all.
"""

from __future__ import annotations

from collections.abc import Iterable

from polarvault.errors import UsageError
from polarvault.pgconf.configuration import POLAR_FILE
from polarvault.pgconf.grammar import quote_value
from polarvault.polardb.settings import DATADIR, Wanted, is_true
from polarvault.restore.facts import RestoreFacts
from polarvault.restore.model import Change, Layout, RestoreRequest
from polarvault.restore.plan.outside import ConfigurationView

NOTE = "polarvault restore"
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
# These belong to the cluster in /etc where its own file sets them, whatever was restored into its data directory.
_OF_THE_CLUSTER = frozenset({"data_directory", "external_pid_file"})


class SettingsBook:
    """Keeps book of every change; afterwards the configuration holds the edited files.

    is_armed_by_main_file: postgresql.conf is put in place last of all files, so what counts may stand there.
    """

    def __init__(self, request: RestoreRequest, facts: RestoreFacts, *, is_armed_by_main_file: bool = False) -> None:
        view = ConfigurationView(facts.backup, facts.host)
        self.request = request
        self.facts = facts
        self.configuration = view.configuration
        self.exists = view.exists
        self.changes: list[Change] = []
        self.warnings: list[str] = []
        self.has_unknown_main_file = not self.configuration.has_main_file
        self._is_armed_by_main_file = is_armed_by_main_file
        # Until the missing file has been made, a line goes where it would go in any backup.
        self.is_read_elsewhere = False

    @property
    def layout(self) -> Layout:
        """Where everything goes."""
        return self.facts.host.layout

    def value(self, name: str) -> str | None:
        """Return a setting's value as it stands now."""
        return self.configuration.value(name)

    def settled_value(self, name: str) -> str | None:
        """Return what a setting will be: --set outranks what the backup's files say."""
        given = {given.lower(): value for given, value in self.request.settings}
        return given.get(name, self.value(name))

    def is_from_the_source(self, name: str) -> bool:
        """Tell whether the deciding line came with the backup: what /etc says of this host's cluster is its own."""
        winner = self.configuration.winner(name)
        return winner is not None and (self.facts.host.cluster is None or self.configuration.is_editable(winner))

    def set_all(self, wanted: Iterable[Wanted]) -> None:
        """Make settings the effective ones, one by one: what comes next may depend on what was set before."""
        for one in wanted:
            self.set(one.name, one.value, one.why)

    def set(self, name: str, value: str, why: str) -> None:
        """Make a value the effective one."""
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

    def disable(self, name: str, why: str) -> None:
        """Comment a setting out; where that cannot be, set it to what does no harm."""
        if name in _OF_THE_CLUSTER and not self.is_from_the_source(name):
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

    def _must_hold_everywhere(self, name: str) -> bool:
        return self.is_read_elsewhere or (name.lower() in _EVERYWHERE and not self._is_armed_by_main_file)

    def _record(self, name: str, before: str | None, after: str | None, path: str, why: str) -> None:
        # Several rules can touch one setting; people want to see what it was in the backup and what it is now.
        earlier = next((change for change in self.changes if change.name == name), None)
        if earlier is not None:
            before = earlier.before
            self.changes.remove(earlier)
        if before != after:
            self.changes.append(Change(name, before, after, path, why))
