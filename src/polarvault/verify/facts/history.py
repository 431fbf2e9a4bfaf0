"""Timeline history files in pg_wal: recovery reads the one of the timeline that it goes to.

No manifest lists them when WAL was streamed, and they have no checksum. So what they say is compared with what
backup_label and the manifest say.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence

from polarvault.backupset.wal.tars import MAX_HISTORY_BYTES
from polarvault.errors import IntegrityError
from polarvault.model.finding import Finding, problem
from polarvault.model.lsn import Lsn
from polarvault.pgfiles.backup_label import BackupLabel
from polarvault.storage.below import Below
from polarvault.verify.facts.backup import WalRange
from polarvault.verify.files.trees import unreadable
from polarvault.wal.history import TimelineHistory
from polarvault.wal.names import is_history_name

# Server: access/transam/xlogrecovery.c and timeline.c.
_STOPS = "the restored server stops with FATAL: a syntax error in the file, or a timeline that is not its own"
_COPY = "take another copy of the file, from the server's pg_wal or a WAL archive"


def read_histories(directory: str, title: str) -> Iterator[tuple[str, bytes | OSError]]:
    """Yield name, as findings show it, and content of each history file of a plain backup; title: of the half."""
    if not os.path.isdir(directory):
        return
    try:
        tree = Below(directory)
    except OSError as trouble:
        yield f"{title}pg_wal", trouble
        return
    with tree:
        for name in sorted(filter(is_history_name, tree.names())):
            subject = f"{title}pg_wal/{name}"
            try:
                yield subject, tree.read(name, MAX_HISTORY_BYTES)
            except OSError as trouble:
                yield subject, trouble


def judge_histories(
    histories: Iterable[tuple[str, bytes | OSError]], label: BackupLabel | None, ranges: Sequence[WalRange]
) -> Iterator[Finding]:
    """Yield a finding for each history file that is damaged, or that contradicts the rest."""
    known = [(span.timeline_id, span.start) for span in ranges]
    if label is not None:
        known += [(label.timeline_id, label.checkpoint_lsn)]
    for subject, content in histories:
        if isinstance(content, OSError):
            yield unreadable("read file", subject, content)
            continue
        try:
            history = TimelineHistory.parse(content, int(subject[-16:-8], 16))
        except IntegrityError as damage:
            yield problem("wal-history", subject, damage.message, _STOPS, _COPY)
        else:
            yield from _contradictions(subject, history, known)


def _contradictions(subject: str, history: TimelineHistory, known: Sequence[tuple[int, Lsn]]) -> Iterator[Finding]:
    if all(timeline_id != history.timeline_id for timeline_id, _ in known):
        return  # Of a timeline that this backup does not go to.
    for timeline_id, lsn in known:
        owner = history.timeline_of(lsn)
        if owner != timeline_id:
            message = f"by it {lsn} is on timeline {owner}, by the backup on timeline {timeline_id}"
            yield problem("wal-history", subject, message, _STOPS, _COPY)
            return
