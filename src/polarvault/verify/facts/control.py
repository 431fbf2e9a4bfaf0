"""Judge pg_control and PG_VERSION of a backup. Pure; the names of the findings are listed in `judge`."""

from __future__ import annotations

from polarvault.backupset.inventory import parse_major_version
from polarvault.model import versions
from polarvault.model.finding import Finding, ok, problem, warning
from polarvault.pgfiles.control import ClusterState, ControlDamage, ControlFile, parse_known_control
from polarvault.verify.facts.backup import BackupFacts, unusable

# PG_CONTROL_FILE_SIZE (server file catalog/pg_control.h): the file is padded to it in every version.
CONTROL_BYTES = 8192
_NOT_READ = "pg_control, pages and WAL were not looked at: what was checked is that the files agree with the manifest"
_NEWER_PROGRAMS = "use a newer polarvault, and pg_verifybackup of the backup's own version for the WAL"
_NO_START = "the restored server does not start"
_CHECK_NAMES = {"size": "control-size", "version": "control-version", "crc": "control-crc", "values": "control-values"}


def judge_control(facts: BackupFacts) -> tuple[ControlFile | None, list[Finding]]:
    """Return pg_control if it can be read, and what there is to say about it."""
    path = facts.control_path
    if facts.control is None:
        return None, [_missing(facts)]
    try:
        control = parse_known_control(facts.control, parse_major_version(facts.version), path)
    except ControlDamage as damage:
        finding = problem(
            _CHECK_NAMES[damage.aspect], path, damage.message.removeprefix(f"{path} "), _NO_START,
            damage.hint or "use another backup",
        )  # fmt: skip
        return None, [finding]
    if control is None:
        return None, _of_newer_server(facts)
    findings = []
    if len(facts.control) != CONTROL_BYTES:
        message = f"it is {len(facts.control)} bytes long, every server writes {CONTROL_BYTES}"
        findings.append(unusable("control-size", path, message, "the file was cut or padded: it is not the server's"))
    findings += [unusable("control-values", path, message, _NO_START) for message in _odd_values(control)]
    findings += _judge_state(facts, control)
    findings += _judge_identity(facts, control)
    if not findings:
        what = f"system {control.system_identifier}, PostgreSQL {control.major_version}, {_state_words(control)}"
        findings.append(ok("control", path, f"{what}, checkpoint {control.checkpoint_lsn}"))
    return control, findings


def _of_newer_server(facts: BackupFacts) -> list[Finding]:
    """Say that pg_control is of an unknown format, where PG_VERSION alone does not say it."""
    if versions.is_newer(parse_major_version(facts.version) or 0):
        return []
    message = f"it is of a later format than any of {versions.KNOWN_VERSIONS}"
    return [warning("control-version", facts.control_path, message, _NOT_READ, _NEWER_PROGRAMS)]


def _missing(facts: BackupFacts) -> Finding:
    meaning = 'the restored server stops with "could not find the database system"'
    if facts.is_polardb:
        message = "it is not there: the shared half of the backup is missing"
        return problem("control-missing", facts.control_path, message, meaning, "name the shared half: --polardata DIR")
    return unusable("control-missing", facts.control_path, "it is not there", meaning)


def _odd_values(control: ControlFile) -> list[str]:
    """Return what no server writes; the segment size and the state were checked when the file was parsed."""
    sizes = {"block size": (control.block_size, 32), "WAL block size": (control.wal_block_size, 64)}
    found = [
        f"it names a {what} of {size} bytes, which no server has"
        for what, (size, largest_kb) in sizes.items()
        if not 1024 <= size <= largest_kb << 10 or size & (size - 1)
    ]
    if not control.relation_segment_blocks:
        found.append("it names relation segments of 0 blocks")
    if not control.system_identifier:
        found.append("its system identifier is 0")
    if not control.timeline_id:
        found.append("its timeline is 0")
    if not control.checkpoint_lsn or not control.redo_lsn:
        found.append(f"its checkpoint is at {control.checkpoint_lsn}, with its redo point at {control.redo_lsn}")
    elif control.redo_lsn > control.checkpoint_lsn:
        found.append(f"its redo point {control.redo_lsn} lies behind its checkpoint {control.checkpoint_lsn}")
    return found


def _judge_state(facts: BackupFacts, control: ControlFile) -> list[Finding]:
    usual = (ClusterState.IN_PRODUCTION, ClusterState.IN_ARCHIVE_RECOVERY, ClusterState.SHUT_DOWN_IN_RECOVERY)
    if control.state in usual or (control.state.is_clean and not facts.expects_label):
        return []
    message = f"it says that the server was {_state_words(control)}; a server can be backed up only while it runs"
    meaning = "the file is not from the time of the backup"
    return [warning("control-state", facts.control_path, message, meaning, "prove that it restores: polarvault drill")]


def _state_words(control: ControlFile) -> str:
    return control.state.name.lower().replace("_", " ")


def _judge_identity(facts: BackupFacts, control: ControlFile) -> list[Finding]:
    path, findings = facts.control_path, []
    named = facts.manifest_system_identifier
    if named not in (None, control.system_identifier):
        message = f"its system identifier is {control.system_identifier}, that of the manifest is {named}"
        meaning = "pg_control and the manifest are of two clusters: the files do not belong together"
        findings.append(unusable("control-identifier", path, message, meaning))
    end = facts.end_lsn
    if end is not None and control.checkpoint_lsn >= end:
        message = f"its checkpoint at {control.checkpoint_lsn} is from after the end of the backup at {end}"
        meaning = "it is of a later backup, or a server was started on these files: they do not fit together"
        findings.append(unusable("control-age", path, message, meaning))
    if control.major_version is None:
        message = f"catalog version {control.catalog_version} is of no release of {versions.KNOWN_VERSIONS}"
        meaning = "only a server of exactly that version can open the files"
        findings.append(
            warning("control-version", path, message, meaning, "restore with the binaries of the source server")
        )
    return findings


def judge_version(facts: BackupFacts, control: ControlFile | None) -> list[Finding]:
    """Judge PG_VERSION of the local half."""
    meaning = 'the restored server stops with "is not a valid data directory"'
    if facts.version is None:
        return [unusable("version", "PG_VERSION", "it is not there", meaning)]
    text = facts.version.decode("ascii", "replace").strip()
    if not text.isdecimal():
        return [unusable("version", "PG_VERSION", f"{text[:20]!r} is no version of PostgreSQL", meaning)]
    if versions.is_newer(int(text)):
        message = f"the backup is of PostgreSQL {text}, which is newer than {versions.KNOWN_VERSIONS}"
        return [warning("newer-version", "PG_VERSION", message, _NOT_READ, _NEWER_PROGRAMS)]
    major = None if control is None else control.major_version
    if major not in (None, int(text)):
        message = f"it says {text}, but {facts.control_path} was written by PostgreSQL {major}"
        return [unusable("version", "PG_VERSION", message, "the files are of two clusters, and no server opens them")]
    return [ok("version", "PG_VERSION", f"PostgreSQL {text}")]
