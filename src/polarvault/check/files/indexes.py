"""Indexes that come back from a backup as broken as they are: invalid ones, and those sorted by other rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from polarvault.check.session import CheckSession
from polarvault.model import versions
from polarvault.model.finding import Finding, ok, warning

_MOST_NAMES = 5
# An index of a partitioned table is no storage, and one that is being made is invalid until it is done.
_INVALID = (
    "SELECT i.indexrelid::pg_catalog.regclass::text AS name FROM pg_catalog.pg_index AS i"
    " JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid WHERE NOT i.indisvalid AND c.relkind = 'i'"
    " AND NOT EXISTS (SELECT FROM pg_catalog.pg_stat_progress_create_index AS p WHERE p.index_relid = i.indexrelid)"
    " ORDER BY 1"
)
# Those of initdb are there by the hundred; only what something depends on can have sorted anything.
_COLLATIONS = (
    "SELECT c.oid::pg_catalog.regcollation::text AS name, c.collversion AS known,"
    " pg_catalog.pg_collation_actual_version(c.oid) AS actual FROM pg_catalog.pg_collation AS c"
    " WHERE c.collversion <> pg_catalog.pg_collation_actual_version(c.oid) AND EXISTS (SELECT FROM"
    " pg_catalog.pg_depend AS d WHERE d.refclassid = 'pg_catalog.pg_collation'::regclass AND d.refobjid = c.oid)"
    " ORDER BY 1"
)
# PostgreSQL 15 and later know it of a database.
_OF_DATABASE = (
    "SELECT d.datcollversion AS known, pg_catalog.pg_database_collation_actual_version(d.oid) AS actual"
    " FROM pg_catalog.pg_database AS d WHERE d.datname = pg_catalog.current_database()"
    " AND d.datcollversion <> pg_catalog.pg_database_collation_actual_version(d.oid)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexFacts:
    """What is wrong in one database; collations with the version that is known of them and the actual one.

    database_versions: the same of the database's own collation, None when they agree.
    """

    database: str
    invalid: Sequence[str]
    collations: Sequence[tuple[str, str, str]]
    database_versions: tuple[str, str] | None


def read_indexes(inner: CheckSession, database: str) -> IndexFacts:
    """Ask one database."""
    own = inner.row(_OF_DATABASE) if versions.of_server(inner.version_num).versions_database_collations else None
    return IndexFacts(
        database=database,
        invalid=[row["name"] or "" for row in inner.rows(_INVALID) or []],
        collations=[
            (row["name"] or "", row["known"] or "", row["actual"] or "") for row in inner.rows(_COLLATIONS) or []
        ],
        database_versions=(own["known"] or "", own["actual"] or "") if own else None,
    )


def judge_indexes(databases: Sequence[IndexFacts]) -> list[Finding]:
    """Return the findings about indexes and collations."""
    return [*_invalid(databases), *_collations(databases)]


def _invalid(databases: Sequence[IndexFacts]) -> list[Finding]:
    names = [f"{facts.database}: {name}" for facts in databases for name in facts.invalid]
    if not names:
        return [ok("invalid-indexes", "indexes", "no invalid indexes")]
    first = next(facts for facts in databases if facts.invalid)
    return [
        warning(
            "invalid-indexes",
            first.invalid[0],
            f"{len(names)} invalid {'index' if len(names) == 1 else 'indexes'}: {_some(names)}",
            meaning="what CREATE INDEX CONCURRENTLY left behind when it failed: it is in every backup, uses space, and "
            "serves no query, neither here nor in a restored copy",
            advice=f'in database "{first.database}": REINDEX INDEX CONCURRENTLY {first.invalid[0]};',
        )
    ]


def _collations(databases: Sequence[IndexFacts]) -> list[Finding]:
    words, advice = [], []
    for facts in databases:
        if facts.database_versions is not None:
            known, actual = facts.database_versions
            words.append(f'database "{facts.database}" ({known}, now {actual})')
            name = '"' + facts.database.replace('"', '""') + '"'
            advice.append(f"REINDEX DATABASE {name}; ALTER DATABASE {name} REFRESH COLLATION VERSION;")
        for name, known, actual in facts.collations:
            words.append(f"collation {name} of {facts.database} ({known}, now {actual})")
            advice.append(f"ALTER COLLATION {name} REFRESH VERSION;")
    if not words:
        return [ok("collation-versions", "collations", "collation versions are those that indexes were made with")]
    return [
        warning(
            "collation-versions",
            words[0],
            f"made with another version of the sorting rules: {_some(words)}",
            meaning="indexes on text may be in the wrong order and miss rows; a backup copies them as they are, and a "
            "copy that is restored on another system can have the same trouble",
            advice="rebuild the indexes that use it, then say that it is done: " + " ".join(advice[:_MOST_NAMES]),
        )
    ]


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMES])
    return shown if len(names) <= _MOST_NAMES else f"{shown}, and {len(names) - _MOST_NAMES} more"
