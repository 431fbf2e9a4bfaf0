"""Judge backup_label against pg_control and the manifest. Pure; the names of the findings are listed in `judge`."""

from __future__ import annotations

from polarvault.backupset import label_rules
from polarvault.errors import BackupUnusable
from polarvault.model.finding import Finding, ok, problem, warning
from polarvault.pgfiles.backup_label import BackupLabel, parse_backup_label
from polarvault.pgfiles.control import ControlFile
from polarvault.verify.facts.backup import BackupFacts, unusable

_WRONG_CHECKPOINT = "the server would start from the wrong checkpoint, without a word: silent corruption"
_TWO_BACKUPS = "the files are of two backups: what comes of restoring them is not the database at any time"


def judge_label(facts: BackupFacts, control: ControlFile | None) -> list[Finding]:
    """Return what there is to say about backup_label."""
    if facts.label is None:
        return _missing(facts, control)
    try:
        label = parse_backup_label(facts.label, facts.label_path)
    except BackupUnusable as damage:
        message = damage.message.removeprefix(f"{facts.label_path} ")
        return [problem("label-damaged", facts.label_path, message, _WRONG_CHECKPOINT, damage.hint or "")]
    findings = [
        *_judge_itself(facts, label, control),
        *_judge_against_manifest(facts, label),
        *(_judge_against_control(facts, label, control) if control is not None else ()),
    ]
    if not findings:
        what = f"a backup of a {label.taken_from or 'server'} from {label.start_lsn} on, timeline {label.timeline_id}"
        findings.append(ok("label", facts.label_path, what))
    if label.incremental_from_lsn is not None:
        findings.append(_incremental(facts, label))
    return findings


def _missing(facts: BackupFacts, control: ControlFile | None) -> list[Finding]:
    path = facts.label_path
    if facts.expects_label:
        message = "it is not there"
        return [problem("label-missing", path, message, _WRONG_CHECKPOINT, "never delete it; use another backup")]
    if control is not None and not control.state.is_clean:
        message = "it is not there, and pg_control says that the server was running when the files were copied"
        return [unusable("label-missing", path, message, _WRONG_CHECKPOINT)]
    return []


def _judge_itself(facts: BackupFacts, label: BackupLabel, control: ControlFile | None) -> list[Finding]:
    path, findings = facts.label_path, []
    named_timeline = label_rules.named_timeline(label)
    if control is not None:
        segment = label_rules.right_segment(label, control.wal_segment_size)
        if segment != label.start_segment:
            message = (
                f"it names segment {label.start_segment} for {label.start_lsn}, but with pg_control's segments of "
                f"{control.wal_segment_size} bytes that is {segment}"
            )
            findings.append(unusable("label-segment", path, message, _TWO_BACKUPS))
    if label.timeline_id != named_timeline:
        message = f"START TIMELINE is {label.timeline_id}, but the segment {label.start_segment} is of {named_timeline}"
        # The server compares them too ("... is inconsistent with START WAL LOCATION") and refuses to start.
        findings.append(unusable("label-segment", path, message, "the restored server does not start"))
    if label.checkpoint_lsn < label.start_lsn:
        message = f"CHECKPOINT LOCATION {label.checkpoint_lsn} lies before START WAL LOCATION {label.start_lsn}"
        findings.append(unusable("label-segment", path, message, _WRONG_CHECKPOINT))
    return findings


def _judge_against_manifest(facts: BackupFacts, label: BackupLabel) -> list[Finding]:
    first, end = facts.first_range, facts.end_lsn
    path, findings = facts.label_path, []
    if first is not None and not label_rules.begins_at(label, first.start, first.timeline_id):
        message = (
            f"it begins at {label.start_lsn} on timeline {label.timeline_id}, the manifest's WAL at {first.start} on "
            f"timeline {first.timeline_id}"
        )
        findings.append(unusable("label-manifest", path, message, _TWO_BACKUPS))
    elif end is not None and label.checkpoint_lsn >= end:
        message = f"CHECKPOINT LOCATION {label.checkpoint_lsn} lies behind the end of the backup at {end}"
        findings.append(unusable("label-manifest", path, message, _TWO_BACKUPS))
    if first is not None and label.method not in ("", "streamed"):
        message = f"BACKUP METHOD is {label.method!r}, but a manifest is written only by a streamed base backup"
        findings.append(unusable("label-method", path, message, _TWO_BACKUPS))
    return findings


def _judge_against_control(facts: BackupFacts, label: BackupLabel, control: ControlFile) -> list[Finding]:
    path, findings = facts.label_path, []
    if label_rules.control_is_older(label, control):
        message = f"its checkpoint at {control.checkpoint_lsn} is older than the label's at {label.checkpoint_lsn}"
        findings.append(unusable("control-age", facts.control_path, message, _TWO_BACKUPS))
    state = control.state.name.lower().replace("_", " ")
    if label_rules.server_refuses_standby(label, control):
        message = f"it is of a standby, but {facts.control_path} says that the server was {state}"
        meaning = "the restored server stops with FATAL: backup_label contains data inconsistent with control file"
        advice = "use another backup"
        if facts.is_polardb:
            advice = "a backup of a read-only (RO) node cannot be restored: back up the primary or a standby"
        findings.append(problem("label-control", path, message, meaning, advice))
    elif label_rules.standby_under_primary_label(label, control):
        message = f"it is of a primary, but {facts.control_path} says that the server was {state}"
        findings.append(unusable("label-control", path, message, _TWO_BACKUPS))
    return findings


def _incremental(facts: BackupFacts, label: BackupLabel) -> Finding:
    return warning(
        "incremental",
        facts.label_path,
        f"INCREMENTAL FROM LSN: {label.incremental_from_lsn}",
        "the backup holds only what changed since then; no server starts on it (FATAL: this is an incremental backup)",
        "restore it with the backups before it, which are looked for beside it: polarvault restore BACKUP -D DIR",
    )
