"""Keep a timeline's history in a repository, if it continues what is there. Shared by `wal push` and `wal stream`.

`polarvault wal push` imports this: nothing heavy may be imported at the top.
"""

from __future__ import annotations

from polarvault.errors import TimelineDiverged

TYPE_CHECKING = False
if TYPE_CHECKING:
    from polarvault.repository.wal.ranges import RepositoryWal

TWO_SERVERS = (
    "see which of them is the cluster (a restored copy, an old primary that still runs?); let the other one archive "
    "under another cluster name; nothing was overwritten"
)


def put_history(wal: RepositoryWal, timeline_id: int, content: bytes, *, origin: str, place: str) -> int:
    """Write a timeline's history, durable on return; return how many bytes were new.

    origin: how messages name where it comes from; place: the cluster and the repository. TimelineDiverged if there is
    another one, or one of an ancestor that it does not continue.
    """
    from polarvault.wal.history import TimelineHistory, history_file_name

    name = history_file_name(timeline_id)
    history = TimelineHistory.parse(content, timeline_id)
    before = wal.read_file(timeline_id, name)
    if before == content:
        return 0
    if before is not None:
        there = TimelineHistory.parse(before, timeline_id)
        raise TimelineDiverged(
            f"{origin} and what {place} has of {name} differ: timeline {timeline_id} "
            f"began at {history.start} of timeline {history.entries[-1].timeline_id} here, and at {there.start} of "
            f"timeline {there.entries[-1].timeline_id} there: two servers were promoted",
            hint=TWO_SERVERS,
        )
    for number, entry in enumerate(history.entries):
        older = (
            wal.read_file(entry.timeline_id, history_file_name(entry.timeline_id)) if entry.timeline_id > 1 else None
        )
        if older is None:
            continue
        known = [(one.timeline_id, one.switch_lsn) for one in TimelineHistory.parse(older, entry.timeline_id).entries]
        if known != [(one.timeline_id, one.switch_lsn) for one in history.entries[:number]]:
            raise TimelineDiverged(
                f"{origin} does not continue what {place} has: there timeline {entry.timeline_id} has other ancestors",
                hint=TWO_SERVERS,
            )
    wal.put_file(timeline_id, name, content)
    return len(content)
