"""What depends on a server's version, in one table: one record for each major version.

A record is made from the one before it, so that it names what changed. The next major version is one more record; how
its values are found is told in docs/internals/contributing.md. PolarDB 15 is PostgreSQL 15 in all that stands here.

Of a server or a backup that is newer than the table two things can be said. What it is asked, it is asked as the newest
version that is known (`of_server`): commands, options and functions stay when others come. What it writes beyond tar
files, manifests and the protocol is not guessed at: pages of WAL, pg_control and the catalog have numbers of their own,
and for one that is not here the answer is None (`of_magic`, `control_layout`, `of_catalog`).

Sources: access/xlog_internal.h (page magic), access/xlogrecord.h, access/xact.h, access/rmgrlist.h,
catalog/pg_control.h and catalog/catversion.h of each release; the manual's release notes; for 19 measured on 19rc1.
"""

from __future__ import annotations

from collections.abc import Mapping

from polarvault.model.dataclass import dataclass, field, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlLayout:
    """Where fields of pg_control lie: offsets in bytes. All that comes before the first of them lies alike in all.

    hot_standby_settings: five i32 in a row. relation_segment_blocks: with the block size before it.
    data_checksums: what the server goes by; 19 keeps what initdb chose in front of it, which pg_control_init() shows.
    crc: behind all else.
    """

    version: int
    checkpoint_time: int = 104
    minimum_recovery_lsn: int = 136
    hot_standby_settings: int = 180
    block_sizes: int = 216
    wal_sizes: int = 224
    data_checksums: int = 252
    crc: int = 288


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordLayout:
    """How WAL records are laid out, where versions differ.

    last_resource_manager: the last of PostgreSQL's own; extensions take 128 and more. image_is_compressed: the bits of
    a page image's flags, any of which says so, and image_methods what each of them means. image_applies: the bit of an
    image that replay puts in place. dropped_statistics_bytes: the size of one of these entries in a commit.
    database_create: the info bits of the record that makes a database with every page in the WAL; database_drop: of the
    one that drops it; copying its files is 0 in all. changes_are_known: that what records change is what block maps say
    was tried on a server.
    """

    last_resource_manager: int = 21
    image_is_compressed: int = 0x02
    image_methods: tuple[tuple[int, str], ...] = ((0x02, "pglz"),)
    image_applies: int = 0x04
    dropped_statistics_bytes: int = 12
    database_create: int | None = None
    database_drop: int = 0x10
    changes_are_known: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseColumns:
    """Where columns of pg_database lie in a row, in bytes; those in front of them lie alike in all versions."""

    datconnlimit: int = 208
    dattablespace: int = 224


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerVersion:
    """One major version. What a version can do the later ones can do, too.

    connection_keywords: what its libpq knows, beyond what that of the oldest version does. session_settings: what a
    session of ours sets beyond what the oldest version knows. configuration_files: settings that name a file beside
    postgresql.conf. backup_functions: those of a low-level backup.
    """

    major: int
    # Files
    catalog_version: int
    control: ControlLayout
    manifest_version: int = 1
    database_columns: DatabaseColumns = DatabaseColumns()
    configuration_files: tuple[str, ...] = ("hba_file", "ident_file")
    # WAL
    page_magic: int
    records: RecordLayout
    # The replication protocol
    reports_hot_standby: bool = False
    # BASE_BACKUP and slots take options in parentheses, a backup is one COPY, and can be compressed by the server or
    # go to a target there; READ_REPLICATION_SLOT exists.
    takes_option_lists: bool = False
    makes_incremental_backups: bool = False
    connection_keywords: frozenset[str] = field(default=frozenset())
    synchronises_slots: bool = False
    # SQL
    session_settings: Mapping[str, str] = field(default_factory=dict)
    backup_functions: tuple[str, ...] = (
        "pg_start_backup(text, boolean, boolean)",
        "pg_stop_backup(boolean, boolean)",
    )
    has_exclusive_backups: bool = True
    has_pause_state: bool = False
    has_archive_library: bool = False
    versions_database_collations: bool = False
    has_system_user: bool = False
    # The event_triggers setting keeps login triggers, and all others, from firing.
    can_disable_event_triggers: bool = False
    # io_method, which can be io_uring, and extension_control_path
    has_io_method: bool = False
    has_extension_path: bool = False
    # verify_heapam and pg_amcheck
    checks_heaps: bool = False
    # effective_wal_level: wal_level rises by itself while there are logical slots.
    raises_wal_level: bool = False

    @property
    def number(self) -> int:
        """The first server_version_num of this version."""
        return self.major * 10000


