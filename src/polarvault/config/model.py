"""What a configuration says, once it has been checked; and where each value comes from."""

from __future__ import annotations

from enum import Enum

from polarvault.model.dataclass import dataclass, field
from polarvault.storage.objects.settings import StoreSettings


@dataclass(frozen=True, slots=True)
class KeySource:
    """Where the key of an encrypted repository comes from; at most one of them is there.

    passphrase_command is run by the shell; what it prints is the passphrase.
    """

    passphrase_file: str | None = None
    passphrase_command: str | None = None
    key_file: str | None = None


@dataclass(frozen=True, slots=True)
class RepositoryConfiguration:
    """A repository by its name. id: the one it must have; encrypted: what it must be, None where nothing is said.

    lock_s: for how long the objects of a new backup are to be locked, None for as long as the store says itself.
    """

    name: str
    address: str
    id: str | None = None
    encrypted: bool | None = None
    key: KeySource = KeySource()
    store: StoreSettings = field(default_factory=StoreSettings)
    lock_s: int | None = None


@dataclass(frozen=True, slots=True)
class Retention:
    """Which backups are kept: all of a window, the last ones, one for each of so many days, weeks, months, years."""

    window_s: int | None = None
    keep: int | None = None
    daily: int | None = None
    weekly: int | None = None
    monthly: int | None = None
    yearly: int | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """When `status` warns, in seconds; 0: never."""

    max_backup_age_s: int = 26 * 3600
    max_wal_lag_s: int = 3600
    max_verify_age_s: int = 8 * 86_400
    max_drill_age_s: int = 0


@dataclass(frozen=True, slots=True)
class Hooks:
    """Programs with their arguments that are told what happened; () for none. on_warning (): that of on_success."""

    on_success: tuple[str, ...] = ()
    on_warning: tuple[str, ...] = ()
    on_failure: tuple[str, ...] = ()
    timeout_s: int = 60


@dataclass(frozen=True, slots=True)
class ClusterConfiguration:
    """A cluster by its name. compression: zstd's level, 0 for none; max_rate: bytes a second from the server.

    spool_max: bytes.
    """

    name: str
    connection: str | None = None
    service: str | None = None
    repositories: tuple[str, ...] = ()
    retention: Retention = Retention()
    compression: int | None = None
    max_rate: int | None = None
    limits: Limits = Limits()
    hooks: Hooks = Hooks()
    slot: str | None = None
    spool: str | None = None
    spool_max: int | None = None


@dataclass(frozen=True, slots=True)
class SnapshotConfiguration:
    """Commands that make snapshots of what lies below some paths, by their name; each is a list of words."""

    name: str
    paths: tuple[str, ...]
    create: tuple[str, ...]
    clone: tuple[str, ...]
    list: tuple[str, ...]
    destroy: tuple[str, ...]
    is_atomic: bool = False
    timeout_s: int = 600


class SourceKind(Enum):
    """Where a value comes from."""

    FILE = "file"
    ENVIRONMENT = "environment"
    DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class ShownSetting:
    """A setting with its value as it may be shown, secrets hidden; value None: nothing is said, and that is a default.

    name: "" for what holds for every cluster. line: of the file; variable: of the environment.
    """

    section: str
    name: str
    field: str
    value: object
    kind: SourceKind
    line: int | None = None
    variable: str | None = None


@dataclass(frozen=True, slots=True)
class Configuration:
    """A whole configuration; path None: there is no file. passed_over: another file, which is not read."""

    path: str | None
    repositories: dict[str, RepositoryConfiguration] = field(default_factory=dict)
    clusters: dict[str, ClusterConfiguration] = field(default_factory=dict)
    snapshots: dict[str, SnapshotConfiguration] = field(default_factory=dict)
    settings: tuple[ShownSetting, ...] = ()
    warnings: tuple[str, ...] = ()
    limits: Limits = Limits()
    hooks: Hooks = Hooks()
    """Of clusters that the file does not name, as the limits."""
    passed_over: str | None = None
    looked_at: tuple[str, ...] = ()

    def limits_of(self, cluster: str) -> Limits:
        """Return the limits of a cluster, whether the file names it or not."""
        named = self.clusters.get(cluster)
        return self.limits if named is None else named.limits

    def hooks_of(self, cluster: str | None) -> Hooks:
        """Return the hooks of a cluster; None: of what concerns no cluster."""
        named = self.clusters.get(cluster or "")
        return self.hooks if named is None else named.hooks
