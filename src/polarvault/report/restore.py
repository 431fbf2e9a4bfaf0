"""A restore for people and for programs: the plan, the table of changed settings, the result."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from polarvault.model.secrets import hide_secrets
from polarvault.report.recovery import outcome_json, outcome_text, recovery_json, recovery_text
from polarvault.report.standby import follow_json, follow_text, primary_json, primary_text
from polarvault.report.units import format_bytes, printable
from polarvault.restore.model import STAGING_NAME, Change, RestorePlan
from polarvault.restore.plan.backup import missing_wal

if TYPE_CHECKING:
    from polarvault.instance.model import Account
    from polarvault.instance.start import StartedServer
    from polarvault.restore.only.model import LeftOut
    from polarvault.restore.run import RestoreResult

_EXPANDED = '$`"\\'
_CELL_LIMIT = 64
_LINE_COLUMNS = 80


def settings_table(changes: Sequence[Change], local: str) -> list[str]:
    """Return the changed settings: name, from, to and file in one line, and below it why; for 80 columns."""
    if not changes:
        return ["  no setting had to be changed"]
    width = max(len(change.name) for change in changes)
    lines = []
    for change in changes:
        values = f"{_cell(change.before, '(not set)')} -> {_cell(change.after, '(commented out)')}"
        file = change.path.removeprefix(local + "/")
        line = f"  {change.name:<{width}}  {values}"
        # The file stands behind, where there is room for it.
        if len(line) + len(file) + 3 <= _LINE_COLUMNS:
            lines += [f"{line}  ({file})", f"      {change.why}"]
        else:
            lines += [line, f"      ({file}) {change.why}"]
    return lines


def plan_text(plan: RestorePlan) -> Iterator[str]:
    """Yield the lines of `--plan`."""
    yield f'restore plan for the {plan.source.form.value} "{plan.source.path}"'
    product = "PolarDB for PostgreSQL" if plan.is_polardb else "PostgreSQL"
    yield f"  server            {product} {plan.major_version}, to be a {plan.request.role.value}"
    control = plan.inventory.control
    if control is not None:
        yield f"  system identifier {control.system_identifier}, timeline {control.timeline_id}"
    yield f"  data directory    {plan.layout.local}"
    if plan.layout.shared:
        yield f"  shared half       {plan.layout.shared}"
    if plan.layout.live_datadir is not None:
        yield f"  storage           {plan.layout.live_datadir}, the primary's own; nothing is written there"
    yield from primary_text(plan)
    if plan.layout.merged:
        yield "  shared half       merged into the data directory, an instance without shared storage"
    for oid, location in plan.layout.tablespaces.items():
        original = next(space.location for space in plan.inventory.tablespaces if space.oid == oid)
        yield f"  tablespace {oid:<6} {location} (was {original})"
    for number, link in enumerate(plan.chain):
        kind = "full backup" if number == 0 else "incremental"
        yield f"  {'combined from' if number == 0 else '':<17} {link.path} ({kind}, began at {link.label.start_lsn})"
    if plan.combine_program is not None:
        yield f"  combined by       {plan.combine_program}"
    yield f"  files             {plan.inventory.file_count}, {format_bytes(plan.inventory.total_bytes)}"
    if plan.facts.host.existing is None and plan.source.fetched_bytes is not None:
        yield f"  to fetch          {format_bytes(plan.source.fetched_bytes)}, and WAL"
        yield f"  time              {_time_line(plan)}"
    yield from left_out_text(plan.left_out)
    yield from delta_text(plan, is_done=False)
    for need in plan.space:
        verdict = "" if need.is_met else "   NOT ENOUGH"
        there = "unknown how much is" if need.available is None else format_bytes(need.available)
        yield f"  space             {format_bytes(need.needed)} needed, {there} available for {need.path}{verdict}"
    yield f"  WAL               {_wal_line(plan)}"
    yield f"  signal file       {plan.signal_path}"
    if plan.debian is not None:
        yield f"  configuration     {plan.debian.main_file}, Debian's cluster {plan.debian}; of the data directory"
        yield "                    only postgresql.auto.conf is read, where all settings below go"
    programs = f"{plan.binaries.directory} ({plan.binaries.version})" if plan.binaries else "none found"
    yield f"  programs          {programs}"
    if plan.recovery is not None:
        yield from recovery_text(plan.recovery)
    yield "settings to change"
    yield from settings_table(plan.changes, plan.layout.local)
    yield "nothing was written"


def expected_s(plan: RestorePlan) -> float | None:
    """Return how long it takes to lay the files out, by the median of the last restores from there; seconds."""
    speeds = sorted(plan.source.speeds()) if plan.facts.host.existing is None else []
    return round(plan.laid_out_bytes / speeds[len(speeds) // 2], 1) if speeds else None


def _time_line(plan: RestorePlan) -> str:
    expected = expected_s(plan)
    if expected is None:
        return "not known: nothing was restored from this repository yet"
    count = len(plan.source.speeds())
    last = "the last restore" if count == 1 else f"the last {count} restores"
    shown = f"{expected / 60:.0f} min" if expected >= 120 else f"{max(expected, 1):.0f} s"
    return f"about {shown} until the files are in place, by {last} from there; WAL comes on top"


def result_text(result: RestoreResult, account: Account, *, is_root: bool) -> Iterator[str]:
    """Yield the lines that follow a restore."""
    plan = result.plan
    halves = f" and {plan.layout.shared}" if plan.layout.shared else ""
    yield f"restored {plan.inventory.file_count} files ({format_bytes(plan.inventory.total_bytes)}) to " + (
        plan.layout.local + halves
    )
    yield from left_out_text(plan.left_out)
    yield from delta_text(plan, is_done=True)
    yield "settings changed"
    yield from settings_table(plan.changes, plan.layout.local)
    yield f"signal file: {plan.signal_path}"
    if result.server is not None:
        yield from server_text(result.server)
        yield from follow_text(result)
        yield from subscriptions_text(result)
    yield from closed_text(result)
    if result.recovery is not None:
        server = result.server
        connect = f"psql -h {server.host} -p {server.port}" if server else None
        yield from outcome_text(plan, result.recovery, connect, run_as=account.name if is_root else None)
    if result.server is not None or result.recovery is not None:
        return
    yield "start it with:"
    yield "  " + start_command(plan, account, is_root=is_root)


def quoted(name: str) -> str:
    """Return a name as SQL takes it."""
    return '"' + name.replace('"', '""') + '"'


def left_out_text(out: LeftOut | None) -> Iterator[str]:
    """Yield what is left out, and what it is then."""
    if out is None:
        return
    names = ", ".join(sorted(out.databases.values())) or "nothing"
    yield printable(f"  left out          {names}: {out.files} files, {format_bytes(out.bytes)}, as files of zeros")


def closed_text(result: RestoreResult) -> Iterator[str]:
    """Yield what became of the databases that were left out, or how they are closed once that is possible."""
    for one in result.closed:
        if one.problem is None:
            yield printable(f"database {quoted(one.name)} was left out and refuses connections; it can be dropped")
        else:
            yield printable(f"database {quoted(one.name)} was left out, and is not closed: {one.problem}")
    out = result.plan.left_out
    if out is None or result.closed or not out.databases:
        return
    yield "pg_hba.conf lets nobody into what was left out; as soon as the server can be written, drop it or close it:"
    for name in sorted(out.databases.values()):
        yield printable(f"  ALTER DATABASE {quoted(name)} ALLOW_CONNECTIONS false;")


def delta_text(plan: RestorePlan, *, is_done: bool) -> Iterator[str]:
    """Yield what a delta restore compares, fetches, writes and removes."""
    if plan.facts.host.existing is None:
        return
    counts = plan.delta
    if counts is None:
        yield "  delta             the target is there: only what differs is fetched and written"
        return
    words = ("compared", "fetched", "written", "removed") if is_done else ("to compare", "fetch", "write", "remove")
    sizes = (counts.compared_bytes, counts.fetched_bytes, counts.written_bytes)
    parts = [f"{word} {format_bytes(size)}" for word, size in zip(words, sizes, strict=False)]
    yield f"  delta             {', '.join(parts)}"
    if counts.removed_files:
        what = f"{counts.removed_files} files that do not belong, {format_bytes(counts.removed_bytes)}"
        yield f"                    {words[3]} {what}"


def subscriptions_text(result: RestoreResult) -> Iterator[str]:
    """Yield what became of the source's subscriptions, and how they are switched on again."""
    server = result.server
    if not result.subscriptions or server is None:
        return
    yield "subscriptions of the source are disabled, because they would take its place at their publishers"
    for one in result.subscriptions:
        state = "disabled" if one.problem is None else f"NOT disabled: {one.problem}"
        yield f"  {printable(one.name)} in database {printable(one.database)}: {state}"
    first = result.subscriptions[0]
    words = f'ALTER SUBSCRIPTION "{first.name.replace(chr(34), chr(34) * 2)}" ENABLE'
    line = shlex.join(["psql", "-h", server.host, "-p", str(server.port), "-d", first.database, "-c", words])
    yield f"  to use one here   {printable(line)}"
    yield "                    then take max_logical_replication_workers = 0 out of the settings, and restart"


