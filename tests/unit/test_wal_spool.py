"""The spool of `wal stream`: what is in it after any crash, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from polarvault.errors import IntegrityError, PolarvaultError, UsageError
from polarvault.model.lsn import Lsn
from polarvault.walarchive.streaming.slices import HistoryItem
from polarvault.walarchive.streaming.spool import Spool, SpooledSlice

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
    found.close()
    (file,) = (path / "shop/stream").glob("*.slice")
    return file


def left(path: Path) -> list[bytes]:
    found = spool(path)
    try:
        return [item.content() for _, item in found.waiting() if isinstance(item, SpooledSlice)]
    finally:
        found.close()


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
    first.close()
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
    again.close()
    assert spool(tmp_path).waiting() == []


def test_a_disk_that_is_full_leaves_whole_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    found.close()
    assert left(tmp_path) == [b"whole, again"]


def test_only_the_newest_slice_may_be_cut(tmp_path: Path) -> None:
    made = spool(tmp_path)
    for number in range(2):
        one = made.begin(IDENTIFIER, MB, 1, Lsn(MB + 9 * number))
        one.append([memoryview(b"%08d" % number)])
        one.append([memoryview(b"x")])
        one.sync()
        one.close()
    made.close()
    older, newest = sorted((tmp_path / "shop/stream").glob("*.slice"))
    for file, length, expected in ((newest, -1, 2), (newest, 39, 1)):
        content = file.read_bytes()
        file.write_bytes(content[:length])
        assert len(left(tmp_path)) == expected
        file.write_bytes(content)
    # It was synced before the next one was begun, and acknowledged: what is missing of it is a gap.
    content = older.read_bytes()
    for changed in (content[:-1], content[:20], content[:45] + b"!" + content[46:]):
        older.write_bytes(changed)
        with pytest.raises(IntegrityError, match=older.name):
            left(tmp_path)
        assert older.read_bytes() == changed
        assert newest.exists()


def test_a_slice_that_was_damaged_while_it_waited_is_not_taken_for_a_shorter_one(tmp_path: Path) -> None:
    file = written(tmp_path, [b"first" * 20, b"second" * 20])
    ((_, item),) = spool(tmp_path).waiting()
    assert isinstance(item, SpooledSlice)
    content = file.read_bytes()
    file.write_bytes(content[:-30] + b"!" + content[-29:])
    with pytest.raises(IntegrityError, match=file.name):
        item.content()
    assert file.exists()


def test_one_program_at_a_time(tmp_path: Path) -> None:
    first = spool(tmp_path)
    made = first.begin(IDENTIFIER, MB, 1, Lsn(MB))
    with pytest.raises(UsageError, match="another program uses the spool"):
        spool(tmp_path)
    made.append([memoryview(b"goes on")])
    assert made.content() == b"goes on"
    first.close()
    spool(tmp_path).close()


def test_a_spool_into_which_others_may_write_is_refused(tmp_path: Path) -> None:
    spool(tmp_path).close()
    place = tmp_path / "shop/stream"
    for mode in (0o777, 0o720):
        place.chmod(mode)
        with pytest.raises(UsageError, match="others may write into it"):
            spool(tmp_path)
    place.chmod(0o700)
    if os.geteuid() == 0:
        os.chown(place, 65534, 65534)
        with pytest.raises(UsageError, match="belongs to another account"):
            spool(tmp_path)


@pytest.mark.parametrize("first", [2 * MB - 10, (1 << 64) - 10])
def test_more_than_a_segment_holds_is_refused(tmp_path: Path, first: int) -> None:
    made = spool(tmp_path)
    one = made.begin(IDENTIFIER, MB, 1, Lsn(first))
    one.append([memoryview(b"eleven byte")])
    one.sync()
    with pytest.raises(IntegrityError, match="more than its segment has"):
        made.waiting()


def test_a_file_with_the_highest_number_does_not_hide_what_comes_later(tmp_path: Path) -> None:
    spool(tmp_path).close()
    (tmp_path / "shop/stream" / f"{10**16 - 1}-00000001-0000000000100000.slice").write_bytes(b"")
    with pytest.raises(IntegrityError, match="highest number"):
        spool(tmp_path).begin(IDENTIFIER, MB, 1, Lsn(MB))


def test_strangers_in_the_spool_are_left_alone_or_refused(tmp_path: Path) -> None:
    spool(tmp_path).close()
    place = tmp_path / "shop/stream"
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    for name in ("-rf", "a\nb", "0000000000000001-00000001-0000000000100000.slice\n", "x.slice", "..slice"):
        (place / name).write_bytes(b"?")
    assert left(tmp_path) == []
    name = "0000000000000001-00000001-0000000000100000.slice"
    (place / name).symlink_to(secret)
    with pytest.raises(PolarvaultError, match="symbolic link"):
        left(tmp_path)
    (place / name).unlink()
    os.mkfifo(place / name)
    with pytest.raises(PolarvaultError, match="not a regular file"):
        left(tmp_path)
    assert secret.read_bytes() == b"secret"
