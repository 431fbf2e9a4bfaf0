"""Where receiving goes on, where the WAL that is kept and the server's position do not come from one moment."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from polarvault.errors import TimelineDiverged
from polarvault.model.lsn import Lsn
from polarvault.server.identity import ServerIdentity
from polarvault.wal.history import TimelineHistory
from polarvault.wal.store import StartPoint
from polarvault.walarchive.receive.request import ReceiveRequest
from polarvault.walarchive.receive.start import StartPoints
from polarvault.walarchive.receive.stop import StopRequest
from polarvault.wire.messages import ResultSet

MB = 1 << 20
IDENTITY = ServerIdentity(
    system_identifier="1", timeline_id=1, flush_lsn=Lsn(24 * MB), version_num=190000, version="19",
    segment_size_bytes=16 * MB, relation_segment_bytes=1 << 30, block_bytes=8192, data_checksums=True,
    full_page_writes=True, group_access=False, in_recovery=False, log_directory="log", polar_version=None,
    shared_data_directory=None,
)  # fmt: skip


class Writer:
    """Has received nothing yet, and may begin anywhere."""

    timeline_id, received, begins_anywhere = 0, Lsn(0), True

    def can_go_on(self, timeline_id: int) -> bool:
        return self.timeline_id == timeline_id != 0

    def begin(self, lsn: Lsn, timeline_id: int) -> None:
        self.received, self.timeline_id = lsn, timeline_id


class Server:
    """Answers where its WAL ends now."""

    def __init__(self, flushed: Lsn) -> None:
        self.flushed, self.asked = flushed, 0

    def query(self, sql: str) -> ResultSet:
        assert sql == "IDENTIFY_SYSTEM"
        self.asked += 1
        return ResultSet(rows=[("1", "1", str(self.flushed), None)])


def starts(kept: Lsn) -> StartPoints:
    """Receive into a store that has WAL up to a place."""
    store = SimpleNamespace(
        resume_point=lambda cluster, warn, **how: StartPoint(1, kept), history=lambda timeline_id: None
    )
    reporter = SimpleNamespace(warning=lambda text: None)
    return StartPoints(ReceiveRequest(), cast("Any", store), cast("Any", None), cast("Any", reporter), StopRequest())


def test_a_backup_that_writes_wal_into_the_repository_meanwhile_is_no_server_that_was_set_back() -> None:
    """Asking the repository takes a while, and others write there: the server's first answer is the older one."""
    kept = Lsn(33 * MB)
    server, writer = Server(Lsn(34 * MB)), Writer()
    found = starts(kept).find(cast("Any", server), IDENTITY, TimelineHistory(1), "here", cast("Any", writer))
    assert (found, writer.received, server.asked) == (StartPoint(1, kept), kept, 1)


def test_a_server_that_was_set_back_is_refused_until_it_is_on_another_timeline() -> None:
    server, begun = Server(Lsn(25 * MB)), starts(Lsn(33 * MB))
    for _ in range(2):
        with pytest.raises(TimelineDiverged, match="its WAL ended at 0/1900000, but up to 0/2100000 was received"):
            begun.find(cast("Any", server), IDENTITY, TimelineHistory(1), "here", cast("Any", Writer()))
        # It has written as much again, which nobody can tell from what it had.
        server.flushed = Lsn(64 * MB)
