"""The report of a drill as one page of HTML: nothing is loaded from elsewhere, it prints, and it fits a phone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from html import escape
from typing import TYPE_CHECKING

from polarvault import __version__
from polarvault.model.finding import Finding, Severity
from polarvault.report.drill import expectation, format_seconds, rate, verdict
from polarvault.report.units import format_bytes

if TYPE_CHECKING:
    from polarvault.drill.model import BackupFacts, DrillReport, RelationRead

_SHOWN_RELATIONS = 50
_KINDS = {"r": "table", "m": "materialized view", "t": "TOAST table", "S": "sequence", "i": "index"}
_STYLE = """
:root { --ok: #1a7f37; --warning: #9a6700; --problem: #b42318; --line: #d8dee4; --soft: #f6f8fa; --text: #1f2328 }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 62rem; padding: 1rem; color: var(--text); background: #fff;
       font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.5rem; margin: .5rem 0 } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem }
p { margin: .4rem 0 } code, pre { font: .85em/1.5 ui-monospace, monospace; overflow-wrap: anywhere }
pre { background: var(--soft); padding: .75rem; overflow-x: auto; white-space: pre-wrap }
.verdict { padding: 1rem; border-radius: 6px; color: #fff; font-weight: 600 }
.verdict.ok { background: var(--ok) } .verdict.problem { background: var(--problem) }
.finding { border-left: 4px solid var(--line); padding: .3rem .8rem; margin: .5rem 0; overflow-wrap: anywhere }
.finding.ok { border-color: var(--ok) } .finding.warning { border-color: var(--warning) }
.finding.problem { border-color: var(--problem); background: #fff5f4 }
.finding b { text-transform: uppercase; font-size: .75rem; letter-spacing: .04em; margin-right: .5rem }
.ok b { color: var(--ok) } .warning b { color: var(--warning) } .problem b { color: var(--problem) }
.scroll { overflow-x: auto } table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem .3rem 0; border-bottom: 1px solid var(--line) }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
td { overflow-wrap: anywhere } th { font-weight: 600 } footer { margin: 2rem 0; color: #59636e; font-size: .85rem }
@media print { body { max-width: none; font-size: 11pt } .finding, tr { break-inside: avoid }
  .verdict { color: #000; background: none !important; border: 2px solid #000 } }
"""


def drill_page(report: DrillReport) -> str:
    """Return the page."""
    name = report.backup.rstrip("/").rpartition("/")[2] or report.backup
    state = "ok" if report.held else "problem"
    sections = [
        f'<p class="verdict {state}">{_text(_sentence(verdict(report)))}</p>',
        f"<p>{_text(report.backup)}<br>{_moment(report.began)} to {_moment(report.ended)}</p>",
        *_expected(report),
        *_findings("What did not hold", report.findings, {Severity.PROBLEM}),
        *_failure(report),
        *_findings("What was proved", report.findings, {Severity.OK}),
        *_findings("Warnings", report.findings, {Severity.WARNING}),
        *_list("What was not proved", report.not_proved),
        *_recovery(report),
        *_times(report),
        *_backup(report.facts),
        *_relations(report.relations),
        *_kept(report),
    ]
    body = "\n".join(sections)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Drill of {_text(name)}: {'held' if report.held else 'did not hold'}</title>\n"
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>Drill of {_text(name)}</h1>\n{body}\n"
        f"<footer>polarvault {_text(__version__)}, polarvault drill, exit status {report.exit_status}</footer>\n"
        "</body>\n</html>\n"
    )


def _text(value: object) -> str:
    """Return a value for use between tags and in quoted attributes."""
    # A path can hold bytes that are not UTF-8; the page must be written all the same.
    return escape(str(value).encode("utf-8", "replace").decode())


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def _moment(moment: datetime | None) -> str:
    return "unknown" if moment is None else _text(moment.isoformat(sep=" ", timespec="seconds"))


def _expected(report: DrillReport) -> Iterator[str]:
    if (expected := expectation(report)) is not None:
        yield f"<h2>Recovery time to expect</h2>\n<p>{_text(_sentence(expected))}</p>"


def _findings(title: str, findings: Iterable[Finding], severities: set[Severity]) -> Iterator[str]:
    chosen = [finding for finding in findings if finding.severity in severities]
    if chosen:
        yield f"<h2>{title}</h2>"
    for finding in chosen:
        more = "".join(
            f"<p>{word}: {_text(text)}</p>"
            for word, text in (("What it means", finding.meaning), ("What to do", finding.advice))
            if text and finding.severity is not Severity.OK
        )
        kind, what = finding.severity.value, f"<code>{_text(finding.check)}</code> {_text(finding.subject)}"
        yield (f'<div class="finding {kind}"><p><b>{kind}</b>{what}</p><p>{_text(finding.message)}</p>{more}</div>')


def _failure(report: DrillReport) -> Iterator[str]:
    if report.log_copy:
        yield f"<p>The server's log: <code>{_text(report.log_copy)}</code></p>"
    detail = report.failure.detail if report.failure else None
    if text := report.log_end or detail:
        yield f"<h2>{'End of the server&#x27;s log' if report.log_end else 'Detail'}</h2>\n<pre>{_text(text)}</pre>"


def _list(title: str, lines: Iterable[str]) -> Iterator[str]:
    items = "".join(f"<li>{_text(line)}</li>" for line in lines)
    if items:
        yield f"<h2>{title}</h2>\n<ul>{items}</ul>"


def _recovery(report: DrillReport) -> Iterator[str]:
    ended = report.recovery
    if ended is None:
        return
    rows = [("LSN", ended.lsn), ("last transaction", _moment(ended.time) if ended.time else None),
            ("the server says", ended.reason), ("timeline", ended.timeline_id), ("then", ended.ended.value),
            ("server", report.server_version), ("programs", report.programs)]  # fmt: skip
    yield "<h2>Where recovery stopped</h2>\n" + _pairs(rows)


def _times(report: DrillReport) -> Iterator[str]:
    if not report.times:
        return
    rows = "".join(
        f'<tr><td>{_text(one.part.value)}</td><td class="number">{_text(format_seconds(one.seconds))}</td>'
        f'<td class="number">{_text(rate(one) or "")}</td></tr>'
        for one in report.times
    )
    yield (
        '<h2>How long it took</h2>\n<div class="scroll"><table><tr><th>part</th><th class="number">time</th>'
        f'<th class="number">throughput</th></tr>{rows}</table></div>'
    )


def _backup(facts: BackupFacts | None) -> Iterator[str]:
    if facts is None:
        return
    product = "PolarDB for PostgreSQL" if facts.is_polardb else "PostgreSQL"
    checksums = {True: "on", False: "off", None: None}[facts.has_data_checksums]
    rows = [("path", facts.path), ("form", facts.form), ("label", facts.label),
            ("server", f"{product} {facts.major_version}"), ("system identifier", facts.system_identifier),
            ("size", f"{format_bytes(facts.size_bytes)} in {facts.file_count} files"),
            ("start LSN", facts.start_lsn), ("stop LSN", facts.stop_lsn), ("timeline", facts.timeline_id),
            ("began", _moment(facts.start_time) if facts.start_time else None),
            ("data checksums", checksums)]  # fmt: skip
    yield "<h2>The backup</h2>\n" + _pairs(rows)


def _pairs(rows: Iterable[tuple[str, object]]) -> str:
    cells = "".join(f"<tr><th>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in rows if value)
    return f'<div class="scroll"><table>{cells}</table></div>'


def _relations(relations: tuple[RelationRead, ...]) -> Iterator[str]:
    if not relations:
        return
    largest = sorted(relations, key=lambda one: (not one.problems, -one.pages))[:_SHOWN_RELATIONS]
    rows = "".join(map(_relation_row, largest))
    shown = f"the {len(largest)} largest of " if len(largest) < len(relations) else ""
    yield (
        f"<h2>What was read</h2>\n<p>{shown}{len(relations)} relations; the JSON report has all</p>\n"
        '<div class="scroll"><table><tr><th>relation</th><th>kind</th><th class="number">pages</th>'
        f'<th class="number">rows</th><th></th></tr>{rows}</table></div>'
    )


def _relation_row(one: RelationRead) -> str:
    name, kind = f"{one.database}.{one.schema}.{one.name}", _KINDS.get(one.kind, one.kind)
    kind += f" of {one.belongs_to}" if one.belongs_to else ""
    rows = "" if one.rows is None else one.rows
    return (
        f'<tr><td>{_text(name)}</td><td>{_text(kind)}</td><td class="number">{one.pages}</td>'
        f'<td class="number">{rows}</td><td>{_text(_outcome(one))}</td></tr>'
    )


def _outcome(relation: RelationRead) -> str:
    if relation.problems:
        return relation.problems[0][1]
    return f"not read: {relation.skipped}" if relation.skipped else "read"


def _kept(report: DrillReport) -> Iterator[str]:
    if report.kept is None:
        return
    kept = report.kept
    lines = "\n".join((f"# start\n{kept.start}", f"# look into it\n{kept.connect}", f"# stop\n{kept.stop}",
                       f"# remove\n{kept.remove}"))  # fmt: skip
    yield f"<h2>The copy that was kept</h2>\n<p>{_text(kept.directory)}</p>\n<pre>{_text(lines)}</pre>"
