"""`polarvault wal gap acknowledge`: say that WAL is known to be missing."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click

from polarvault.cli.json_output import current_output, json_option
from polarvault.cli.options.backups import RepositoryChoice
from polarvault.cli.options.repository import repository_options
from polarvault.errors import UsageError
from polarvault.model.lsn import Lsn

_NAMED = 5


@click.group("gap", context_settings={"help_option_names": ["-?", "--help"]})
def command() -> None:
    """Gaps in the WAL of a cluster."""


@command.command("acknowledge", context_settings={"help_option_names": ["-?", "--help"]})
@click.argument("cluster", metavar="CLUSTER")
@click.argument("span", metavar="FIRST-LAST")
@click.option("--timeline", type=click.IntRange(1, 0xFFFFFFFF), metavar="N", help="Of this timeline only.")
@click.option("--note", metavar="TEXT", default="", help="A word for people, which the commands show.")
@repository_options
@json_option
def acknowledge(cluster: str, span: str, *, timeline: int | None, note: str, **options: Any) -> None:
    """Say that the gaps between two LSNs, as `wal status` shows them, are known: 0/5000000-0/6000000.

    They are still shown, with the note, and are no reason any more for wal status to exit 1 and for status to alarm. A
    gap that becomes larger is a new one. What lies in a gap cannot be restored; a new backup begins a new window. With
    several repositories each has its own gaps: --repo.
    """
    from polarvault.repository.catalogue.wal_windows import look_at_wal
    from polarvault.repository.states.gaps import AcknowledgedGap
    from polarvault.repository.states.states import CLUSTER, GAP_ACKNOWLEDGED, States

    first, last = _lsns(span)
    now = datetime.now(UTC)
    choice = RepositoryChoice.of(**options)
    with choice.opened(cluster) as (opened, chosen):
        there = [
            AcknowledgedGap(generation.system_identifier, one.timeline_id, gap.start, gap.end, note, now)
            for generation in look_at_wal(opened.repository, cluster)
            for one in generation.timelines
            for gap in one.gaps
        ]
        meant = [
            one for one in there if first <= one.first and one.last <= last and timeline in (None, one.timeline_id)
        ]  # fmt: skip
        if not meant:
            known = ", ".join(f"{one.first}-{one.last} of timeline {one.timeline_id}" for one in there[-_NAMED:])
            raise UsageError(
                f"in the WAL of {cluster} in {chosen.address} there is no gap between {first} and {last}",
                hint=f"gaps: {known}" if known else f"it has none: polarvault wal status {cluster}",
            )
        states = States(opened.repository, cluster)
        for one in meant:
            states.add(CLUSTER, GAP_ACKNOWLEDGED, now=now, text=note, finding=one.finding())
    output = current_output()
    if output is not None:
        gaps = [
            {
                "system_identifier": str(one.system_identifier),
                "timeline": one.timeline_id,
                "start": str(one.first),
                "end": str(one.last),
            }
            for one in meant
        ]
        output.add(cluster=cluster, repository=chosen.address, gaps=gaps, note=note or None)
        return
    for one in meant:
        click.echo(
            f"{cluster} in {chosen.address}: WAL from {one.first} to {one.last} of timeline {one.timeline_id} is known "
            f"to be missing{': ' if note else ''}{note}"
        )


def _lsns(span: str) -> tuple[Lsn, Lsn]:
    words = span.split("-")
    try:
        first, last = map(Lsn.parse, words)
    except ValueError:
        raise UsageError(f'"{span}" is no stretch of WAL', hint="write two LSNs: 0/5000000-0/6000000") from None
    if first >= last:
        raise UsageError(f"{first} does not lie before {last}", hint="write the smaller LSN first")
    return first, last
