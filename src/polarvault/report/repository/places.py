"""Repositories for people and for programs: one that was made, what one holds, and its keys."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from polarvault.config.model import RepositoryConfiguration
from polarvault.report.units import format_bytes, printable
from polarvault.repository.catalogue.summary import RepositorySummary
from polarvault.repository.copying import CopyReport
from polarvault.repository.keys.wrapped import WrappedKey


def made_text(made: RepositoryConfiguration, repository_id: str, *, encrypted: bool) -> Iterator[str]:
    """Yield what is to be known of a new repository, and the lines for the configuration."""
    yield f"made the {'encrypted ' if encrypted else ''}repository {repository_id} in {made.address}"
    yield "with these lines in the configuration another one in its place is refused:"
    yield f"[repository.{made.name or 'NAME'}]"
    yield f"address = {json.dumps(made.address, ensure_ascii=False)}"
    yield f'id = "{repository_id}"'
    yield f"encrypted = {json.dumps(encrypted)}"


def made_json(made: RepositoryConfiguration, repository_id: str, *, encrypted: bool) -> dict[str, Any]:
    """Return a new repository as --json prints it."""
    return {"repository": {"id": repository_id, "address": made.address, "encrypted": encrypted}}


def keys_text(keys: Sequence[WrappedKey]) -> Iterator[str]:
    """Yield a table of keys."""
    width = max([4, *(len(key.recipient) for key in keys)])
    yield f"{'NAME':{width}}  {'KIND':10}  {'EPOCH':5}  ID"
    for key in keys:
        yield f"{key.recipient:{width}}  {key.kind:10}  {key.epoch:<5}  {key.key_id}"


def keys_json(keys: Sequence[WrappedKey]) -> dict[str, Any]:
    """Return keys as --json prints them."""
    return {"keys": [{"name": key.recipient, "kind": key.kind, "epoch": key.epoch, "id": key.key_id} for key in keys]}


def summary_text(summary: RepositorySummary) -> Iterator[str]:
    """Yield what a repository holds, a line for each cluster, and what runs or was killed."""
    yield f"repository {summary.id} in {summary.address}, {'encrypted' if summary.encrypted else 'not encrypted'}"
    width = max([7, *(len(cluster.name) for cluster in summary.clusters)])
    if summary.clusters:
        yield ""
        yield f"{'CLUSTER':{width}}  {'BACKUPS':7}  {'FIRST':21}  LAST"
    for cluster in summary.clusters:
        first, last = (cluster.labels[0], cluster.labels[-1]) if cluster.labels else ("", "")
        yield f"{cluster.name:{width}}  {len(cluster.labels):<7}  {first:21}  {last}".rstrip()
    for cluster in summary.clusters:
        if cluster.unfinished:
            yield f"{cluster.name}: {cluster.unfinished} unfinished; the next backup goes on with what is there"
    if summary.intents:
        yield ""
    for intent in summary.intents:
        what = " ".join(filter(None, (intent.command, intent.cluster, intent.label)))
        yield printable(f"{what}: runs since {intent.started} on {intent.host}, process {intent.pid}, or was killed")
    if summary.intents_left_out:
        yield f"and {summary.intents_left_out} more"


def summary_json(summary: RepositorySummary) -> dict[str, Any]:
    """Return the same as --json prints it."""
    return {
        "repository": {"id": summary.id, "address": summary.address, "encrypted": summary.encrypted},
        "clusters": [
            {"name": cluster.name, "backups": list(cluster.labels), "unfinished": cluster.unfinished}
            for cluster in summary.clusters
        ],
        "intents": [
            {
                "id": intent.id, "command": intent.command, "cluster": intent.cluster, "label": intent.label,
                "started": intent.started, "host": intent.host, "pid": intent.pid,
            }
            for intent in summary.intents
        ],
    }  # fmt: skip


def copied_text(report: CopyReport, address: str) -> Iterator[str]:
    """Yield what was copied to another place, and what was not."""
    for problem in report.problems:
        yield printable(f"problem: {problem}")
    yield (
        f"{address}: {len(report.backups)} backups came; {report.objects} objects, {format_bytes(report.bytes)} "
        f"copied, {report.present} were there"
    )


def copied_json(report: CopyReport) -> dict[str, Any]:
    """Return the same as --json prints it."""
    return {
        "copied": {"objects": report.objects, "bytes": report.bytes, "present": report.present},
        "backups": list(report.backups),
        "problems": [{"name": "", "message": problem, "backups": []} for problem in report.problems],
    }
