"""`polarvault wal fetch` on directories made up file by file; recoveries of real servers are in tests/integration."""

from __future__ import annotations

import gzip
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import click
import lz4.frame
import pytest
import zstandard

from polarvault.cli import wal_fetch
from polarvault.cli.commands.wal import fetch as click_command
from polarvault.cli.main import run as run_program
from polarvault.errors import IntegrityError, StorageFailed, UsageError
from polarvault.model.segment import WalSegment
from polarvault.walarchive import output as output_module
from polarvault.walarchive.fetch import DEFAULT_GRACE_S, Fetcher
from polarvault.walfiles.choice import find
from polarvault.walfiles.directory import WalDirectory, wal_sources
from polarvault.walfiles.files import wal_file
from support.waiting import wait_until
from support.wal_bytes import XLOG, WalBuilder
from support.wal_segments import PAGE_BYTES, SYSTEM_IDENTIFIER, segment_content

MB = 1 << 20
SEGMENT = WalSegment.parse("000000020000000000000003", MB)
NAME = SEGMENT.file_name
CONTENT = segment_content(SEGMENT)
HISTORY = b"1\t0/300028\tno recovery target specified\n"


@pytest.fixture
def wal(tmp_path: Path) -> Path:
    (tmp_path / "wal").mkdir()
    # A directory in use is never empty.
    (tmp_path / "wal" / "00000009.history").write_bytes(HISTORY)
    return tmp_path / "wal"


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    """Where the server wants the file; at the end nothing else may be beside it."""
    place = tmp_path / "pg_wal" / "RECOVERYXLOG"
    place.parent.mkdir()
    yield place
    assert set(os.listdir(place.parent)) <= {place.name}


def fetcher(*directories: Path, **options: object) -> Fetcher:
    settings: dict[str, object] = {"grace_s": 0.0, "warn": lambda message: pytest.fail(message)}
    return Fetcher(wal_sources(list(map(str, directories))), **(settings | options))  # type: ignore[arg-type]


def pack(compression: str, content: bytes) -> bytes:
    if compression == "gz":
        return gzip.compress(content, 1)
    if compression == "lz4":
        return lz4.frame.compress(content)
    return zstandard.compress(content)


def allocated_bytes(path: Path) -> int:
    return path.stat().st_blocks * 512


@pytest.mark.parametrize("suffix", ["", ".gz", ".lz4", ".zst"])
def test_a_whole_segment_arrives_byte_for_byte(wal: Path, target: Path, suffix: str) -> None:
    (wal / (NAME + suffix)).write_bytes(pack(suffix[1:], CONTENT) if suffix else CONTENT)
    assert fetcher(wal).fetch(NAME, str(target))
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("suffix", ["", ".gz", ".lz4", ".zst"])
@pytest.mark.parametrize("name", ["00000002.history", f"{NAME}.00000028.backup"])
def test_history_and_backup_files_arrive_byte_for_byte(wal: Path, target: Path, name: str, suffix: str) -> None:
    (wal / (name + suffix)).write_bytes(pack(suffix[1:], HISTORY) if suffix else HISTORY)
    assert fetcher(wal).fetch(name, str(target))
    assert target.read_bytes() == HISTORY


@pytest.mark.parametrize("form", [".partial", ".gz.partial", ".lz4.partial", ".zst.partial", ".partial.gz"])
def test_a_short_partial_segment_gets_its_full_size_as_a_hole(wal: Path, target: Path, form: str) -> None:
    short = CONTENT[: 5 * PAGE_BYTES + 100]
    compression = form.replace(".partial", "")[1:]
    (wal / (NAME + form)).write_bytes(pack(compression, short) if compression else short)
    assert fetcher(wal).fetch(NAME, str(target))
    assert target.read_bytes() == short.ljust(MB, b"\0")
    assert allocated_bytes(target) <= 6 * PAGE_BYTES


