"""Find, read and check the configuration file. Everything that is wrong with it is said at once."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from polarvault.config.checks import Mistake, cluster_problems, did_you_mean, repository_problems, snapshot_problems
from polarvault.config.model import (
    ClusterConfiguration,
    Configuration,
    Hooks,
    KeySource,
    Limits,
    RepositoryConfiguration,
    Retention,
    ShownSetting,
    SnapshotConfiguration,
    SourceKind,
)
from polarvault.config.places import SYSTEM_FILE, candidate_files
from polarvault.config.schema import (
    CLUSTER,
    DEFAULTS,
    HOOKS,
    LIMITS,
    PASSPHRASE_VARIABLE,
    REPOSITORY,
    RETENTION,
    RETENTION_FIELD,
    SNAPSHOT_COMMANDS,
    SNAPSHOTS,
    Setting,
)
from polarvault.config.values import is_name
from polarvault.errors import ConfigurationError, PolarvaultError
from polarvault.model import limits
from polarvault.model.dataclass import dataclass, field, replace
from polarvault.model.secrets import HIDDEN, hide_secrets
from polarvault.storage.files import open_regular
from polarvault.storage.objects.address import Scheme, parse_address
from polarvault.storage.objects.settings import StoreSettings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from polarvault.config.positions import Place

_SECTIONS = ("repository", "defaults", "cluster", "snapshots")
_SHOWN_CHARACTERS = 80
_KEY_FIELDS = {"passphrase_file", "passphrase_command", "key_file"}
# Whose variables they are.
_PREFIXES = {Scheme.S3: ("AWS_",), Scheme.GOOGLE: ("GOOGLE_", "STORAGE_"), Scheme.AZURE: ("AZURE_",), Scheme.FILE: ()}


def load_configuration(
    named: str | None,
    environment: Mapping[str, str],
    *,
    system_file: str = SYSTEM_FILE,
    check_connection: Callable[[str], object] | None = None,
    with_origins: bool = True,
) -> Configuration:
    """Load the file that is named; else the user's own, else the system's; else return an empty configuration.

    check_connection raises for a connection string that libpq does not take. with_origins: False leaves out `settings`
    and `warnings`, which `wal push` and `wal fetch` show to nobody and would wait for. Raises ConfigurationError.
    """
    candidates = candidate_files(named, environment, system_file=system_file)
    found = [path for path in candidates if named is not None or os.path.lexists(path)]
    if not found:
        return Configuration(None, looked_at=tuple(candidates))
    path = os.path.abspath(found[0])
    content, mode = _read(path)
    reading = _Reading(path, environment, check_connection, with_origins, *_parsed(path, content))
    configuration = reading.finish(passed_over=found[1] if len(found) > 1 else None)
    secret = [one for one in configuration.settings if one.kind is SourceKind.FILE and one.value == HIDDEN]
    if secret and mode & (stat.S_IRGRP | stat.S_IROTH):
        warning = f'"{path}" holds a secret ({secret[0].field}) and others may read it: chmod 600 {path}'
        return _with_warning(configuration, warning)
    return configuration


def _read(path: str) -> tuple[bytes, int]:
    try:
        with open_regular(path) as opened:
            mode = os.fstat(opened.fileno()).st_mode
            content = opened.read(limits.CONFIGURATION_FILE_BYTES + 1)
    except OSError as problem:
        hint = {errno.EACCES: f"ls -l {path}", errno.ENOENT: "see the spelling; every command works without a file"}
        raise ConfigurationError(
            f'could not read "{path}": {problem.strerror}', hint=hint.get(problem.errno or 0)
        ) from problem
    if len(content) > limits.CONFIGURATION_FILE_BYTES:
        raise ConfigurationError(f'"{path}" is longer than {limits.CONFIGURATION_FILE_BYTES} bytes')
    return content, mode


def _parsed(path: str, content: bytes) -> tuple[dict[str, Any], str]:
    try:
        text = content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as problem:
        line = content.count(b"\n", 0, problem.start) + 1
        raise ConfigurationError(f'"{path}", line {line}: this is not UTF-8') from None
    # Only where there is a file.
    import tomllib

    text = text.replace("\r\n", "\n")
    try:
        return tomllib.loads(text), text
    except tomllib.TOMLDecodeError as problem:
        reason = str(problem).replace("at end of document", f"at the end, line {text.count(chr(10)) + 1}")
        raise ConfigurationError(
            f'"{path}" is no TOML: {hide_secrets(reason)}', hint="texts stand in quotes; see https://toml.io"
        ) from None
    except RecursionError:
        raise ConfigurationError(f'"{path}" is no configuration: it is nested too deeply') from None


def _with_warning(configuration: Configuration, warning: str) -> Configuration:
    return replace(configuration, warnings=(*configuration.warnings, warning))


@dataclass(slots=True)
class _Reading:
    """One file while it is checked: what is found, and what is wrong."""

    path: str
    environment: Mapping[str, str]
    check_connection: Callable[[str], object] | None
    with_origins: bool
    document: dict[str, Any]
    text: str
    lines: dict[Place, int] | None = None
    mistakes: list[Mistake] = field(default_factory=list)
    shown: list[ShownSetting] = field(default_factory=list)
    defaults: dict[str, Any] = field(default_factory=dict)

    def finish(self, *, passed_over: str | None) -> Configuration:
        """Check everything; return the configuration or raise all mistakes."""
        for name in self.document:
            if name not in _SECTIONS:
                self._mistake((name,), f"there is no such table{did_you_mean(name, _SECTIONS)}")
        repositories = {
            name: one for name, table in self._tables("repository") if (one := self._repository(name, table))
        }
        known = self.document.get("repository")
        names = list(known) if isinstance(known, dict) else []
        self.defaults = self._defaults()
        clusters = {name: self._cluster(name, table, names) for name, table in self._tables("cluster")}
        snapshots = {
            name: found for name, table in self._tables("snapshots") if (found := self._snapshots(name, table))
        }
        if self.mistakes:
            raise self._error()
        return Configuration(
            self.path, repositories, clusters, snapshots, tuple(self.shown), limits=_limits(self.defaults),
            hooks=_hooks(self.defaults), passed_over=passed_over,
        )  # fmt: skip

    def _error(self) -> ConfigurationError:
        mistakes = sorted(self.mistakes, key=lambda one: one.line)
        count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        return ConfigurationError(
            "\n  ".join([f'{count} in "{self.path}":', *map(str, mistakes)]),
            hint="nothing was done; docs/configuration.md lists every setting",
        )

    def _defaults(self) -> dict[str, Any]:
        """Return what holds for every cluster that does not say it itself."""
        table = self.document.get("defaults")
        if table is None:
            return {}
        if not isinstance(table, dict):
            self._mistake(("defaults",), "must be a table: [defaults]")
            return {}
        given = self._values(("defaults",), table, DEFAULTS)
        self._show(("defaults",), DEFAULTS, given)
        return given

    def _tables(self, section: str) -> Iterator[tuple[str, dict[str, Any]]]:
        tables = self.document.get(section, {})
        if not isinstance(tables, dict):
            self._mistake((section,), f"must be tables with names: [{section}.NAME]")
            return
        for name, table in tables.items():
            if not isinstance(table, dict):
                self._mistake((section, name), f"must be a table: [{section}.NAME]")
            elif not is_name(name):
                self._mistake((section, name), "a name has small letters, digits, _ and -, at most 63")
            else:
                yield name, table

    def _repository(self, name: str, table: dict[str, Any]) -> RepositoryConfiguration | None:
        place: Place = ("repository", name)
        given = self._values(place, table, REPOSITORY)
        if "address" not in given:
            if "address" not in table:
                self._mistake(place, "has no address")
            return None
        scheme = parse_address(given["address"]).scheme
        self._show(place, [one for one in REPOSITORY if scheme in one.schemes], given)
        if self.environment.get(PASSPHRASE_VARIABLE) and not given.keys() & _KEY_FIELDS:
            self.shown.append(
                ShownSetting(
                    "repository", name, "passphrase", HIDDEN, SourceKind.ENVIRONMENT, variable=PASSPHRASE_VARIABLE
                )
            )
        store = {name: given[name] for name in StoreSettings.__slots__ if name in given and name not in ("deadline_s",)}
        if "deadline" in given:
            store["deadline_s"] = float(given["deadline"])
        repository = RepositoryConfiguration(
            name,
            given["address"],
            given.get("id"),
            given.get("encrypted"),
            KeySource(given.get("passphrase_file"), given.get("passphrase_command"), given.get("key_file")),
            StoreSettings(**store),
            given.get("lock"),
        )
        for wrong, why in repository_problems(repository, given):
            self._mistake((*place, wrong), why, table[wrong])
        return repository

    def _cluster(self, name: str, table: dict[str, Any], repositories: Sequence[str]) -> ClusterConfiguration:
        place: Place = ("cluster", name)
        given = self._values(place, table, CLUSTER, tables=(RETENTION_FIELD,))
        self._show(place, CLUSTER, given)
        kept: dict[str, Any] = {}
        if RETENTION_FIELD in table:
            if isinstance(table[RETENTION_FIELD], dict):
                kept = self._values((*place, RETENTION_FIELD), table[RETENTION_FIELD], RETENTION)
                self._show((*place, RETENTION_FIELD), RETENTION, kept)
            else:
                self._mistake((*place, RETENTION_FIELD), 'must be a table, as { window = "14d", keep = 2 }')
        cluster = ClusterConfiguration(
            name,
            given.get("connection"),
            given.get("service"),
            given.get("repositories", ()),
            Retention(kept.pop("window", None), **kept),
            given.get("compression"),
            given.get("max_rate"),
            _limits(self.defaults | given),
            _hooks(self.defaults | given),
            given.get("slot"),
            given.get("spool"),
            given.get("spool_max"),
        )
        for wrong, why in cluster_problems(cluster, repositories):
            self._mistake((*place, wrong), why, table[wrong])
        if cluster.connection is not None and self.check_connection is not None:
            try:
                self.check_connection(cluster.connection)
            except PolarvaultError as problem:
                self._mistake((*place, "connection"), problem.message, cluster.connection)
        return cluster

    def _snapshots(self, name: str, table: dict[str, Any]) -> SnapshotConfiguration | None:
        place: Place = ("snapshots", name)
        given = self._values(place, table, SNAPSHOTS)
        self._show(place, SNAPSHOTS, given)
        needed = ("paths", *SNAPSHOT_COMMANDS)
        for missing in [one for one in needed if one not in table]:
            self._mistake(place, f"has no {missing}")
        if not all(one in given for one in needed):
            return None
        commands = {one: given[one] for one in needed}
        found = SnapshotConfiguration(
            name, **commands, is_atomic=given.get("atomic", False), timeout_s=given.get("timeout", 600)
        )
        for wrong, why in snapshot_problems(found):
            self._mistake((*place, wrong), why, table[wrong])
        return found

    def _values(
        self, place: Place, table: dict[str, Any], settings: Sequence[Setting], *, tables: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Return the values of a table that are right; note what is wrong with the others."""
        known = {setting.field: setting for setting in settings}
        found = {}
        for name, value in table.items():
            if name in tables:
                continue
            if name not in known:
                why = f"there is no such setting{did_you_mean(name, [*known, *tables])}"
                self._mistake((*place, name), why, value)
                continue
            try:
                found[name] = known[name].parse(value)
            except ValueError as problem:
                self._mistake((*place, name), str(problem), value, is_secret=known[name].is_secret)
        return found

    def _show(self, place: Place, settings: Sequence[Setting], given: Mapping[str, Any]) -> None:
        """Note every setting of a table with where its value comes from."""
        if not self.with_origins:
            return
        section, name, *below = (*map(str, place), "") if len(place) == 1 else map(str, place)
        for setting in settings:
            shown = ".".join([*below, setting.field])
            inherited = section == "cluster" and not below and setting.field in self.defaults
            if setting.field in given or inherited:
                where = place if setting.field in given else ("defaults",)
                raw: Any = self.document
                for step in (*where, setting.field):
                    raw = raw[step]
                line = self._lines().get((*where, setting.field), 0)
                value = HIDDEN if setting.is_secret else _without_secrets(raw)
                self.shown.append(ShownSetting(section, name, shown, value, SourceKind.FILE, line=line))
                continue
            variable = next((one for one in _for(setting, place, self.document) if self.environment.get(one)), None)
            if variable is not None:
                value = HIDDEN if setting.is_secret else hide_secrets(self.environment[variable])
                self.shown.append(ShownSetting(section, name, shown, value, SourceKind.ENVIRONMENT, variable=variable))
            else:
                self.shown.append(ShownSetting(section, name, shown, setting.default or None, SourceKind.DEFAULT))

    def _mistake(self, place: Place, why: str, value: object = "", *, is_secret: bool = False) -> None:
        is_secret = is_secret or any(one.field == place[-1] and one.is_secret for one in REPOSITORY)
        shown = HIDDEN if is_secret else _brief(value)
        self.mistakes.append(Mistake(self._line(place), ".".join(map(str, place)), shown, why))

    def _line(self, place: Place) -> int:
        lines = self._lines()
        while place and place not in lines:
            place = place[:-1]
        return lines.get(place, 1)

    def _lines(self) -> dict[Place, int]:
        if self.lines is None:
            from polarvault.config.positions import key_lines

            self.lines = key_lines(self.text)
        return self.lines


