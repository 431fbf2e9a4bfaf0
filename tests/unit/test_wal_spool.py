"""The spool of `wal stream`: what is in it after any crash, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from polarvault.errors import IntegrityError, PolarvaultError
from polarvault.model.lsn import Lsn
from polarvault.walarchive.streaming.slices import HistoryItem, Spool, SpooledSlice

IDENTIFIER, MB = 7_000_000_000_000_000_001, 1 << 20


def spool(path: Path) -> Spool:
    return Spool(str(path), "shop", 64 * MB)


def written(path: Path, parts: list[bytes]) -> Path:
    found = spool(path)
    made = found.begin(IDENTIFIER, MB, 1, Lsn(MB))
    for part in parts:
        made.append([memoryview(part)])
    made.sync()
    assert made.durable == made.last == MB + sum(map(len, parts))
    made.close()
    (file,) = (path / "shop/stream").glob("*.slice")
    return file


def left(path: Path) -> list[bytes]:
    return [item.content() for _, item in spool(path).waiting() if isinstance(item, SpooledSlice)]


def test_what_was_synced_is_there_and_what_a_crash_cut_is_not(tmp_path: Path) -> None:
    parts = [b"first", b"second" * 1000, b"third"]
    file = written(tmp_path, parts)
    content = file.read_bytes()
    whole = [b"".join(parts[:number]) for number in range(4)]
    seen = set()
    for length in range(len(content), -1, -1 if len(content) < 300 else -7):
        file.write_bytes(content[:length])
        found = left(tmp_path)
        assert found in ([], *([one] for one in whole if one)), length
        seen.add(found[0] if found else b"")
        # What has nothing in it is removed.
        if not found:
            assert not file.exists()
    assert seen == set(whole)


def test_a_flipped_bit_ends_a_slice_or_is_refused(tmp_path: Path) -> None:
    parts = [b"first" * 20, b"second" * 20]
    file = written(tmp_path, parts)
    content = bytearray(file.read_bytes())
    for at in range(len(content)):
        changed = bytearray(content)
        changed[at] ^= 4
        file.write_bytes(changed)
        try:
            found = left(tmp_path)
        except IntegrityError:
            continue
        assert found in ([], [parts[0]]), at
    file.write_bytes(content)
    assert left(tmp_path) == [b"".join(parts)]


def test_slices_and_histories_come_back_in_their_order(tmp_path: Path) -> None:
    first = spool(tmp_path)
    for timeline, at in ((1, 3), (1, 4), (2, 4)):
        if timeline == 2:
            first.keep_history(2, b"1\t0/400000\tnone\n")
        made = first.begin(IDENTIFIER, MB, timeline, Lsn(at * MB))
        made.append([memoryview(b"%d" % at)])
        made.sync()
    again = spool(tmp_path)
    found = again.waiting()
    assert [(one.timeline_id, isinstance(one, HistoryItem)) for _, one in found] == [
        (1, False), (1, False), (2, True), (2, False)
    ]  # fmt: skip
    assert [head and head.first for head, _ in found] == [3 * MB, 4 * MB, None, 4 * MB]
    # Numbers go on: what comes later sorts behind.
    assert again.begin(IDENTIFIER, MB, 2, Lsn(5 * MB)).name > max(
        one.name or "" for _, one in found
    )  # fmt: skip
    for _, one in found:
        if isinstance(one, HistoryItem):
            again.remove(one.name or "")
        else:
            one.remove()
    assert spool(tmp_path).waiting() == []


def test_a_disk_that_is_full_leaves_whole_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    found = spool(tmp_path)
    made = found.begin(IDENTIFIER, MB, 1, Lsn(MB))
    made.append([memoryview(b"whole")])
    real = os.writev

    def torn(descriptor: int, views: list[bytes]) -> int:
        real(descriptor, [b"".join(views)[:9]])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "writev", torn)
    with pytest.raises(PolarvaultError, match="No space left") as problem:
        made.append([memoryview(b"does not fit")])
    assert problem.value.id == "disk-full"
    monkeypatch.undo()
    made.append([memoryview(b", again")])
    assert made.content() == b"whole, again"
    assert left(tmp_path) == [b"whole, again"]
