"""What the real pg_waldump says about WAL, as values."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from polarvault.instance.model import Binaries
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment

_RECORD = re.compile(
    r"rmgr: (?P<rmgr>\S+) +len \(rec/tot\): +\d+/ *(?P<length>\d+), tx: +(?P<xid>\d+),"
    r" lsn: (?P<lsn>[0-9A-F/]+), prev (?P<previous>[0-9A-F/]+), desc: (?P<description>.*)"
)
_RMGRS = [
    "XLOG", "Transaction", "Storage", "CLOG", "Database", "Tablespace", "MultiXact", "RelMap", "Standby", "Heap2",
    "Heap", "Btree", "Hash", "Gin", "Gist", "Sequence", "SPGist", "BRIN", "CommitTs", "ReplicationOrigin", "Generic",
    "LogicalMessage",
]  # fmt: skip
_TRANSACTION_END = re.compile(r"(?P<kind>COMMIT|ABORT)(?:_PREPARED)? (?:(?P<xid>\d+): )?(?P<time>[-0-9]+ [:.0-9]+) UTC")
# 19 writes eight digits behind the slash.
_LSN = re.compile(r"\b[0-9A-F]+/[0-9A-F]+\b")
_ENDS = re.compile(r"at ([0-9A-F]+/[0-9A-F]+): (?:wanted|expected)|record with incorrect prev-link \S+ at (\S+)")


@dataclass(frozen=True, slots=True)
class DumpedRecord:
    """One line of pg_waldump."""

    lsn: Lsn
    total_bytes: int
    xid: int
    rmgr: int
    previous_lsn: Lsn
    description: str

    @property
    def identity(self) -> tuple[int, ...]:
        """Everything but the description."""
        return self.lsn, self.total_bytes, self.xid, self.rmgr, self.previous_lsn

    @property
    def transaction_end(self) -> tuple[str, Lsn, int, datetime] | None:
        """Kind, LSN, xid and time of a commit or abort."""
        found = _TRANSACTION_END.match(self.description) if self.rmgr == 1 else None
        if found is None:
            return None
        time = datetime.strptime(found["time"], "%Y-%m-%d %H:%M:%S.%f").replace(tzinfo=UTC)
        return found["kind"], self.lsn, int(found["xid"] or self.xid), time


@dataclass(frozen=True, slots=True)
class Dump:
    """All records that pg_waldump reads, and what it says about the place where it stops."""

    records: list[DumpedRecord]
    said: str

    @property
    def stopped_at(self) -> Lsn | None:
        """Where it missed a record, if it says so."""
        found = _ENDS.search(self.said)
        return Lsn.parse(found[1] or found[2]) if found else None


def waldump(installation: Binaries, directory: Path, start: Lsn, segment_bytes: int, *, timeline_id: int) -> Dump:
    """Run pg_waldump from a record on; it stops where it finds no record."""
    first = WalSegment.holding(start, timeline_id, segment_bytes).file_name
    # Without names it takes the segment size from any file, such as one that is prepared and holds only zeros.
    last = max(p.name for p in directory.glob(f"{timeline_id:08X}*") if len(p.name) == 24)
    finished = subprocess.run(
        [installation.program("pg_waldump"), "-p", directory, "-s", str(start), first, last],
        capture_output=True, text=True, errors="replace", check=False, env={**os.environ, "TZ": "UTC", "LC_ALL": "C"},
    )  # fmt: skip
    matches = [_RECORD.match(line) for line in finished.stdout.splitlines()]
    records = [
        DumpedRecord(
            Lsn.parse(m["lsn"]), int(m["length"]), int(m["xid"]), _RMGRS.index(m["rmgr"]),
            Lsn.parse(m["previous"]), _LSN.sub(lambda found: str(Lsn.parse(found[0])), m["description"]),
        )
        for m in matches if m
    ]  # fmt: skip
    return Dump(records, finished.stderr)
