"""What a backup does not bring back, and what a restored copy would do by itself or need from its host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from polarvault.check.files.indexes import IndexFacts, judge_indexes, read_indexes
from polarvault.check.session import CheckSession
from polarvault.errors import ConnectionFailed, ConnectionLost
from polarvault.model.finding import Finding, ok, warning
from polarvault.model.units import format_bytes
from polarvault.wire.commands import quote_identifier

# Each costs a connection: enough for every ordinary server, and an end for one with thousands.
_MOST_DATABASES = 50
_MOST_NAMES = 5
# What DROP DATABASE writes before it removes files (server: DATCONNLIMIT_INVALID_DB in pg_database.h).
_HALF_DROPPED = -2
_IN_EVERY_DATABASE = frozenset({"plpgsql"})


@dataclass(frozen=True, slots=True, kw_only=True)
class UnloggedTable:
    """An unlogged table or materialized view; size_bytes None is unknown."""

    database: str
    name: str
    size_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentFacts:
    """What was found in all databases that could be looked into."""

    databases: int
    unlogged: Sequence[UnloggedTable]
    indexes: Sequence[IndexFacts]
    foreign_tables: int
    extensions: Sequence[str]
    libraries: Sequence[str]
    logical_slots: Sequence[str]
    subscriptions: Sequence[str]
    prepared_transactions: int
    oldest_prepared: str | None
    half_dropped: Sequence[str] = ()


def check_contents(session: CheckSession) -> list[Finding]:
    """Return the findings about contents."""
    return judge_contents(read_contents(session)) if session.sql is not None else []


def read_contents(session: CheckSession) -> ContentFacts:
    """Look into every database that accepts connections, and at what belongs to the whole cluster."""
    names = _databases(session)
    unlogged: list[UnloggedTable] = []
    indexes: list[IndexFacts] = []
    extensions: dict[str, None] = {}
    foreign = 0
    refused: dict[str, str] = {}
    for name in names:
        try:
            with session.in_database(name) as inner:
                unlogged += _unlogged(inner, name)
                indexes.append(read_indexes(inner, name))
                for row in inner.rows("SELECT extname FROM pg_catalog.pg_extension ORDER BY 1") or []:
                    extensions.setdefault(row["extname"] or "")
                foreign += int(inner.value("SELECT count(*) FROM pg_catalog.pg_foreign_table") or 0)
        except (ConnectionFailed, ConnectionLost) as problem:
            refused[name] = " ".join(problem.message.split())
    if refused:
        session.miss(
            f"contents of {_counted(len(refused), 'database')} ({_some(list(refused))})", next(iter(refused.values()))
        )
    prepared = session.row("SELECT count(*) AS count, min(prepared) AS oldest FROM pg_catalog.pg_prepared_xacts") or {}
    libraries = (session.setting("shared_preload_libraries") or "").split(",")
    return ContentFacts(
        databases=len(names) - len(refused),
        unlogged=unlogged,
        indexes=indexes,
        foreign_tables=foreign,
        extensions=[name for name in extensions if name not in _IN_EVERY_DATABASE],
        libraries=[name.strip(' "') for name in libraries if name.strip()],
        logical_slots=_first_column(
            session,
            "SELECT slot_name FROM pg_catalog.pg_replication_slots WHERE slot_type = 'logical' AND NOT temporary"
            " ORDER BY 1",
        ),
        subscriptions=_first_column(
            session, "SELECT subname FROM pg_catalog.pg_subscription WHERE subenabled ORDER BY 1"
        ),
        prepared_transactions=int(prepared.get("count") or 0),
        oldest_prepared=prepared.get("oldest"),
        half_dropped=_first_column(
            session, f"SELECT datname FROM pg_catalog.pg_database WHERE datconnlimit = {_HALF_DROPPED} ORDER BY 1"
        ),
    )


def _databases(session: CheckSession) -> list[str]:
    names = _first_column(
        session,
        "SELECT datname FROM pg_catalog.pg_database WHERE datallowconn AND NOT datistemplate"
        f" AND datconnlimit <> {_HALF_DROPPED}"
        " AND pg_catalog.has_database_privilege(oid, 'CONNECT') ORDER BY datname",
    )
    if len(names) > _MOST_DATABASES:
        session.miss(
            f"contents of {_counted(len(names) - _MOST_DATABASES, 'database')}",
            f"only the first {_MOST_DATABASES} are looked into",
        )
    return names[:_MOST_DATABASES]


def _unlogged(inner: CheckSession, database: str) -> list[UnloggedTable]:
    tables = (
        "FROM pg_catalog.pg_class AS c WHERE c.relpersistence = 'u' AND c.relkind IN ('r', 'm')"
        " ORDER BY c.relpages DESC"
    )
    name = "SELECT c.oid::pg_catalog.regclass::text AS name"
    # The size waits for a lock on the table; without it the name alone has to do.
    rows = inner.rows(f"{name}, pg_catalog.pg_total_relation_size(c.oid) AS size {tables}")
    if rows is None:
        rows = inner.rows(f"{name} {tables}", what=f'unlogged tables of database "{database}"') or []
    return [
        UnloggedTable(
            database=database, name=row["name"] or "", size_bytes=int(size) if (size := row.get("size")) else None
        )
        for row in rows
    ]


def _first_column(session: CheckSession, sql: str) -> list[str]:
    return [next(iter(row.values())) or "" for row in session.rows(sql) or []]


def judge_contents(facts: ContentFacts) -> list[Finding]:
    """Return the findings about contents."""
    return [
        *_judge_half_dropped(facts),
        *_judge_unlogged(facts),
        *_judge_logical_slots(facts),
        *_judge_subscriptions(facts),
        *_judge_prepared(facts),
        *judge_indexes(facts.indexes),
        *_judge_needs(facts),
    ]


def _judge_half_dropped(facts: ContentFacts) -> list[Finding]:
    if not facts.half_dropped:
        return []
    drops = [f"DROP DATABASE {quote_identifier(name)};" for name in facts.half_dropped[:_MOST_NAMES]]
    return [
        warning(
            "interrupted-drop",
            facts.half_dropped[0],
            f"{_counted(len(facts.half_dropped), 'database')} of which an interrupted DROP DATABASE left only a part: "
            f"{_some(facts.half_dropped)}",
            meaning="nobody can connect to it, here or in a restored copy, and some of its files are gone; it takes "
            "space in each backup",
            advice="\n".join(["it can only be dropped; as its owner or a superuser:", *drops]),
        )
    ]


def _judge_unlogged(facts: ContentFacts) -> list[Finding]:
    if not facts.unlogged:
        return [
            ok("unlogged-tables", "unlogged tables", f"no unlogged tables in {_counted(facts.databases, 'database')}")
        ]
    largest = sorted(facts.unlogged, key=lambda table: table.size_bytes or 0, reverse=True)
    total = sum(table.size_bytes or 0 for table in largest)
    words = [
        f"{table.database}: {table.name}"
        + (f" ({format_bytes(table.size_bytes)})" if table.size_bytes is not None else "")
        for table in largest
    ]
    return [
        warning(
            "unlogged-tables",
            largest[0].name,
            f"{_counted(len(largest), 'unlogged table')}, {format_bytes(total)}: {_some(words)}",
            meaning="a backup holds their definitions only: they come back empty",
            advice=f'what must survive: in database "{largest[0].database}": ALTER TABLE {largest[0].name} SET LOGGED;',
        )
    ]


def _judge_logical_slots(facts: ContentFacts) -> list[Finding]:
    if not facts.logical_slots:
        return []
    return [
        warning(
            "logical-slots",
            facts.logical_slots[0],
            f"{_counted(len(facts.logical_slots), 'logical replication slot')}: {_some(facts.logical_slots)}",
            meaning="slots are not in a backup: after a restore the subscribers and change feeds behind them have to "
            "be synchronised anew",
            advice="write down who reads from them: SELECT slot_name, plugin, database FROM pg_replication_slots;",
        )
    ]


def _judge_subscriptions(facts: ContentFacts) -> list[Finding]:
    if not facts.subscriptions:
        return []
    return [
        warning(
            "subscriptions",
            facts.subscriptions[0],
            f"{_counted(len(facts.subscriptions), 'enabled subscription')}: {_some(facts.subscriptions)}",
            meaning="a restored copy subscribes too, with the same slots, and takes changes away from this server",
            advice="restore copies with: polarvault restore ... --set max_logical_replication_workers=0",
        )
    ]


def _judge_prepared(facts: ContentFacts) -> list[Finding]:
    if not facts.prepared_transactions:
        return []
    since = f", the oldest since {facts.oldest_prepared[:19]} UTC" if facts.oldest_prepared else ""
    return [
        warning(
            "prepared-transactions",
            "pg_prepared_xacts",
            f"{_counted(facts.prepared_transactions, 'prepared transaction')}{since}",
            meaning="they come back with a restored copy, with all their locks, until somebody ends them there",
            advice="end those that nobody will: SELECT gid, owner, database FROM pg_prepared_xacts; then ROLLBACK "
            "PREPARED 'GID';",
        )
    ]


def _judge_needs(facts: ContentFacts) -> list[Finding]:
    findings = []
    if facts.extensions or facts.libraries:
        parts = []
        if facts.libraries:
            parts.append(f"shared_preload_libraries: {', '.join(facts.libraries)}")
        if facts.extensions:
            parts.append(f"extensions: {', '.join(facts.extensions)}")
        findings.append(
            ok("extensions", "extensions", f"the host of a restored copy needs these too: {'; '.join(parts)}")
        )
    if facts.foreign_tables:
        findings.append(
            ok(
                "foreign-tables",
                "foreign tables",
                f"{_counted(facts.foreign_tables, 'foreign table')}, whose rows lie elsewhere",
            )
        )
    return findings


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMES])
    return shown if len(names) <= _MOST_NAMES else f"{shown}, and {len(names) - _MOST_NAMES} more"
