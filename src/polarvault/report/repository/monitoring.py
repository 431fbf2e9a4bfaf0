"""How clusters stand, for monitoring systems: a plugin's line for Nagios, metrics for Prometheus.

Nagios: a line of text, a bar, and perfdata 'label'=value[unit];warning;critical;least (the guidelines for plugins).
Prometheus: its text format 0.0.4, as the textfile collector of node_exporter reads it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from polarvault.model.finding import Severity
from polarvault.model.units import format_duration
from polarvault.report.units import printable
from polarvault.status.model import ClusterStatus, Status

_CRITICAL_FACTOR = 2
_SHOWN = 5


def nagios_line(status: Status) -> str:
    """Return the one line."""
    said = [text for one in status.worst_first for text in _sentences(one)]
    more = f" (and {len(said) - _SHOWN} more)" if len(said) > _SHOWN else ""
    text = "; ".join(said[:_SHOWN]) + more or _all_well(status)
    # What follows a bar is perfdata.
    text = printable(text).replace("|", "/")
    data = " ".join(entry for one in status.clusters for entry in _perfdata(one, status))
    return f"POLARVAULT {status.level.name} - {text}{f' | {data}' if data else ''}"


def _sentences(one: ClusterStatus) -> Iterator[str]:
    if one.error is not None:
        yield f"{one.name}: {one.error.message}"
    for finding in sorted(one.findings, key=lambda each: each.severity is not Severity.PROBLEM):
        yield f"{finding.subject}: {finding.message}"


def _all_well(status: Status) -> str:
    ages = [
        (status.now - one.overview.reach.time).total_seconds()
        for one in status.clusters if one.overview is not None and one.overview.reach is not None
    ]  # fmt: skip
    count = len(status.clusters)
    clusters = f"{count} cluster{'s' * (count != 1)}"
    return f"{clusters}, restorable until {format_duration(max(ages))} ago at least" if ages else clusters


def _perfdata(one: ClusterStatus, status: Status) -> Iterator[str]:
    found = one.overview
    if found is None:
        return
    # A place without a name is an address, which may hold what a label must not.
    name = f"{one.cluster}_{one.repository}" if one.repository else one.cluster

    def entry(what: str, value: float, unit: str, limit_s: int = 0) -> str:
        limits = f"{limit_s};{_CRITICAL_FACTOR * limit_s}" if limit_s else ";"
        return f"'{name}_{what}'={value:.0f}{unit};{limits};0"

    if found.last is not None:
        age_s = (status.now - found.last.facts.finished).total_seconds()
        yield entry("backup_age", age_s, "s", one.limits.max_backup_age_s)
    if found.reach is not None:
        yield entry("wal_lag", (status.now - found.reach.time).total_seconds(), "s", one.limits.max_wal_lag_s)
        yield entry("window", (found.reach.time - found.reach.start).total_seconds(), "s")
    yield entry("backups", found.backups, "")
    yield entry("stored", found.stored_bytes, "B")


class _Metric(NamedTuple):
    name: str
    help: str


_UP = _Metric("polarvault_repository_up", "Whether the repository answered.")
_LEVEL = _Metric("polarvault_status", "How the cluster stands: 0 ok, 1 warning, 2 critical, 3 unknown.")
_METRICS = (
    _UP,
    _LEVEL,
    _Metric("polarvault_backups", "Backups that are not expired."),
    _Metric("polarvault_last_backup_timestamp_seconds", "When the last good backup ended."),
    _Metric("polarvault_last_backup_duration_seconds", "How long the last good backup took."),
    _Metric("polarvault_restorable_from_timestamp_seconds", "Every moment from here on can be restored."),
    _Metric("polarvault_restorable_until_timestamp_seconds", "The last moment that can be restored."),
    _Metric("polarvault_wal_gap", "Whether WAL is missing behind the last good backup, acknowledged or not."),
    _Metric("polarvault_stored_bytes", "What the cluster takes in the repository."),
    _Metric("polarvault_wal_stored_bytes", "What its WAL takes of that."),
    _Metric("polarvault_last_day_stored_bytes", "What backups of the last 24 hours have added."),
    _Metric("polarvault_last_week_stored_bytes", "What backups of the last seven days have added."),
    _Metric("polarvault_last_verify_timestamp_seconds", "When backups were verified last."),
    _Metric("polarvault_last_verify_good", "Whether the last verification found no damage."),
    _Metric("polarvault_last_drill_timestamp_seconds", "When a backup was last restored to prove it."),
    _Metric("polarvault_last_drill_held", "Whether the last drill held."),
    _Metric("polarvault_max_backup_age_seconds", "The configured limit."),
    _Metric("polarvault_max_wal_lag_seconds", "The configured limit."),
)


def prometheus_text(status: Status) -> Iterator[str]:
    """Yield the lines of the file; a metric that is not known of a cluster is left out for it."""
    values = [(one, _values(one)) for one in status.clusters]
    yield "# HELP polarvault_status_timestamp_seconds When this was looked at."
    yield "# TYPE polarvault_status_timestamp_seconds gauge"
    yield f"polarvault_status_timestamp_seconds {_number(status.now.timestamp())}"
    for metric in _METRICS:
        lines = [
            f"{metric.name}{_labels(one)} {_number(own[metric.name])}" for one, own in values if metric.name in own
        ]
        if lines:
            yield f"# HELP {metric.name} {metric.help}"
            yield f"# TYPE {metric.name} gauge"
            yield from lines


def _values(one: ClusterStatus) -> dict[str, float]:
    found = one.overview
    values: dict[str, float] = {_UP.name: one.error is None, _LEVEL.name: one.level.value}
    limits = {
        "polarvault_max_backup_age_seconds": one.limits.max_backup_age_s,
        "polarvault_max_wal_lag_seconds": one.limits.max_wal_lag_s,
    }
    # Without a limit there is nothing to compare with, and so no alert.
    values |= {name: limit_s for name, limit_s in limits.items() if limit_s}
    if found is None:
        return values
    values |= {
        "polarvault_backups": found.backups,
        "polarvault_stored_bytes": found.stored_bytes,
        "polarvault_wal_stored_bytes": found.wal_bytes,
        "polarvault_last_day_stored_bytes": found.day_bytes,
        "polarvault_last_week_stored_bytes": found.week_bytes,
    }
    if found.last is not None:
        facts = found.last.facts
        values["polarvault_last_backup_timestamp_seconds"] = facts.finished.timestamp()
        values["polarvault_last_backup_duration_seconds"] = (facts.finished - facts.started).total_seconds()
    if found.reach is not None:
        values["polarvault_restorable_from_timestamp_seconds"] = found.reach.start.timestamp()
        values["polarvault_restorable_until_timestamp_seconds"] = found.reach.time.timestamp()
        values["polarvault_wal_gap"] = found.reach.gap is not None
    if found.verified is not None:
        values["polarvault_last_verify_timestamp_seconds"] = found.verified.time.timestamp()
        values["polarvault_last_verify_good"] = found.verified.good
    if found.drilled is not None:
        values["polarvault_last_drill_timestamp_seconds"] = found.drilled.time.timestamp()
        values["polarvault_last_drill_held"] = found.drilled.held
    return values


def _labels(one: ClusterStatus) -> str:
    pairs = {"cluster": one.cluster, "repository": one.repository or one.address}
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    return repr(round(float(value), 3)).removesuffix(".0")