def _for(setting: Setting, place: Place, document: dict[str, Any]) -> list[str]:
    """Return the variables that say a setting for the store of this table."""
    if not setting.variables:
        return []
    scheme = parse_address(document["repository"][place[1]]["address"]).scheme
    return [name for name in setting.variables if name.startswith(_PREFIXES[scheme])]


def _limits(given: Mapping[str, Any]) -> Limits:
    return Limits(**{f"{one.field}_s": given[one.field] for one in LIMITS if one.field in given})


def _hooks(given: Mapping[str, Any]) -> Hooks:
    names = {one.field: "timeout_s" if one.field == "hook_timeout" else one.field for one in HOOKS}
    return Hooks(**{name: given[setting] for setting, name in names.items() if setting in given})


def _without_secrets(value: object) -> object:
    return hide_secrets(value) if isinstance(value, str) else value


def _brief(value: object) -> str:
    """Return a value as a message shows it, in TOML's spelling where that is short."""
    if value == "" or isinstance(value, dict):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    shown = f'"{hide_secrets(value)}"' if isinstance(value, str) else hide_secrets(str(value))
    shown = shown if shown.isprintable() else repr(shown)
    return shown if len(shown) <= _SHOWN_CHARACTERS else shown[:_SHOWN_CHARACTERS] + "..."