def test_zeros_and_old_wal_behind_a_partial_segment_are_left_out(wal: Path, target: Path) -> None:
    older = segment_content(WalSegment(2, 1, MB))
    (wal / f"{NAME}.partial").write_bytes(CONTENT[: 3 * PAGE_BYTES] + older[3 * PAGE_BYTES :])
    assert fetcher(wal).fetch(NAME, str(target))
    assert target.read_bytes() == CONTENT[: 3 * PAGE_BYTES].ljust(MB, b"\0")


def test_a_gigabyte_of_zeros_takes_no_space(wal: Path, target: Path) -> None:
    """A whole segment that a switch ended early, as every PolarDB archive has them; packed it is a few kilobytes."""
    segment = WalSegment(1, 5, 1 << 30)
    packer = zstandard.ZstdCompressor().compressobj()
    with open(wal / f"{segment.file_name}.zst", "wb") as packed:
        packed.write(packer.compress(segment_content(segment, pages=20)))
        zeros = bytes(8 << 20)
        for _ in range(127):
            packed.write(packer.compress(zeros))
        packed.write(packer.compress(bytes((8 << 20) - 20 * PAGE_BYTES)) + packer.flush())
    assert fetcher(wal).fetch(segment.file_name, str(target))
    assert target.stat().st_size == 1 << 30
    assert allocated_bytes(target) <= 20 * PAGE_BYTES + 4096
    with open(target, "rb") as served:
        assert served.read(20 * PAGE_BYTES) == segment_content(segment, pages=20)


def test_holes_of_a_plain_segment_stay_holes(wal: Path, target: Path) -> None:
    segment = WalSegment(1, 5, 1 << 30)
    with open(wal / segment.file_name, "wb") as sparse:
        sparse.write(segment_content(segment, pages=20))
        sparse.truncate(1 << 30)
    assert fetcher(wal).fetch(segment.file_name, str(target))
    assert target.stat().st_size == 1 << 30
    assert allocated_bytes(target) <= 64 << 10 << 3


def test_whole_wins_over_partial_and_a_longer_partial_over_a_shorter_one(
    wal: Path, target: Path, tmp_path: Path
) -> None:
    second = tmp_path / "second"
    second.mkdir()
    (wal / f"{NAME}.partial").write_bytes(CONTENT[: 2 * PAGE_BYTES].ljust(MB, b"\0"))
    (second / f"{NAME}.gz.partial").write_bytes(gzip.compress(CONTENT[: 3 * PAGE_BYTES]))
    assert fetcher(wal, second).fetch(NAME, str(target))
    assert target.read_bytes() == CONTENT[: 3 * PAGE_BYTES].ljust(MB, b"\0")
    (second / f"{NAME}.gz").write_bytes(gzip.compress(CONTENT))
    assert fetcher(wal, second).fetch(NAME, str(target))
    assert target.read_bytes() == CONTENT


def test_a_partial_file_is_served_under_its_own_name_only_when_asked_for(wal: Path, target: Path) -> None:
    (wal / NAME).write_bytes(CONTENT)
    assert not fetcher(wal).fetch(f"{NAME}.partial", str(target))
    (wal / f"{NAME}.partial").write_bytes(CONTENT[:PAGE_BYTES])
    assert fetcher(wal).fetch(f"{NAME}.partial", str(target))
    assert target.read_bytes() == CONTENT[:PAGE_BYTES].ljust(MB, b"\0")


def test_what_no_directory_has_is_not_there(wal: Path, target: Path) -> None:
    for name in (NAME, "00000003.history", f"{NAME}.00000028.backup"):
        assert not fetcher(wal).fetch(name, str(target))
    (wal / f"{NAME}.partial").write_bytes(bytes(MB))  # As pg_receivewal makes it before the first byte arrives.
    assert not fetcher(wal).fetch(NAME, str(target))
    (wal / f"{NAME}.partial").unlink()
    (wal / f"{NAME}.gz.partial").write_bytes(b"\x1f\x8b")
    assert not fetcher(wal).fetch(NAME, str(target))


