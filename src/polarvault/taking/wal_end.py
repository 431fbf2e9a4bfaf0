"""The end of the WAL: have it flushed, wait for it, prove that the end-of-backup record is in what was saved."""

from __future__ import annotations

import time

from polarvault.errors import PolarvaultError, WalIncomplete
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.server.connection import Connector
from polarvault.server.wal_stream import WalSink, WalStream
from polarvault.taking.facts import ReceivedBackup
from polarvault.taking.reporter import BackupReporter
from polarvault.wal.backup_end import backup_end_problem

_SAY_AFTER_S = 5.0


def finish_wal(
    received: ReceivedBackup, connector: Connector, reporter: BackupReporter, wal: WalStream | None,
    sink: WalSink | None,
) -> None:  # fmt: skip
    """Return when all WAL up to the stop LSN has been received and checked; raise WalIncomplete otherwise."""
    identity = received.facts.identity
    if wal is not None:
        wal.stop_at(received.stop_lsn)
    is_polardb = identity.shared_storage or identity.polar_version is not None
    if is_polardb and not identity.in_recovery:
        _flush_stop_record(connector, reporter)
    if wal is None or sink is None:
        return
    reporter.step("waiting for the WAL stream to finish ...")
    started, said = time.monotonic(), False
    while not wal.wait(0.2):
        if not said and time.monotonic() - started > _SAY_AFTER_S:
            said = True
            reporter.note(_what_takes_time(received.stop_lsn, wal.received))
    if not identity.in_recovery and not identity.is_newer:
        check_backup_end(sink, received, identity.segment_size_bytes)


def _what_takes_time(stop: Lsn, got: Lsn) -> str:
    if got >= stop:
        return f"all WAL up to {stop} has been received and is being written"
    return f"waiting for WAL up to {stop}, received up to {got}: the server has not flushed the end of the backup yet"


def check_backup_end(sink: WalSink, received: ReceivedBackup, segment_size_bytes: int) -> None:
    """Read the end-of-backup record back from what was saved; raise WalIncomplete if it is not there."""

    def read(lsn: int, length: int) -> bytes:
        segment = WalSegment.holding(lsn, received.stop_timeline_id, segment_size_bytes)
        return sink.read(segment, lsn - segment.start, length)

    problem = backup_end_problem(
        read,
        start_lsn=Lsn(received.facts.start.start_lsn),
        stop_lsn=received.stop_lsn,
        segment_size_bytes=segment_size_bytes,
    )
    if problem is not None:
        raise WalIncomplete(
            f"the backup's WAL lacks its end-of-backup record: {problem}",
            hint="such a backup cannot be restored without more WAL; take it again",
        )


def _flush_stop_record(connector: Connector, reporter: BackupReporter) -> None:
    """Make PolarDB write the stop record out now.

    Without WAIT the server does not flush it, with shared storage or without; the next flush comes up to 20 s later
    (facts 1.6). A logical message with
    a flush of its own costs nothing and needs no privilege.
    """
    try:
        connection = connector.sql()
        try:
            connection.query("SELECT pg_logical_emit_message(true, 'polarvault', 'end of base backup')")
        finally:
            connection.close()
    except PolarvaultError as problem:
        reporter.note(f"cannot make the server flush its WAL ({problem.message}); waiting for it may take 20 s")
