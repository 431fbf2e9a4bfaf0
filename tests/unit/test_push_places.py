"""WAL pushed into a plain directory, and kept in a spool while the repository is away."""

from __future__ import annotations

import gzip
import os
import time
from pathlib import Path

import pytest

from polarvault.cli.wal_push import ARCHIVED, FAILED, run
from polarvault.errors import DiskFull, IntegrityError, PolarvaultError, StoreUnreachable, UsageError
from polarvault.model.segment import WalSegment
from polarvault.walarchive.fetch import Fetcher
from polarvault.walarchive.pushing.directory import DirectoryPusher
from polarvault.walarchive.pushing.spool import Spool, push_or_keep
from polarvault.walfiles.directory import wal_sources
from support.wal_segments import PAGE_BYTES, segment_content

SEGMENT = WalSegment(1, 5, 1 << 20)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "archive"
    path.mkdir()
    return path


def made(tmp_path: Path, name: str, content: bytes) -> str:
    path = tmp_path / "pg_wal" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return str(path)


def listed(directory: Path) -> list[str]:
    return sorted(name for name in os.listdir(directory) if not name.startswith("."))


# --to


def test_a_directory_gets_what_a_fetch_serves(tmp_path: Path, archive: Path) -> None:
    content = segment_content(SEGMENT)
    path = made(tmp_path, SEGMENT.file_name, content)
    history = made(tmp_path, "00000002.history", b"1\t0/5800000\tpromoted\n")
    backup = made(tmp_path, f"{SEGMENT.file_name}.00000028.backup", b"START WAL LOCATION: 0/5000028\n")
    for one in (path, history, backup):
        assert run([one, "--to", str(archive)]) == ARCHIVED
        before = (archive / os.path.basename(one)).stat()
        assert run([one, "--to", str(archive)]) == ARCHIVED
        assert (archive / os.path.basename(one)).stat().st_ino == before.st_ino
    assert listed(archive) == sorted(map(os.path.basename, (path, history, backup)))
    assert (archive / SEGMENT.file_name).read_bytes() == content
    fetcher = Fetcher(wal_sources([str(archive)]))
    assert fetcher.fetch(SEGMENT.file_name, str(tmp_path / "RECOVERYXLOG"))
    assert (tmp_path / "RECOVERYXLOG").read_bytes() == content


def test_other_bytes_are_refused_and_both_are_described(tmp_path: Path, archive: Path) -> None:
    content = segment_content(SEGMENT)
    DirectoryPusher(str(archive)).push(made(tmp_path, SEGMENT.file_name, content))
    other = segment_content(SEGMENT, system_identifier=42)
    with pytest.raises(IntegrityError, match=r"system identifier 42, timeline 1.*7000000000000000001.*byte 24 on"):
        DirectoryPusher(str(archive)).push(made(tmp_path, SEGMENT.file_name, other))
    last = content[:-1] + b"x"
    with pytest.raises(IntegrityError, match=f"from byte {len(content) - 1} on"):
        DirectoryPusher(str(archive)).push(made(tmp_path, SEGMENT.file_name, last))
    assert (archive / SEGMENT.file_name).read_bytes() == content
    DirectoryPusher(str(archive)).push(made(tmp_path, "00000002.history", b"1\t0/5800000\tone\n"))
    with pytest.raises(IntegrityError, match="two servers write timeline 2"):
        DirectoryPusher(str(archive)).push(made(tmp_path, "00000002.history", b"1\t0/5000000\ttwo\n"))


def test_what_was_received_compressed_or_cut_short_counts(tmp_path: Path, archive: Path) -> None:
    content = segment_content(SEGMENT)
    path = made(tmp_path, SEGMENT.file_name, content)
    (archive / f"{SEGMENT.file_name}.gz").write_bytes(gzip.compress(content))
    assert DirectoryPusher(str(archive)).push(path) == 0
    assert listed(archive) == [f"{SEGMENT.file_name}.gz"]
    # A careless cp was cut off: nobody knows whose it is.
    (archive / f"{SEGMENT.file_name}.gz").unlink()
    (archive / SEGMENT.file_name).write_bytes(content[:5000])
    with pytest.raises(IntegrityError, match="from byte 5000 on"):
        DirectoryPusher(str(archive)).push(path)