_13 = ServerVersion(
    major=13,
    catalog_version=202007201,
    control=ControlLayout(version=1300),
    page_magic=0xD106,
    records=RecordLayout(),
)
_14 = replace(
    _13,
    major=14,
    catalog_version=202107181,
    page_magic=0xD10D,
    reports_hot_standby=True,
    connection_keywords=_13.connection_keywords | {"sslcrldir", "sslsni"},
    session_settings={**_13.session_settings, "idle_session_timeout": "0"},
    has_pause_state=True,
    checks_heaps=True,
)
_15 = replace(
    _14,
    major=15,
    catalog_version=202209061,
    page_magic=0xD110,
    # Each compression method has a bit of its own now, and pglz gave up the one that means "apply". CREATE DATABASE got
    # a record for its second strategy, which took the number of DROP DATABASE.
    records=replace(
        _14.records,
        image_is_compressed=0x1C,
        image_methods=((0x04, "pglz"), (0x08, "lz4"), (0x10, "zstd")),
        image_applies=0x02,
        database_create=0x10,
        database_drop=0x20,
    ),
    # The names of the locale, 64 bytes each, went behind them.
    database_columns=DatabaseColumns(datconnlimit=80, dattablespace=92),
    takes_option_lists=True,
    backup_functions=("pg_backup_start(text, boolean)", "pg_backup_stop(boolean)"),
    has_exclusive_backups=False,
    has_archive_library=True,
    versions_database_collations=True,
)
_16 = replace(
    _15,
    major=16,
    catalog_version=202307071,
    page_magic=0xD113,
    connection_keywords=_15.connection_keywords
    | {"require_auth", "sslcertmode", "gssdelegation", "load_balance_hosts"},
    has_system_user=True,
)
_17 = replace(
    _16,
    major=17,
    catalog_version=202406281,
    control=replace(_16.control, version=1700),
    manifest_version=2,
    page_magic=0xD116,
    makes_incremental_backups=True,
    connection_keywords=_16.connection_keywords | {"sslnegotiation"},
    synchronises_slots=True,
    session_settings={**_16.session_settings, "transaction_timeout": "0"},
    can_disable_event_triggers=True,
)
_18 = replace(
    _17,
    major=18,
    catalog_version=202506291,
    # One byte more, default_char_signedness, behind the checksum version.
    control=replace(_17.control, version=1800, crc=292),
    page_magic=0xD118,
    records=replace(_17.records, dropped_statistics_bytes=16),
    has_io_method=True,
    has_extension_path=True,
    connection_keywords=_17.connection_keywords
    | {
        "min_protocol_version",
        "max_protocol_version",
        "sslkeylogfile",
        "scram_client_key",
        "scram_server_key",
        "oauth_issuer",
        "oauth_client_id",
        "oauth_client_secret",
        "oauth_scope",
    },
)
_19 = replace(
    _18,
    major=19,
    # 19rc1's; the betas had others.
    catalog_version=202610061,
    # The copy of the checkpoint is 8 bytes longer (whether logical decoding is on, multixact offsets of 64 bits), and
    # there are two new fields: pages per SLRU segment at 232, the checksum version that initdb chose at 264.
    control=ControlLayout(
        version=1905,
        checkpoint_time=112,
        minimum_recovery_lsn=144,
        hot_standby_settings=188,
        block_sizes=224,
        wal_sizes=236,
        data_checksums=268,
        crc=308,
    ),
    configuration_files=(*_18.configuration_files, "hosts_file"),
    page_magic=0xD122,
    records=replace(_18.records, changes_are_known=False),
    connection_keywords=_18.connection_keywords | {"servicefile", "oauth_ca_file"},
    raises_wal_level=True,
)

VERSIONS: Mapping[int, ServerVersion] = {version.major: version for version in (_13, _14, _15, _16, _17, _18, _19)}
OLDEST, NEWEST = min(VERSIONS.values(), key=lambda it: it.major), max(VERSIONS.values(), key=lambda it: it.major)
# For people.
KNOWN_VERSIONS = f"PostgreSQL {OLDEST.major} to {NEWEST.major}"

_BY_MAGIC = {version.page_magic: version for version in VERSIONS.values()}
_BY_CATALOG = {version.catalog_version: version for version in VERSIONS.values()}
_BY_CONTROL = {version.control.version: version.control for version in VERSIONS.values()}


def of_server(version_num: int) -> ServerVersion:
    """Return what a server is asked by: the newest version that it is not older than, the oldest one for 0."""
    return max((known for known in VERSIONS.values() if known.number <= version_num), key=_major, default=OLDEST)


def is_newer(major: int) -> bool:
    """Tell whether a version is newer than all that are known."""
    return major > NEWEST.major


def is_not_known(what: str) -> str:
    """Say that something is newer than all that is known, and what that means; what: the server, with its version."""
    return (
        f"{what} is newer than what this polarvault knows ({KNOWN_VERSIONS}): how it writes WAL, pages and pg_control "
        "is not known"
    )


def of_magic(magic: int) -> ServerVersion | None:
    """Return the version that writes WAL pages with this magic number."""
    return _BY_MAGIC.get(magic)


def of_catalog(catalog_version: int) -> ServerVersion | None:
    """Return the version that has this catalog version."""
    return _BY_CATALOG.get(catalog_version)


def control_layout(control_version: int) -> ControlLayout | None:
    """Return the layout of pg_control of this version; several major versions share one."""
    return _BY_CONTROL.get(control_version)


def record_layout(magic: int) -> RecordLayout:
    """Return how records lie on pages with this magic number; 0: not known yet, read as the newest."""
    return (_BY_MAGIC.get(magic) or NEWEST).records


def _major(version: ServerVersion) -> int:
    return version.major