@pytest.mark.parametrize("name", [NAME, "00000003.history"])
def test_a_form_that_cannot_be_read_is_not_the_end_of_the_wal(wal: Path, target: Path, name: str) -> None:
    (wal / f"{name}.sha256").write_bytes(b"of something that was here")
    assert not fetcher(wal).fetch(name, str(target))
    (wal / f"{name}.xz").write_bytes(b"\xfd7zXZ")
    # Nor is it replaced by a partial one, which ends earlier.
    (wal / f"{NAME}.partial").write_bytes(CONTENT[:PAGE_BYTES])
    with pytest.raises(StorageFailed, match=rf"{name}\.xz\" is compressed or encrypted in a way") as caught:
        fetcher(wal).fetch(name, str(target))
    assert "unpack it" in str(caught.value.hint)
    assert not target.exists()


def test_a_directory_that_cannot_be_asked_is_not_the_end_of_the_wal(wal: Path, target: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    with pytest.raises(StorageFailed, match=f'WAL directory "{gone}" cannot be read: No such file') as caught:
        fetcher(wal, gone).fetch(NAME, str(target))
    assert caught.value.hint == f"mount its file system or correct --wal; try as the server's user: ls {gone}"
    # It may have more than the partial file that the other one has.
    (wal / f"{NAME}.partial").write_bytes(CONTENT[:PAGE_BYTES])
    with pytest.raises(StorageFailed, match="cannot be read"):
        fetcher(wal, gone).fetch(NAME, str(target))
    # What is finished is the same everywhere.
    (wal / NAME).write_bytes(CONTENT)
    assert fetcher(gone, wal).fetch(NAME, str(target))
    with pytest.raises(StorageFailed, match="Not a directory"):
        fetcher(wal / NAME).fetch(NAME, str(target))


def test_an_empty_directory_can_be_taken_for_one_that_is_not_mounted(target: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(StorageFailed, match=f'WAL directory "{empty}" is empty, so "{NAME}" may be missing'):
        fetcher(empty, refuse_empty=True).fetch(NAME, str(target))
    assert not fetcher(empty).fetch(NAME, str(target))


def test_a_segment_of_another_cluster_is_refused(wal: Path, target: Path) -> None:
    (wal / NAME).write_bytes(CONTENT)
    assert fetcher(wal, system_identifier=SYSTEM_IDENTIFIER).fetch(NAME, str(target))
    target.unlink()
    with pytest.raises(IntegrityError, match=f"identifier {SYSTEM_IDENTIFIER}, not of 4711, which is recovered"):
        fetcher(wal, system_identifier=4711).fetch(NAME, str(target))
    (wal / NAME).rename(wal / f"{NAME}.partial")
    with pytest.raises(IntegrityError, match="not of 4711"):
        fetcher(wal, system_identifier=4711).fetch(NAME, str(target))
    assert not target.exists()


@pytest.mark.parametrize(
    ("file_name", "content", "says"),
    [
        (NAME, segment_content(SEGMENT.next()), 'holds the content of segment 000000020000000000000004'),
        (NAME, segment_content(SEGMENT, timeline_id=3), "holds WAL of timeline 3"),
        (NAME, bytes(MB), "begins with zeros: no WAL is in it"),
        (NAME, b"", "is empty"),
        (NAME, CONTENT[:30], "ends after 30 bytes"),
        (NAME, CONTENT[:-1], "ends after 1048575 of 1048576 bytes"),
        (NAME, CONTENT + b"\0", "holds more than a segment of 1048576 bytes"),
        (f"{NAME}.partial", CONTENT + b"\0", "holds more than a segment of 1048576 bytes"),
        (f"{NAME}.partial", segment_content(SEGMENT.next()), "holds the content of segment"),
        (f"{NAME}.partial", b"some text", "does not begin with a WAL page"),
        (f"{NAME}.gz", gzip.compress(CONTENT)[:-100], "ends at byte [0-9]+, before its compressed content does"),
        (f"{NAME}.gz", gzip.compress(CONTENT[:-8]), "ends after 1048568 of 1048576 bytes"),
        (f"{NAME}.gz", gzip.compress(CONTENT + b"\0"), "is longer than the 1048576 bytes of a segment"),
        (f"{NAME}.gz", gzip.compress(CONTENT, 0)[:5000] + b"\xff" * 90000, "cannot be decompressed at byte [0-9]+"),
        (f"{NAME}.gz", b"", "is empty"),
    ],
)  # fmt: skip
def test_wrong_content_is_an_error_and_not_served(
    wal: Path, target: Path, file_name: str, content: bytes, says: str
) -> None:
    (wal / file_name).write_bytes(content)
    with pytest.raises(IntegrityError, match=says) as caught:
        fetcher(wal).fetch(NAME, str(target))
    assert file_name in caught.value.message or str(target) in caught.value.message
    assert caught.value.hint
    assert not target.exists()


@pytest.mark.parametrize(("content", "says"), [(b"", "is empty"), (HISTORY + bytes(20), "is damaged: zero at byte 40")])
def test_a_history_file_that_a_crash_left_unwritten_is_refused(
    wal: Path, target: Path, content: bytes, says: str
) -> None:
    (wal / "00000002.history").write_bytes(content)
    with pytest.raises(IntegrityError, match=says):
        fetcher(wal).fetch("00000002.history", str(target))


def test_a_good_copy_elsewhere_is_used_with_a_warning_but_never_a_partial_one(
    wal: Path, target: Path, tmp_path: Path
) -> None:
    second = tmp_path / "second"
    second.mkdir()
    (wal / NAME).write_bytes(CONTENT[:-1])
    (second / f"{NAME}.partial").write_bytes(CONTENT)
    with pytest.raises(IntegrityError, match="ends after 1048575"):
        fetcher(wal, second).fetch(NAME, str(target))
    (second / f"{NAME}.gz").write_bytes(gzip.compress(CONTENT))
    said: list[str] = []
    assert fetcher(wal, second, warn=said.append).fetch(NAME, str(target))
    assert target.read_bytes() == CONTENT
    assert said == [f'"{wal / NAME}" ends after 1048575 of 1048576 bytes; "{second / NAME}.gz" is used instead']


def test_a_first_segment_of_a_timeline_begins_with_pages_of_the_older_one(wal: Path, target: Path) -> None:
    content = segment_content(SEGMENT, timeline_id=1)
    (wal / NAME).write_bytes(content)
    assert fetcher(wal).fetch(NAME, str(target))
    assert target.read_bytes() == content


def test_in_pg_wal_only_what_the_server_has_written_counts(wal: Path, target: Path) -> None:
    (wal / "archive_status").mkdir()
    older = segment_content(WalSegment(2, 1, MB))
    (wal / NAME).write_bytes(older)
    (wal / SEGMENT.next().file_name).write_bytes(bytes(MB))
    assert not fetcher(wal).fetch(NAME, str(target))
    assert not fetcher(wal).fetch(SEGMENT.next().file_name, str(target))
    (wal / NAME).write_bytes(CONTENT[:PAGE_BYTES] + older[PAGE_BYTES:])
    assert fetcher(wal).fetch(NAME, str(target))
    assert target.read_bytes() == CONTENT[:PAGE_BYTES].ljust(MB, b"\0")
    assert fetcher(wal).fetch("00000009.history", str(target))
    assert target.read_bytes() == HISTORY


def test_a_copy_into_the_directory_that_is_under_way_is_waited_for(wal: Path, target: Path) -> None:
    (wal / NAME).write_bytes(CONTENT[:100])
    served: list[bool] = []
    waiting = threading.Thread(target=lambda: served.append(fetcher(wal, grace_s=60).fetch(NAME, str(target))))
    waiting.start()
    with open(wal / NAME, "ab") as copying:
        copying.write(CONTENT[100:-1])
        copying.flush()
        assert not served
        copying.write(CONTENT[-1:])
    wait_until(lambda: served, "the segment is served")
    waiting.join()
    assert target.read_bytes() == CONTENT


def test_the_target_is_replaced_and_a_file_system_without_unnamed_files_will_do(
    wal: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (wal / NAME).write_bytes(CONTENT)
    target.write_bytes(b"what the last fetch brought")
    leftover = target.with_name(target.name + ".polarvault")
    leftover.write_bytes(bytes(2 * MB))  # Of a killed fetch on such a file system.
    assert fetcher(wal).fetch(NAME, str(target))
    assert target.read_bytes() == CONTENT
    # NFS answers an open with O_TMPFILE like a file system that was asked to write to a directory.
    monkeypatch.setattr(output_module.os, "O_TMPFILE", os.O_DIRECTORY | os.O_WRONLY)
    leftover.write_bytes(bytes(2 * MB))
    assert fetcher(wal).fetch(NAME, str(target))
    assert target.read_bytes() == CONTENT
    (wal / NAME).write_bytes(CONTENT[:-1])
    with pytest.raises(IntegrityError, match="ends after"):
        fetcher(wal).fetch(NAME, str(target))
    assert target.read_bytes() == CONTENT


def test_a_target_that_cannot_be_written_is_an_error(wal: Path, tmp_path: Path) -> None:
    (wal / NAME).write_bytes(CONTENT)
    with pytest.raises(StorageFailed, match=f'could not create a file in "{tmp_path}/no": No such file'):
        fetcher(wal).fetch(NAME, str(tmp_path / "no" / "RECOVERYXLOG"))


@pytest.mark.parametrize(
    "name", ["", "../secret", "00000001", f"{NAME}.gz", "2.history", "postgresql.conf", f"{NAME}x"]
)
def test_other_names_are_refused(wal: Path, target: Path, name: str) -> None:
    with pytest.raises(UsageError, match="is not the name of a WAL segment"):
        fetcher(wal).fetch(name, str(target))


# The command line


def test_the_exit_status_is_what_the_server_understands(
    wal: Path, target: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (wal / NAME).write_bytes(CONTENT)
    assert wal_fetch.run(["--wal", str(wal), NAME, str(target)]) == 0
    assert wal_fetch.run([f"--wal={wal}", "--grace", "0", "00000003.history", str(target)]) == 1
    assert capfd.readouterr() == ("", "")
    assert wal_fetch.run(["--wal", str(wal), "--system-identifier=1", "--", NAME, str(target)]) == 200
    said = capfd.readouterr().err.splitlines()
    assert said[0].startswith(f'polarvault: error: "{wal / NAME}" is of the cluster')
    assert said[1].startswith("polarvault: hint: ")
    assert len(said) == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no WAL directory is named"),
        (["--wal", "/a"], "a file name and a target path are expected, not 0 words"),
        (["--wal", "/a", "x"], "a file name and a target path are expected, not 1 words"),
        (["--wal", "/a", "x", "y", "z"], "a file name and a target path are expected, not 3 words"),
        (["--wal"], "option --wal needs a value"),
        (["--wal=", "x", "y"], "option --wal needs a value"),
        (["--wla", "/a", "x", "y"], "no such option: --wla"),
        (["--wal", "/a", "--grace", "soon", "x", "y"], "option --grace needs a whole number, not 'soon'"),
        (["--wal", "/a", "--system-identifier", "-1", "x", "y"], "needs a whole number, not '-1'"),
        (["--wal", "/a", "x", "y"], '"x" is not the name of a WAL segment'),
    ],
)
def test_a_command_line_that_is_wrong_stops_the_recovery(
    arguments: list[str], says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert wal_fetch.run(arguments) == 200
    assert says in capfd.readouterr().err
    # The same through click, which a caller that does not know the short cut takes.
    assert run_program(["wal", "fetch", *arguments]) == 200
    assert says in capfd.readouterr().err


def test_the_help_shows_every_option_that_is_understood() -> None:
    shown = {
        name for parameter in click_command.params for name in parameter.opts if isinstance(parameter, click.Option)
    }
    assert shown - {"--help", "-?"} == set(wal_fetch.OPTIONS)
    text = click_command.get_help(click.Context(click_command, info_name="fetch"))
    assert all(option in text for option in wal_fetch.OPTIONS)


@pytest.mark.parametrize("form", [".partial", ".gz.partial"])
def test_a_server_that_has_more_of_a_segment_is_not_given_a_shorter_one(wal: Path, tmp_path: Path, form: str) -> None:
    """It would put it in the place of its own, and lose what it had streamed."""
    pg_wal = tmp_path / "pg_wal"
    pg_wal.mkdir()
    target, own = pg_wal / "RECOVERYXLOG", pg_wal / NAME
    part = CONTENT[: 3 * PAGE_BYTES + 100]
    (wal / (NAME + form)).write_bytes(gzip.compress(part) if "gz" in form else part)
    for there in (part, CONTENT[: 3 * PAGE_BYTES + 101], CONTENT[: 9 * PAGE_BYTES], CONTENT):
        own.write_bytes(there.ljust(MB, b"\0"))
        assert not fetcher(wal).fetch(NAME, str(target))
        assert not target.exists()
    # One that has less is; so is one whose file has the name, and is another segment's, or another cluster's.
    older = segment_content(WalSegment(2, 1, MB))
    foreign = CONTENT.replace(SYSTEM_IDENTIFIER.to_bytes(8, "little"), (7).to_bytes(8, "little"), 1)
    for there in (b"", bytes(MB), CONTENT[: 3 * PAGE_BYTES + 99].ljust(MB, b"\0"), older, foreign):
        own.write_bytes(there)
        assert fetcher(wal).fetch(NAME, str(target))
        assert target.read_bytes() == part.ljust(MB, b"\0")
        target.unlink()
    # A finished one counts, whatever the server has.
    own.write_bytes(CONTENT)
    (wal / NAME).write_bytes(CONTENT)
    assert fetcher(wal).fetch(NAME, str(target))


def test_a_segment_that_a_switch_ends_is_given_to_a_server_that_has_it(wal: Path, tmp_path: Path) -> None:
    """It is whole: with archive_mode = always the server archives it, the zeros behind included."""
    pg_wal = tmp_path / "pg_wal"
    pg_wal.mkdir()
    target = pg_wal / "RECOVERYXLOG"
    for switched in (False, True):
        made = WalBuilder(segment=3)
        for number in range(40):
            made.add(b"%d" % number * 300)
        if switched:
            made.add(rmgr=XLOG, info=0x40)
        name = WalSegment(1, 3, MB).file_name
        (pg_wal / name).write_bytes(bytes(made.content).ljust(MB, b"\0"))
        (wal / f"{name}.partial").write_bytes(bytes(made.content).rstrip(b"\0"))
        assert fetcher(wal).fetch(name, str(target)) is switched
    assert target.read_bytes() == (pg_wal / name).read_bytes()


@pytest.mark.parametrize("hollow", [b"", bytes(MB), bytes(100)])
@pytest.mark.parametrize("form", [".partial", ".gz.partial", ".partial.zst"])
def test_a_finished_file_without_anything_in_it_loses_against_a_partial_one(
    wal: Path, target: Path, hollow: bytes, form: str
) -> None:
    (wal / NAME).write_bytes(hollow)
    content = segment_content(SEGMENT, pages=3)
    (wal / (NAME + form)).write_bytes(pack("gz" if "gz" in form else "zst", content) if "." in form[1:] else content)
    said: list[str] = []
    assert fetcher(wal, warn=said.append).fetch(NAME, str(target))
    assert target.read_bytes() == content.ljust(MB, b"\0")
    assert len(said) == 1
    assert f'{NAME}{form}" is used instead' in said[0]
    assert find(WalDirectory(str(wal)), SEGMENT) == wal_file(str(wal), NAME + form, in_pg_wal=False)


def test_a_finished_file_that_was_cut_does_not_lose_against_a_partial_one(wal: Path, target: Path) -> None:
    (wal / NAME).write_bytes(CONTENT[: MB // 2])
    (wal / f"{NAME}.partial").write_bytes(CONTENT)
    with pytest.raises(IntegrityError, match=f"ends after {MB // 2} of {MB} bytes"):
        fetcher(wal).fetch(NAME, str(target))
    found = find(WalDirectory(str(wal)), SEGMENT)
    assert found is not None
    assert found.path == str(wal / NAME)


@pytest.mark.parametrize(
    ("suffix", "content"),
    [("", CONTENT[: 3 * PAGE_BYTES]), (".gz", gzip.compress(CONTENT)[:-9]), (".zst", zstandard.compress(CONTENT)[:-20]),
     ("", CONTENT)],
)  # fmt: skip
def test_the_segment_that_was_accepted_as_the_last_one_is_served_as_far_as_it_goes(
    wal: Path, target: Path, suffix: str, content: bytes
) -> None:
    (wal / (NAME + suffix)).write_bytes(content)
    (wal / SEGMENT.next().file_name).write_bytes(segment_content(SEGMENT.next()))
    asked = fetcher(wal, last_segment=NAME)
    assert asked.fetch(NAME, str(target))
    served = target.read_bytes()
    assert len(served) == MB
    assert served[: 3 * PAGE_BYTES] == CONTENT[: 3 * PAGE_BYTES] or suffix
    target.unlink()
    assert not asked.fetch(SEGMENT.next().file_name, str(target))
    # On any timeline.
    assert not asked.fetch("00000009" + SEGMENT.next().file_name[8:], str(target))
    assert asked.fetch("00000009.history", str(target))


@pytest.mark.parametrize(
    ("content", "says", "hint"),
    [
        (gzip.compress(CONTENT), "is compressed with gzip, under the name of a plain segment", f"{NAME}.gz"),
        (zstandard.compress(CONTENT), "is compressed with zstd", f"{NAME}.zst"),
        (lz4.frame.compress(CONTENT), "is compressed with lz4", f"{NAME}.lz4"),
        (b"BZh91AY&SY" + bytes(100), "is compressed with bzip2", "unpack it"),
        (b"age-encryption.org/v1\n-> X25519", "is encrypted with age", "unpack it"),
        (segment_content(WalSegment(2, 1, MB)), "holds the content of segment 000000020000000000000001, which is older",
         "pg_wal keeps older segments"),
    ],
)  # fmt: skip
def test_what_a_file_really_is_and_what_to_do_is_said(
    wal: Path, target: Path, content: bytes, says: str, hint: str
) -> None:
    (wal / NAME).write_bytes(content)
    with pytest.raises(IntegrityError, match=says) as caught:
        fetcher(wal).fetch(NAME, str(target))
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("names", "says", "hint"),
    [
        ([], "is empty", "mount"),
        ([f"0000000200000000/{NAME}"], "Barman's layout", "--wal {}/0000000200000000"),
        ([f"wal/{NAME}"], "one level too high", "--wal {}/wal"),
        ([f"{NAME}-0123456789abcdef0123456789abcdef01234567.gz"], f'but "{NAME}-0123', "restore_command"),
        ([f"0000000200000000/{NAME}-0123456789abcdef0123456789abcdef01234567.gz"], "0000000200000000/", "restore_com"),
        (["notes.txt"], 'but "notes.txt"', "--wal DIR"),
    ],
)
def test_a_directory_without_wal_is_told_by_its_layout(
    tmp_path: Path, target: Path, names: list[str], says: str, hint: str
) -> None:
    archive = tmp_path / "archive"
    archive.mkdir()
    for name in names:
        (archive / name).parent.mkdir(exist_ok=True)
        (archive / name).write_bytes(b"x")
    found = WalDirectory(str(archive)).lack()
    assert found is not None
    assert says in found[0]
    assert hint.format(archive) in found[1]
    assert not fetcher(archive).fetch(NAME, str(target))
    with pytest.raises(StorageFailed, match="may be missing rather than not written yet"):
        fetcher(archive, refuse_empty=True).fetch(NAME, str(target))


@pytest.mark.parametrize("name", [NAME, f"{NAME}.partial", f"{NAME}.gz", "00000002.history", f"{NAME}.00000028.backup",
                                  f"{NAME}.bz2"])  # fmt: skip
def test_a_directory_with_any_file_of_an_archive_is_recognised(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    assert WalDirectory(str(tmp_path)).lack() is None


def test_the_help_says_how_long_a_short_file_is_waited_for() -> None:
    assert f"[default: {DEFAULT_GRACE_S:g}]" in wal_fetch.OPTIONS["--grace"][1]