def server_text(server: StartedServer) -> Iterator[str]:
    """Yield what a started server said about itself."""
    yield f"server is up: {server.version or 'version unknown'}"
    yield f"  connect with      psql -h {server.host} -p {server.port}"
    known = {True: "t", False: "f", None: "unknown"}[server.in_recovery]
    yield f"  pg_is_in_recovery {known}"
    yield f"  node type         {server.node_type or 'unknown'}"
    yield f"  LSN               {server.lsn or 'unknown'}"
    yield f"  timeline          {server.timeline_id}"
    yield f"  log               {server.log_path}"
    if server.note:
        yield f"  note              {server.note}"


def start_command(plan: RestorePlan, account: Account, *, is_root: bool) -> str:
    """Return the line that starts the restored server."""
    if plan.debian is not None:
        return shlex.join(plan.debian.command("start"))
    program = plan.binaries.program("pg_ctl") if plan.binaries else "pg_ctl"
    local = plan.layout.local
    command = shlex.join([program, "-D", local, "-l", f"{local}/polarvault-start.log", "-w", "start"])
    if any(character in local for character in _EXPANDED):
        # pg_ctl hands the path to a shell between double quotes (bin/pg_ctl/pg_ctl.c): it must not have to.
        command = f"cd {shlex.quote(local)} && " + shlex.join(
            [program, "-D", ".", "-l", "polarvault-start.log", "-w", "start"]
        )
    return f"su {account.name} -c {shlex.quote(command)}" if is_root else command