def test_a_partial_segment_grows_and_never_shrinks(tmp_path: Path, archive: Path) -> None:
    name = f"{SEGMENT.file_name}.partial"
    short = segment_content(SEGMENT, pages=3).ljust(SEGMENT.size_bytes, b"\0")
    longer = segment_content(SEGMENT, pages=6).ljust(SEGMENT.size_bytes, b"\0")
    pusher = DirectoryPusher(str(archive))
    assert pusher.push(made(tmp_path, name, short)) == 3 * PAGE_BYTES
    assert pusher.push(made(tmp_path, name, longer)) == 6 * PAGE_BYTES
    assert pusher.push(made(tmp_path, name, short)) == 0
    assert (archive / name).read_bytes() == longer
    changed = bytearray(longer)
    changed[2 * PAGE_BYTES + 100] ^= 1
    with pytest.raises(IntegrityError):
        pusher.push(made(tmp_path, name, bytes(changed)))
    assert pusher.push(made(tmp_path, SEGMENT.file_name, segment_content(SEGMENT))) == SEGMENT.size_bytes
    assert pusher.push(made(tmp_path, name, longer)) == 0


def test_a_servers_pg_wal_is_no_archive(tmp_path: Path, archive: Path) -> None:
    (archive / "archive_status").mkdir()
    with pytest.raises(UsageError, match="pg_wal of a server"):
        DirectoryPusher(str(archive)).push(made(tmp_path, SEGMENT.file_name, segment_content(SEGMENT)))
    assert run([str(tmp_path / SEGMENT.file_name), "--to", str(tmp_path / "nowhere")]) == FAILED
    assert run([str(tmp_path / SEGMENT.file_name), "--to", str(archive), "--cluster", "shop"]) == FAILED


# --spool


class Place:
    """A repository that is there or not, and refuses one name."""

    def __init__(self) -> None:
        self.is_away, self.refused, self.held = False, "", dict[str, bytes]()

    def push(self, path: str) -> None:
        if self.is_away:
            raise StoreUnreachable("no answer")
        if os.path.basename(path) == self.refused:
            raise IntegrityError("other bytes")
        self.held[os.path.basename(path)] = Path(path).read_bytes()


def hour_passed(spool: Spool) -> None:
    """Let the repository be asked again."""
    os.utime(os.path.join(spool.path, ".away"), (0, 0))


def test_nothing_is_lost_while_the_repository_is_away(tmp_path: Path) -> None:
    place, spool = Place(), Spool(str(tmp_path / "spool"), "shop", 100 << 20)
    paths = [
        made(tmp_path, one.file_name, segment_content(one)) for one in (WalSegment(1, n, 1 << 20) for n in range(1, 9))
    ]
    place.is_away = True
    for path in paths[:5]:
        assert push_or_keep(path, place.push, spool)[0]
        # The server recycles what counts as archived.
        content = Path(path).read_bytes()
        assert Path(spool.path, os.path.basename(path)).read_bytes() == content
        os.unlink(path)
    assert len(spool.waiting()) == 5
    place.is_away = False
    # It is not asked at once, so that an archiver does not wait for a time-out at each segment.
    assert push_or_keep(paths[5], place.push, spool) == (True, None)
    assert place.held == {}
    hour_passed(spool)
    assert push_or_keep(paths[6], place.push, spool) == (False, None)
    assert list(place.held) == [os.path.basename(path) for path in paths[:7]]
    assert spool.waiting() == []
    assert all(content == segment_content(WalSegment.parse(n, 1 << 20)) for n, content in place.held.items())


def test_after_a_flush_the_next_file_does_not_wait_in_the_spool(tmp_path: Path) -> None:
    place, spool = Place(), Spool(str(tmp_path / "spool"), "shop", 100 << 20)
    segments = [WalSegment(1, number, 1 << 20) for number in range(1, 4)]
    first, second, third = (made(tmp_path, one.file_name, segment_content(one)) for one in segments)
    place.is_away = True
    assert push_or_keep(first, place.push, spool)[0]
    with pytest.raises(StoreUnreachable):
        spool.upload(place.push)
    place.is_away = False
    assert push_or_keep(second, place.push, spool) == (True, None)
    assert spool.upload(place.push, within_s=None) == 2
    assert push_or_keep(third, place.push, spool) == (False, None)
    assert sorted(place.held) == [one.file_name for one in segments]


