"""Do the small files of a backup fit together: pg_control, PG_VERSION, backup_label, tablespaces?

Pure: contents go in, findings come out. Findings (`check` names; what holds is reported with severity OK):
  control             pg_control is there and sane (only as OK)
  control-missing     pg_control is not there; on PolarDB the shared half is missing
  control-size        it is not 8192 bytes long
  control-version     it is of an unknown version or of another byte order; a warning for an unknown catalog
                      version, and for a later format beside a PG_VERSION that may have it
  control-crc         its CRC is wrong
  control-values      a value makes no sense, such as a segment size that initdb cannot make
  control-state       no server is backed up in the state that it names (a warning)
  control-identifier  it is of another cluster than the manifest
  control-age         it is older than the checkpoint that began the backup, or newer than the backup's end
  version             PG_VERSION is there and agrees with pg_control
  newer-version       it names a version that is newer than all known ones: most was not checked (a warning)
  label               backup_label is there and agrees with all the rest (only as OK)
  label-missing       it is not there
  label-damaged       it cannot be parsed
  label-segment       its start LSN, segment name, timeline and checkpoint contradict each other
  label-manifest      it is of another backup than the manifest
  label-method        it was made by pg_start_backup(), the manifest by a base backup
  label-control       pg_control's state is not that of the server that the label names (a replica's backup on PolarDB)
  incremental         it is an incremental backup (a warning)
  tablespaces         every tablespace is there (only as OK)
  tablespace-link     a link in pg_tblspc leads to no directory
  tablespace-twice    two tablespaces are in one place
  tablespace-map      tablespace_map and the tablespaces that are there differ
"""

from __future__ import annotations

import os.path
from collections.abc import Mapping

from polarvault.model.finding import Finding, ok, problem, warning
from polarvault.verify.facts.backup import BackupFacts, WalRange
from polarvault.verify.facts.control import judge_control, judge_version
from polarvault.verify.facts.label import judge_label

__all__ = ["BackupFacts", "WalRange", "judge_facts"]

_MISSING_TABLES = "every table of the tablespace is missing from the restored server"


def judge_facts(facts: BackupFacts) -> list[Finding]:
    """Return a finding for everything that is wrong, and one for everything that holds."""
    control, findings = judge_control(facts)
    tablespaces = _judge_tars(facts) if facts.is_tar else _judge_links(facts)
    return [*findings, *judge_version(facts, control), *judge_label(facts, control), *tablespaces]


def _judge_links(facts: BackupFacts) -> list[Finding]:
    findings = []
    for oid, (place, is_directory) in sorted(facts.tablespace_links.items()):
        if not is_directory:
            message = f'it leads to "{place}", which is no directory'
            advice = "put the tablespace's copy there, or point the link to it: ln -sfn COPY pg_tblspc/" + str(oid)
            findings.append(problem("tablespace-link", f"pg_tblspc/{oid}", message, _MISSING_TABLES, advice))
    findings += _judge_places({oid: place for oid, (place, _) in facts.tablespace_links.items()}, "pg_tblspc/")
    for oid, place in sorted((facts.tablespace_map or {}).items()):
        link = facts.tablespace_links.get(oid)
        if link is None or os.path.normpath(link[0]) != os.path.normpath(place):
            leads = "there is no link" if link is None else f'the link leads to "{link[0]}"'
            # Server: access/transam/xlogrecovery.c, the links are made anew from the map when backup_label is there.
            meaning = (
                "a server that starts here makes the links as the map says, whatever is in pg_tblspc: on the source's "
                "host that is the live tablespace"
            )
            message = f'tablespace {oid} is at "{place}", but in pg_tblspc {leads}'
            advice = "restore with: polarvault restore  (it places tablespaces); or correct the path in tablespace_map"
            findings.append(warning("tablespace-map", "tablespace_map", message, meaning, advice))
    return findings or _all_there(len(facts.tablespace_links))


def _judge_tars(facts: BackupFacts) -> list[Finding]:
    mapped = facts.tablespace_map or {}
    findings = []
    for oid in sorted(mapped.keys() - facts.tablespace_tars):
        message = f'tablespace_map names tablespace {oid} at "{mapped[oid]}", but there is no {oid}.tar'
        findings.append(problem("tablespace-map", f"{oid}.tar", message, _MISSING_TABLES, "copy the file here"))
    for oid in sorted(facts.tablespace_tars - mapped.keys()):
        message = f"{oid}.tar is there, but tablespace_map does not name tablespace {oid}"
        # Server: backup/basebackup.c sends an in-place tablespace as a tar of its own, too, and the map has only links.
        meaning = (
            "an in-place tablespace of the source (allow_in_place_tablespaces); otherwise the restored server does not "
            "know where it is, and " + _MISSING_TABLES
        )
        advice = f"if it is a directory in the source's pg_tblspc, unpack it into pg_tblspc/{oid} of the restored copy"
        findings.append(warning("tablespace-map", f"{oid}.tar", message, meaning, advice))
    findings += _judge_places(mapped, "tablespace_map, tablespace ")
    return findings or _all_there(len(mapped))


def _judge_places(places: Mapping[int, str], subject: str) -> list[Finding]:
    by_place: dict[str, list[int]] = {}
    for oid, place in sorted(places.items()):
        by_place.setdefault(os.path.normpath(place), []).append(oid)
    return [
        problem(
            "tablespace-twice", f"{subject}{oids[1]}", f'it is at "{place}", where tablespace {oids[0]} is, too',
            "the files of two tablespaces mix, and one overwrites the other's", "give each its own directory",
        )
        for place, oids in by_place.items() if len(oids) > 1
    ]  # fmt: skip


def _all_there(count: int) -> list[Finding]:
    return [ok("tablespaces", "tablespaces", f"{count} of {count} are there")] if count else []