def plan_json(plan: RestorePlan) -> dict[str, Any]:
    """Return the plan as `--json` prints it."""
    control = plan.inventory.control
    return {
        "backup": "-" if os.path.basename(plan.source.path) == STAGING_NAME else plan.source.path,
        "chain": [{"path": link.path, "start_lsn": str(link.label.start_lsn)} for link in plan.chain],
        "form": plan.source.form.name.lower(),
        "role": plan.request.role.value,
        "polardb": plan.is_polardb,
        "major_version": plan.major_version,
        "system_identifier": str(control.system_identifier) if control else None,
        "start_lsn": str(plan.label.start_lsn) if plan.label else None,
        "timeline": plan.label.timeline_id if plan.label else None,
        "data_directory": plan.layout.local,
        "shared_directory": plan.layout.shared,
        "merged": plan.layout.merged,
        "tablespaces": {str(oid): place for oid, place in plan.layout.tablespaces.items()},
        "files": plan.inventory.file_count,
        "bytes": plan.inventory.total_bytes,
        "fetch_bytes": plan.source.fetched_bytes if plan.delta is None else plan.delta.fetched_bytes,
        "expected_s": expected_s(plan),
        "left_out": None
        if plan.left_out is None
        else {
            "databases": sorted(plan.left_out.databases.values()),
            "files": plan.left_out.files,
            "bytes": plan.left_out.bytes,
        },
        "delta": _delta_json(plan),
        "space": [{"path": n.path, "needed": n.needed, "available": n.available} for n in plan.space],
        "missing_wal": missing_wal(plan.inventory, plan.label) if plan.label else None,
        "signal_file": plan.signal_path,
        "configuration_file": plan.debian.main_file if plan.debian else None,
        "programs": plan.binaries.directory if plan.binaries else None,
        "recovery": recovery_json(plan.recovery),
        "primary": primary_json(plan),
        "storage": plan.layout.live_datadir,
        "settings": [_change_json(change) for change in plan.changes],
    }


def result_json(result: RestoreResult) -> dict[str, Any]:
    """Return the result as `--json` prints it: the plan, what was warned of since, and the server."""
    server = result.server
    started = None
    if server is not None:
        started = {
            "host": server.host,
            "port": server.port,
            "version": server.version,
            "in_recovery": server.in_recovery,
            "node_type": server.node_type,
            "lsn": server.lsn,
            "timeline": server.timeline_id,
            "log": server.log_path,
            "note": server.note,
        }
    return {
        **plan_json(result.plan),
        "server": started,
        "outcome": outcome_json(result.recovery),
        "follow": follow_json(result),
        "subscriptions": [
            {"database": one.database, "name": one.name, "disabled": one.problem is None, "problem": one.problem}
            for one in result.subscriptions
        ],
    }


def _delta_json(plan: RestorePlan) -> dict[str, int] | None:
    if plan.delta is None:
        return None
    return {
        "compared_bytes": plan.delta.compared_bytes,
        "fetched_bytes": plan.delta.fetched_bytes,
        "written_bytes": plan.delta.written_bytes,
        "removed_files": plan.delta.removed_files,
        "removed_bytes": plan.delta.removed_bytes,
    }


def _change_json(change: Change) -> Mapping[str, str | None]:
    def hidden(value: str | None) -> str | None:
        return None if value is None else hide_secrets(value)

    return {
        "name": change.name,
        "from": hidden(change.before),
        "to": hidden(change.after),
        "file": change.path,
        "why": change.why,
    }


def _cell(value: str | None, absent: str) -> str:
    if value is None:
        return absent
    text = hide_secrets(value) or "''"
    return text if len(text) <= _CELL_LIMIT else text[: _CELL_LIMIT - 3] + "..."


def _wal_line(plan: RestorePlan) -> str:
    if plan.rules.wal_words is not None:
        return plan.rules.wal_words
    if plan.label is None:
        return "none needed, the server was shut down"
    missing = missing_wal(plan.inventory, plan.label)
    if missing is not None:
        return f"segment {missing} is not in the backup and has to be supplied"
    return f"from {plan.label.start_lsn}, {len(plan.inventory.wal)} file(s) in the backup"