def test_one_that_took_minutes_to_fail_is_left_alone_for_longer(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path / "spool"), "shop", 100 << 20)
    mark = os.path.join(spool.path, ".away")

    def is_left_alone(took_s: float, age_s: float) -> bool:
        spool.note_away(took_s)
        os.utime(mark, (time.time() - age_s,) * 2)
        return spool.was_away()

    assert is_left_alone(0.1, 10)
    assert not is_left_alone(0.1, 60)
    # A request that hangs is given up after five minutes, in which the server archives nothing.
    assert is_left_alone(300, 400)
    assert not is_left_alone(300, 700)
    assert not is_left_alone(1e9, 7300)
    for content in ("", "nonsense", "-1", "9" * 5000):
        Path(mark).write_text(content)
        os.utime(mark, (time.time() - 7300,) * 2)
        assert not spool.was_away()


def test_a_spool_into_which_others_may_write_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "spool/shop"
    place.mkdir(parents=True)
    for mode in (0o777, 0o770):
        place.chmod(mode)
        with pytest.raises(UsageError, match="others may write into it"):
            Spool(str(tmp_path / "spool"), "shop", 1 << 20)
    place.chmod(0o700)
    Spool(str(tmp_path / "spool"), "shop", 1 << 20)


def test_a_full_spool_refuses_and_drops_nothing(tmp_path: Path) -> None:
    place, spool = Place(), Spool(str(tmp_path / "spool"), "shop", (2 << 20) + 100)
    place.is_away = True
    names = [WalSegment(1, number, 1 << 20) for number in (1, 2, 3)]
    paths = [made(tmp_path, one.file_name, segment_content(one)) for one in names]
    for path in paths[:2]:
        push_or_keep(path, place.push, spool)
    with pytest.raises(DiskFull, match="--spool-max allows 2097252"):
        push_or_keep(paths[2], place.push, spool)
    assert [os.path.basename(path) for path in spool.waiting()] == [one.file_name for one in names[:2]]
    # What is in it already is no addition: the server asks again after a crash.
    assert push_or_keep(paths[1], place.push, spool)[0]


def test_what_is_refused_is_neither_kept_nor_in_the_way(tmp_path: Path) -> None:
    place, spool = Place(), Spool(str(tmp_path / "spool"), "shop", 100 << 20)
    names = [WalSegment(1, number, 1 << 20) for number in (1, 2, 3)]
    paths = [made(tmp_path, one.file_name, segment_content(one)) for one in names]
    place.refused = names[2].file_name
    with pytest.raises(IntegrityError):
        push_or_keep(paths[2], place.push, spool)
    assert spool.waiting() == []
    place.is_away, place.refused = True, names[0].file_name
    for path in paths[:2]:
        push_or_keep(path, place.push, spool)
    place.is_away = False
    hour_passed(spool)
    is_kept, why = push_or_keep(paths[2], place.push, spool)
    assert (is_kept, str(why)) == (False, "other bytes")
    assert [os.path.basename(path) for path in spool.waiting()] == [names[0].file_name]
    assert sorted(place.held) == [names[1].file_name, names[2].file_name]


def test_histories_are_uploaded_before_the_wal_of_their_timeline(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path / "spool"), "shop", 100 << 20)
    for one in (WalSegment(2, 7, 1 << 20), WalSegment(1, 6, 1 << 20)):
        spool.keep(made(tmp_path, one.file_name, segment_content(one)))
    spool.keep(made(tmp_path, "00000002.history", b"1\t0/700000\tpromoted\n"))
    names = [os.path.basename(path) for path in spool.waiting()]
    assert names == ["00000002.history", "000000010000000000000006", "000000020000000000000007"]


@pytest.mark.parametrize("words", [["--spool", "s"], ["--spool-max", "1GB"], ["--spool", "s", "--spool-max", "much"]])
def test_a_spool_has_a_size(words: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = [word.replace("s", f"{tmp_path}/s") if word == "s" else word for word in words]
    assert run(["/x/000000010000000000000001", "--cluster", "shop", "--repo", str(tmp_path), *words]) == FAILED
    assert "--spool" in capfd.readouterr().err
    assert issubclass(DiskFull, PolarvaultError)
