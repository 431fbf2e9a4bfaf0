"""A restore that is confined to one directory touches nothing else: the restore of a drill."""

from __future__ import annotations

from pathlib import Path

import pytest

from polarvault.backupset.model import Area, Inventory, Tablespace
from polarvault.errors import StorageFailed
from polarvault.model.lsn import Lsn
from polarvault.recovery.side_effects import check_new_tablespaces
from polarvault.restore.model import RestoreRequest
from polarvault.restore.plan.places import plan_layout
from polarvault.wal.scan import MarkKind, WalMark


def test_tablespaces_go_into_its_directory_wherever_they_were() -> None:
    spaces = (Tablespace(16400, "/live/fast", None), Tablespace(16401, "/live/slow", "/backup/slow"))
    inventory = Inventory(
        files={}, sizes={Area.LOCAL: 1}, tablespace_sizes={}, wal={}, names=frozenset(), tablespaces=spaces,
        has_control=True, control=None, group_readable=False, file_count=1,
    )  # fmt: skip
    request = RestoreRequest(backup="/b", target="/s/data", confined_to="/s")
    layout = plan_layout(request, inventory, had_shared_half=False)
    assert layout.tablespaces == {16400: "/s/tablespaces/16400", 16401: "/s/tablespaces/16401"}


def test_replay_may_not_make_a_tablespace_elsewhere_even_in_an_empty_directory(tmp_path: Path) -> None:
    mark = WalMark(MarkKind.TABLESPACE, Lsn(0x3000028), Lsn(0x3000100), name=str(tmp_path))
    check_new_tablespaces([mark], 18)
    with pytest.raises(StorageFailed, match="outside") as refused:
        check_new_tablespaces([mark], 18, confined=True)
    assert "--target-lsn 0/3000028" in (refused.value.hint or "")
    inside = WalMark(MarkKind.TABLESPACE, Lsn(0x3000028), Lsn(0x3000100), name="")
    check_new_tablespaces([inside], 18, confined=True)
