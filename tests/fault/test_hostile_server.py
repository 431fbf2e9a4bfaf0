"""Servers that lie: nothing is written outside of the target, everything ends soon and in words."""

from __future__ import annotations

import itertools
import tarfile
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard

from polarvault.backupset.unfinished import MARKER_NAME
from polarvault.model.lsn import Lsn
from polarvault.pgfiles.tar import TERMINATOR, encode_header, encode_member
from support import backend_messages as wire
from support.fuzzing import Outcome, Sandbox, Worker
from support.hostile_server import HostileServer
from support.program import run_polarvault, start_polarvault
from support.small_recording import Recording, base_backup_answer, encode, load_recording
from support.waiting import wait_until

OUTSIDE = ["../outside/planted", "../../outside/planted", "/tmp/pv-planted", "x/../../outside/planted"]


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as started:
        yield started


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as made:
        yield made


@pytest.fixture
def server() -> Iterator[HostileServer]:
    with HostileServer() as started:
        yield started


def tablespace_of(recording: Recording) -> tuple[str, str]:
    """Return oid and location of the recording's tablespace."""
    oid, location = next((row[0], row[1]) for row in recording.tablespaces if row[0])
    assert oid is not None
    assert location is not None
    return oid, location


def without_tablespace(recording: Recording) -> Recording:
    rows = [row for row in recording.tablespaces if row[0] is None]
    return replace(recording, tablespaces=rows, archives={"base.tar": recording.archives["base.tar"]})


def take(worker: Worker, sandbox: Sandbox, server: HostileServer, *options: str, prelude: str = "") -> Outcome:
    """Take a base backup into `t`, the tablespace into `space`."""
    words = ["basebackup", "-d", server.conninfo, "-c", "fast", *options]
    if "-D" not in options:
        words += ["-D", "t"]
    for oid, location, *_ in server.recording.tablespaces:
        if "-Ft" not in options and oid and location and location.startswith("/"):
            words += ["-T", f"{location}={sandbox.work}/space"]
    return worker.run(words, sandbox.work, prelude=prelude)


def refused(sandbox: Sandbox, outcome: Outcome, *words: str) -> None:
    """Assert that a command failed in words, and has left nothing."""
    assert outcome.problem() is None, (outcome.problem(), outcome.errors)
    assert outcome.status == 1, outcome.errors
    for word in words:
        assert word in outcome.errors, outcome.errors
    assert sandbox.escaped("t", "w", "space") == []
    assert not Path("/tmp/pv-planted").exists()
    assert not (sandbox.work / "t").exists()


def member_server(*members: bytes) -> HostileServer:
    """Return a server whose base.tar begins with these members."""
    recording = load_recording()
    archives = recording.archives | {"base.tar": b"".join(members) + recording.archives["base.tar"]}
    return HostileServer(replace(recording, archives=archives))


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry.tobuf(tarfile.GNU_FORMAT)


# What is sound


@pytest.mark.parametrize("options", [["-Fp"], ["-Ft"], ["-Ft", "-z"], ["-Fp", "-X", "none"], ["-Fp", "--waldir"]])
@pytest.mark.parametrize("version", ["18.0", "13.5"])
def test_the_recorded_backup_itself_is_taken(
    worker: Worker, sandbox: Sandbox, options: list[str], version: str
) -> None:
    if "--waldir" in options:
        options = [*options, f"{sandbox.work}/waldir"]
    with HostileServer(version=version) as server:
        outcome = take(worker, sandbox, server, *options)
    assert outcome.status == 0, outcome.errors
    assert outcome.problem() is None
    assert sandbox.escaped("t", "space", "waldir") == []
    assert (sandbox.work / "t/backup_manifest").exists()
    assert not list(sandbox.root.rglob(f"{MARKER_NAME}*"))
    checked = worker.run(["verifybackup", "t", "-q"], sandbox.work)
    assert "no such file" not in checked.errors.lower()


# S1: names of timeline histories


@pytest.mark.parametrize("name", [*OUTSIDE, "00000003.history", "00000002.history/x", "", "x" * 300])
@pytest.mark.parametrize("options", [["-Fp"], ["-Ft"], ["receivewal"]])
def test_a_history_file_gets_no_name_but_its_own(
    worker: Worker, sandbox: Sandbox, server: HostileServer, name: str, options: list[str]
) -> None:
    server.answers["^TIMELINE_HISTORY"] = wire.text_result([[name, "1\t0/8000000\tplanted\n"]], ["filename", "content"])
    if options == ["receivewal"]:
        (sandbox.work / "w").mkdir()
        outcome = worker.run(["receivewal", "-n", "-d", server.conninfo, "-D", "w"], sandbox.work)
    else:
        outcome = take(worker, sandbox, server, *options)
    refused(sandbox, outcome, "history file of timeline 2")


@pytest.mark.parametrize("kept", ["same", "other", "empty"])
def test_a_history_that_is_here_must_be_the_servers(
    worker: Worker, sandbox: Sandbox, server: HostileServer, kept: str
) -> None:
    history = server.recording.history
    content = {"same": history, "other": b"1\t0/1000000\tanother promotion\n", "empty": b""}[kept]
    (sandbox.work / "w").mkdir()
    path = sandbox.work / "w" / "00000002.history"
    path.write_bytes(content)
    words = ["receivewal", "-n", "-d", server.conninfo, "-D", "w", "-S", "slot", "--endpos", server.recording.stop[0]]
    outcome = worker.run(words, sandbox.work)
    assert outcome.status == (1 if kept == "other" else 0), outcome.errors
    assert path.read_bytes() == (content if kept == "other" else history)
    if kept == "other":
        assert "history" in outcome.errors


def test_the_next_timeline_must_be_a_later_one(worker: Worker, server: HostileServer) -> None:
    """An earlier one, or one that begins earlier, would be written over WAL that is here."""
    recording = server.recording
    for timeline, position in (("1", recording.stop[0]), ("2", "0/0"), ("3", "FF/0"), ("3", "0/1000000")):
        ends = wire.result([("tli", wire.TEXT_OID), ("pos", wire.TEXT_OID)], [[timeline, position]])
        stream = server_stream(recording) + wire.message(b"c") + ends + wire.message(b"C", b"START_REPLICATION\0")
        server.answers["^START_REPLICATION"] = stream + wire.READY
        history = f"1\t0/500000\tx\n2\t{recording.stop[0]}\ty\n"
        server.answers["^TIMELINE_HISTORY 3"] = wire.text_result([["00000003.history", history]])
        with Sandbox() as fresh:
            (fresh.work / "w").mkdir()
            outcome = worker.run(["receivewal", "-n", "-d", server.conninfo, "-D", "w", "-S", "slot"], fresh.work)
            refused(fresh, outcome, f"timeline {timeline}")


def server_stream(recording: Recording) -> bytes:
    from support.small_recording import wal_answer

    return encode(wal_answer(recording, recording.wal_start))


# S2: names of archives, and the list of tablespaces


@pytest.mark.parametrize("name", [*OUTSIDE, "base.tar.gz", "data.tar", "1.tar", "pg_wal.tar", "", "backup_manifest"])
@pytest.mark.parametrize("options", [["-Fp"], ["-Ft"], ["-Ft", "-D", "-", "-X", "fetch"]])
def test_an_archive_gets_no_name_but_the_listed_one(
    worker: Worker, sandbox: Sandbox, name: str, options: list[str]
) -> None:
    recording = without_tablespace(load_recording())
    with HostileServer(replace(recording, archives={name: recording.archives["base.tar"]})) as server:
        refused(sandbox, take(worker, sandbox, server, *options), 'instead of "base.tar"')


def test_a_compressed_archive_gets_no_name_but_the_listed_one(worker: Worker, sandbox: Sandbox) -> None:
    recording = without_tablespace(load_recording())
    packed = zstandard.ZstdCompressor().compress(recording.archives["base.tar"])
    for name in ("../outside/planted.tar.zst", "base.tar", "base.tar.gz", "base.tar.zst.zst"):
        with HostileServer(replace(recording, archives={name: packed})) as server:
            outcome = take(worker, sandbox, server, "-Ft", "-Z", "server-zstd")
        refused(sandbox, outcome, 'instead of "base.tar.zst"')


@pytest.mark.parametrize(
    "oid", ["../../outside/x", "/tmp/pv-planted", "base", "0", "-1", "4294967296", "1" * 30, "", "1 "]
)
@pytest.mark.parametrize("version", ["18.0", "13.5"])
def test_the_oid_of_a_tablespace_is_a_number(worker: Worker, sandbox: Sandbox, oid: str, version: str) -> None:
    recording = load_recording()
    rows = [[oid, *row[1:]] if row[0] else row for row in recording.tablespaces]
    with HostileServer(replace(recording, tablespaces=rows), version=version) as server:
        refused(sandbox, take(worker, sandbox, server, "-Ft"), "tablespace list")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: [*rows, *rows], "twice"),
        (lambda rows: [row for row in rows if row[0]], "lacks the data directory"),
        (lambda rows: [row[:2] for row in rows], "2 columns instead of three"),
        (lambda rows: [[*row, "1"] for row in rows], "lacks the data directory"),
        (lambda rows: [*[[*row, None] for row in rows], [None, None, "1", "1"]], "no shared storage"),
        (lambda rows: [[row[0], row[1], "x"] for row in rows], "the size of a tablespace"),
        (lambda rows: [[row[0], None, "1"] for row in rows], "no location"),
        (lambda rows: [], "lacks the data directory"),
    ],
)  # fmt: skip
def test_the_list_of_tablespaces_must_make_sense(
    worker: Worker, sandbox: Sandbox, change: Callable[..., list[list[str | None]]], words: str
) -> None:
    recording = load_recording()
    with HostileServer(replace(recording, tablespaces=change(recording.tablespaces))) as server:
        refused(sandbox, take(worker, sandbox, server, "-Ft"), words)


@pytest.mark.parametrize("missing", ["first", "last"])
@pytest.mark.parametrize("options", ["-Fp", "-Ft"])
def test_every_listed_archive_must_come(worker: Worker, sandbox: Sandbox, missing: str, options: str) -> None:
    recording = load_recording()
    names = list(recording.archives)
    left = names[1:] if missing == "first" else names[:-1]
    with HostileServer(replace(recording, archives={name: recording.archives[name] for name in left})) as server:
        refused(sandbox, take(worker, sandbox, server, options), names[0] if missing == "first" else names[-1])


def test_a_manifest_that_was_asked_for_must_come(worker: Worker, sandbox: Sandbox) -> None:
    with HostileServer(replace(load_recording(), manifest=b"")) as server:
        refused(sandbox, take(worker, sandbox, server, "-Ft"), "no manifest")


# S3: members and links


@pytest.mark.parametrize("options", ["-Fp", "-Ft"])
@pytest.mark.parametrize(
    "members",
    [
        (link("evil", "../outside"), encode_member("evil/pwn", b"x")),
        (link("evil", "../outside/victim"), encode_member("evil", b"x")),
        (link("backup_manifest.tmp.tmp", "../outside/victim"),),
        (link("backup_manifest", "../outside/victim"),),
        (link("base", "/etc"),),
        (link("pg_wal", "../outside"), encode_member("pg_wal/x", b"x")),
        (link("pg_tblspc", "../outside"), encode_member("pg_tblspc/x", b"x")),
        (link("pg_tblspc/1", "/etc"),),
        (link("pg_tblspc/../evil", "/etc"),),
        (link("hard", "../outside/victim", tarfile.LNKTYPE), encode_member("hard", b"x")),
        (link("device", "", tarfile.CHRTYPE),),
        (link("fifo", "", tarfile.FIFOTYPE),),
        (encode_member("../outside/planted", b"x"),),
        (encode_member("/tmp/pv-planted", b"x"),),
        (encode_member("a/../../outside/planted", b"x"),),
        (encode_member("a//b", b"x"),),
        (encode_member("d/" * 2000 + "f", b"x"),),
        (encode_member("x" * 5000, b"x"),),
    ],
)
def test_members_that_no_server_has_are_refused(
    worker: Worker, sandbox: Sandbox, members: tuple[bytes, ...], options: str
) -> None:
    with member_server(*members) as server:
        refused(sandbox, take(worker, sandbox, server, options), "base.tar")


@pytest.mark.parametrize("target", ["/etc", "../../outside", "relative", ""])
def test_the_link_of_a_tablespace_leads_to_its_listed_place(worker: Worker, sandbox: Sandbox, target: str) -> None:
    oid, _ = tablespace_of(load_recording())
    with member_server(link(f"pg_tblspc/{oid}", target)) as server:
        refused(sandbox, take(worker, sandbox, server, "-Fp"), f"pg_tblspc/{oid}")


def test_nothing_is_written_through_the_link_of_a_tablespace(worker: Worker, sandbox: Sandbox) -> None:
    oid, location = tablespace_of(load_recording())
    with member_server(link(f"pg_tblspc/{oid}", location), encode_member(f"pg_tblspc/{oid}/pwn", b"x")) as server:
        refused(sandbox, take(worker, sandbox, server, "-Fp"), "symbolic link")
    with member_server(link(f"pg_tblspc/{oid}", location), encode_member(f"pg_tblspc/{oid}", b"x")) as server:
        refused(sandbox, take(worker, sandbox, server, "-Fp"), "link of that name")


@pytest.mark.parametrize("location", ["../outside", "outside", "pg_tblspc/1", "/tmp/../tmp/pv-planted", "", "./x"])
def test_the_place_of_a_tablespace_is_an_absolute_path(worker: Worker, sandbox: Sandbox, location: str) -> None:
    recording = load_recording()
    rows = [[row[0], location, row[2]] if row[0] else row for row in recording.tablespaces]
    with HostileServer(replace(recording, tablespaces=rows)) as server:
        refused(sandbox, take(worker, sandbox, server, "-Fp"), "tablespace")


def test_a_file_that_comes_twice_is_written_once_more(worker: Worker, sandbox: Sandbox) -> None:
    """A directory that changes while the server lists it may show a file twice."""
    with member_server(encode_member("PG_VERSION", b"first\n")) as server:
        outcome = take(worker, sandbox, server, "-Fp")
    assert outcome.status == 0, outcome.errors
    assert (sandbox.work / "t/PG_VERSION").read_bytes() == b"18\n"


# S6 and S10: numbers, rows, headers


def header_with(*, size: bytes, kind: bytes = b"0", name: bytes = b"f") -> bytes:
    header = bytearray(encode_header("f", 0))
    header[0:100] = name.ljust(100, b"\0")
    header[124:136], header[156:157] = size.ljust(12, b"\0"), kind
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@pytest.mark.parametrize(
    "member",
    [
        header_with(size=b"-0000001000"),
        header_with(size=b"1_0"),
        header_with(size=b"0o17"),
        header_with(size=b"\xff" * 12),
        header_with(size=b"\x80" + b"\xff" * 11),
        header_with(size=b"00000000004", kind=b"x") + b"9 a\n".ljust(512, b"\0"),
        header_with(size=b"00000000012", kind=b"x") + b"10 size=x\n".ljust(512, b"\0"),
        header_with(size=b"00000000013", kind=b"x") + b"11 size=-1\n".ljust(512, b"\0"),
        header_with(size=b"00004000000", kind=b"x") + b"1" * (1 << 20),
        header_with(size=b"00004000000", kind=b"x") + b"5 a=\n" * ((1 << 20) // 5) + b"x",
        header_with(size=b"00000000005", kind=b"L") * 2 + b"abcde".ljust(512, b"\0"),
        (header_with(size=b"00000000005", kind=b"L") + b"abcde".ljust(512, b"\0")) * 20,
    ],
)
def test_damaged_tar_headers_end_in_words(worker: Worker, sandbox: Sandbox, member: bytes) -> None:
    with member_server(member) as server:
        refused(sandbox, take(worker, sandbox, server, "-Fp"), "base.tar")


BAD_NUMBERS = ["", "x", "-1", "0", "4294967296", "9" * 5000, "1_0", "٣", "\x1b[2J"]
BAD_LSNS = ["", "x", "0", "0/", "0/x", "1/2/3", "0/100000000", "-1/0", "0 /1", "9" * 5000]


@pytest.mark.parametrize(
    ("command", "row", "column", "values"),
    [
        ("IDENTIFY_SYSTEM", ["7", "2", "0/1000000", None], 1, BAD_NUMBERS),
        ("IDENTIFY_SYSTEM", ["7", "2", "0/1000000", None], 2, BAD_LSNS),
        ("IDENTIFY_SYSTEM", ["7", "2", "0/1000000", None], 0, ["", "x", "-1", "9" * 30]),
        ("SHOW wal_segment_size", ["16MB"], 0, ["", "x", "3MB", "512kB", "2GB", "16 MB", "-16MB", "9" * 400 + "MB"]),
        ("SHOW segment_size", ["1GB"], 0, ["x", "-1GB", "0GB", "1e9GB"]),
        ("SHOW block_size", ["8192"], 0, ["x", "-1", "0", "9" * 5000]),
        ("SHOW data_directory_mode", ["0700"], 0, ["x", "-700", "0888", "0o700", "7" * 5000]),
    ],
)  # fmt: skip
def test_numbers_of_the_server_are_numbers(
    worker: Worker, sandbox: Sandbox, server: HostileServer, command: str, row: list[str | None], column: int,
    values: list[str],
) -> None:  # fmt: skip
    for value in values:
        changed = [value if number == column else given for number, given in enumerate(row)]
        server.answers = {f"^{command}$": wire.text_result([changed])}
        if value or command == "IDENTIFY_SYSTEM":
            refused(sandbox, take(worker, sandbox, server, "-Ft"), "the server")


@pytest.mark.parametrize("which", ["start", "stop"])
def test_positions_of_the_backup_are_positions(worker: Worker, sandbox: Sandbox, which: str) -> None:
    recording = load_recording()
    rows = [[value, "2"] for value in BAD_LSNS] + [[recording.start[0], value] for value in BAD_NUMBERS]
    if which == "stop":
        rows += [["0/1", "2"], [recording.stop[0], "1"]]
    for row in rows:
        changed = replace(recording, **{which: row})
        with HostileServer(changed) as server:
            refused(sandbox, take(worker, sandbox, server, "-Ft", "-X", "none"), "the backup")


@pytest.mark.parametrize("timeline", ["4294967295", "1000000000"])
def test_a_huge_timeline_is_looked_at_without_counting_up_to_it(
    worker: Worker, sandbox: Sandbox, server: HostileServer, timeline: str
) -> None:
    server.answers["^IDENTIFY"] = wire.text_result([["7", timeline, "0/1000000", None]])
    history = f"1\t0/1000\tx\n{int(timeline) - 1}\t0/2000\ty\n"
    name = f"{int(timeline):08X}.history"
    server.answers[f"^TIMELINE_HISTORY {timeline}"] = wire.text_result([[name, history]])
    (sandbox.work / "w").mkdir()
    outcome = worker.run(["receivewal", "-n", "-d", server.conninfo, "-D", "w"], sandbox.work, timeout_s=30)
    assert outcome.problem() is None, outcome.errors


@pytest.mark.parametrize(
    "rows",
    [
        b"T\0\0\0\x06\0\1",
        b"T\0\0\0\x06\xff\xff",
        b"T\0\0\0\5\0",
        b"T\0\0\0\x0a\0\1abc\0",
        wire.row_description([("a", 25), ("b", 25)]) + b"D\0\0\0\x06\0\2",
        wire.row_description([("a", 25), ("b", 25)]) + b"D\0\0\0\x0c\0\2\0\0\0\x09ab",
        wire.row_description([("a", 25), ("b", 25)]) + b"D\0\0\0\4",
        wire.row_description([("a", 25), ("b", 25)]) + b"D\0\0\0\x0a\0\1\x7f\xff\xff\xff",
        b"T\0\0\0\3",
        b"T\xff\xff\xff\xff",
    ],
)
@pytest.mark.parametrize("command", ["^BASE_BACKUP", "^TIMELINE_HISTORY", "^IDENTIFY_SYSTEM"])
def test_rows_that_are_cut_end_in_words(
    worker: Worker, sandbox: Sandbox, server: HostileServer, rows: bytes, command: str
) -> None:
    server.answers[command] = rows + wire.message(b"C", b"SELECT\0") + wire.READY
    refused(sandbox, take(worker, sandbox, server, "-Ft"))


# S10: memory


def endless(begin: bytes, more: bytes, size: int = 4 << 30) -> Callable[[str], Iterable[bytes]]:
    """Return an answer that never ends, as far as anybody would wait for it."""
    block = more * max(1, (1 << 20) // len(more))
    return lambda command: itertools.chain([begin], itertools.repeat(block, size // len(block)))


LIMITS = (
    "from polarvault.model import limits\n"
    "limits.MANIFEST_BYTES, limits.RESULT_ROWS, limits.NOTICES = 64 << 20, 20_000, 5_000\n"
    "limits.RESULT_BYTES = limits.LIBPQ_BYTES = 32 << 20\n"
)
ROW = wire.data_row(["x" * 100])
COLUMN = wire.row_description([("a", 25)])
NOTICE = wire.message(b"N", b"SNOTICE\0VNOTICE\0C00000\0Mhello\0\0")


@pytest.mark.parametrize(
    ("command", "begin", "more"),
    [
        ("^IDENTIFY_SYSTEM", COLUMN, ROW),
        ("^IDENTIFY_SYSTEM", b"", NOTICE),
        # libpq takes one message in one go if the sender is fast enough; what follows it is counted.
        ("^IDENTIFY_SYSTEM", b"D\x0f\xff\xff\xff", b"x" * 1000),
        ("^TIMELINE_HISTORY", COLUMN, ROW),
        ("^TIMELINE_HISTORY", b"", NOTICE),
        ("^BASE_BACKUP", COLUMN, ROW),
        ("^BASE_BACKUP", b"", NOTICE),
        ("^BASE_BACKUP", wire.error("XX000", "x"), ROW),
        ("^START_REPLICATION", b"", NOTICE),
    ],
)  # fmt: skip
def test_answers_without_end_are_cut_off(
    worker: Worker, sandbox: Sandbox, server: HostileServer, command: str, begin: bytes, more: bytes
) -> None:
    server.answers[command] = endless(begin, more)
    refused(sandbox, take(worker, sandbox, server, "-Ft", prelude=LIMITS))


def test_a_manifest_without_end_is_cut_off_and_takes_no_memory(
    worker: Worker, sandbox: Sandbox, server: HostileServer
) -> None:
    before = base_backup_answer(server.recording)
    at = before.index((b"d", b"m"))
    server.answers["^BASE_BACKUP"] = endless(encode(before[: at + 1]), wire.copy_data(b"d" + b'{"x":1},' * 1000))
    outcome = take(worker, sandbox, server, "-Ft", prelude=LIMITS)
    refused(sandbox, outcome, "manifest")
    assert outcome.peak_bytes < 200 << 20


def test_a_list_of_tablespaces_without_end_is_cut_off(worker: Worker, sandbox: Sandbox, server: HostileServer) -> None:
    first = wire.result([("recptr", 25), ("tli", 25)], [server.recording.start])
    row = wire.data_row(["1", "/x", "1"])
    server.answers["^BASE_BACKUP"] = endless(first + wire.row_description([("a", 25)] * 3), row)
    refused(sandbox, take(worker, sandbox, server, "-Ft", prelude=LIMITS), "does not end")


def test_tiny_messages_do_not_multiply_in_memory(worker: Worker, sandbox: Sandbox, server: HostileServer) -> None:
    before = base_backup_answer(server.recording)
    at = next(number for number, (_, body) in enumerate(before) if body[:1] == b"n")
    begin = encode(before[: at + 1]) + wire.copy_data(b"d" + encode_header("big", 8 << 30))
    for tiny in (wire.copy_data(b"dx"), wire.copy_data(b"p" + bytes(8))):
        server.answers["^BASE_BACKUP"] = endless(begin, tiny, 24 << 20)
        outcome = take(worker, sandbox, server, "-Ft")
        refused(sandbox, outcome)
        assert outcome.peak_bytes < 400 << 20


def test_a_huge_window_of_a_compressed_archive_is_refused(worker: Worker, sandbox: Sandbox) -> None:
    recording = without_tablespace(load_recording())
    # Magic, a descriptor without content size, a window of 2 GB (RFC 8878, 3.1.1.1.2), a raw block.
    frame = b"\x28\xb5\x2f\xfd\x00" + bytes([(31 - 10) << 3]) + b"\x09\x00\x00x"
    with HostileServer(replace(recording, archives={"base.tar.zst": frame})) as server:
        for options in (["-Fp"], ["-Ft"]):
            outcome = take(worker, sandbox, server, *options, "-Z", "server-zstd")
            refused(sandbox, outcome, "cannot be decompressed")
            assert outcome.peak_bytes < 200 << 20


def test_what_a_server_says_is_shown_without_control_characters_and_cut(
    worker: Worker, sandbox: Sandbox, server: HostileServer
) -> None:
    for command in ("^IDENTIFY_SYSTEM", "^BASE_BACKUP", "^TIMELINE_HISTORY"):
        server.answers = {command: wire.error("XX000", "\x1b[2J\x9bwiped" + "x" * 2_000_000) + wire.READY}
        outcome = take(worker, sandbox, server, "-Ft")
        refused(sandbox, outcome, "wiped")
        assert "\x1b" not in outcome.errors
        assert "\x9b" not in outcome.errors
        assert len(outcome.errors) < 20_000


def test_an_end_of_the_backup_that_never_comes_is_not_waited_for_without_end(worker: Worker, sandbox: Sandbox) -> None:
    recording = replace(load_recording(), stop=["0/FFFFFF0", "2"])
    impatient = (
        "from polarvault.server.wal_stream import WalStream\nWalStream.__init__.__kwdefaults__['patience_s'] = 1.5\n"
    )
    with HostileServer(recording) as server:
        server.linger_s = 60
        outcome = take(worker, sandbox, server, "-Ft", "-s", "1", prelude=impatient)
    refused(sandbox, outcome, "has sent WAL only up to")


# S7: errors of close(), fsync() and write(), in every thread


def failing(function: str, file_name: str) -> str:
    """Return a prelude in which a function on a descriptor fails for files of that name, after it has done its work."""
    return (
        "import errno, os\n"
        f"real = os.{function}\n"
        "def failing(descriptor, *rest, **more):\n"
        "    try:\n"
        "        path = os.readlink(f'/proc/self/fd/{descriptor}')\n"
        "    except OSError:\n"
        "        path = ''\n"
        "    result = real(descriptor, *rest, **more)\n"
        f"    if {file_name!r} in path and '/t/' in path + '/':\n"
        "        raise OSError(errno.EIO, os.strerror(errno.EIO))\n"
        "    return result\n"
        f"os.{function} = failing\n"
    )


@pytest.mark.parametrize(
    ("options", "function", "file_name"),
    [
        (["-Ft"], "close", "/pg_wal.tar"),
        (["-Ft", "-z"], "close", "/pg_wal.tar.gz"),
        (["-Ft"], "writev", "/pg_wal.tar"),
        (["-Ft"], "ftruncate", "/pg_wal.tar"),
        (["-Ft"], "close", "/base.tar"),
        (["-Ft"], "fsync", "/base.tar"),
        (["-Ft"], "fsync", "/t"),
        (["-Ft"], "close", "/backup_manifest.tmp"),
        (["-Fp"], "close", "/pg_wal/0000"),
        (["-Fp"], "fsync", "/pg_wal/0000"),
        (["-Fp"], "pwrite", "/pg_wal/0000"),
        (["-Fp"], "close", "/PG_VERSION"),
        (["-Fp"], "fsync", "/PG_VERSION"),
        (["-Fp"], "close", "/pg_wal/archive_status"),
        (["-Fp"], "close", "/pg_wal/00000002.history"),
    ],
)  # fmt: skip
def test_an_error_of_any_thread_fails_the_backup(
    worker: Worker, sandbox: Sandbox, server: HostileServer, options: list[str], function: str, file_name: str
) -> None:
    outcome = take(worker, sandbox, server, *options, "-n", prelude=failing(function, file_name))
    assert outcome.problem() is None, outcome.errors
    assert outcome.status == 1, outcome.errors
    assert "Input/output error" in outcome.errors
    assert not (sandbox.work / "t/backup_manifest").exists()
    assert (sandbox.work / "t" / MARKER_NAME).exists()


@pytest.mark.parametrize("options", [["-Fp"], ["-Ft"], ["-Ft", "-z"], ["receivewal"]])
@pytest.mark.parametrize("fails", ["", "/pg_wal", "/PG_VERSION", "/base.tar"])
def test_no_descriptor_is_closed_twice(
    worker: Worker, sandbox: Sandbox, server: HostileServer, options: list[str], fails: str
) -> None:
    """Another thread may have got the number by then."""
    watch = (
        "import errno, os\n"
        "before = os.close\n"
        "def watched(descriptor):\n"
        "    try:\n"
        "        before(descriptor)\n"
        "    except OSError as problem:\n"
        "        if problem.errno == errno.EBADF:\n"
        "            os.write(2, b'Traceback (most recent call last): closed twice')\n"
        "        raise\n"
        "os.close = watched\n"
    )
    prelude = (failing("close", fails) if fails else "") + watch
    if options == ["receivewal"]:
        (sandbox.work / "w").mkdir()
        words = [
            "receivewal",
            "-n",
            "-d",
            server.conninfo,
            "-D",
            "w",
            "-S",
            "slot",
            "--endpos",
            server.recording.stop[0],
        ]
        outcome = worker.run(words, sandbox.work, prelude=prelude)
    else:
        # -n: what removes directories is the standard library, which closes again what failed to close (3.11).
        outcome = take(worker, sandbox, server, *options, "-n", prelude=prelude)
    assert outcome.problem() is None, outcome.errors


# S11: the mark, and passwords


@pytest.mark.parametrize("options", [["-Fp"], ["-Ft"], ["-Ft", "-X", "none"], ["-Fp", "-X", "none", "--no-manifest"]])
def test_a_backup_that_is_killed_says_that_it_is_none(
    worker: Worker, sandbox: Sandbox, server: HostileServer, options: list[str]
) -> None:
    answer = encode(base_backup_answer(server.recording))
    cut = answer.index(b"PG_VERSION") + 2000
    killed = threading.Event()

    def stalls(command: str) -> Iterable[bytes]:
        yield answer[:cut]
        killed.wait(60)

    server.answers["^BASE_BACKUP"] = stalls
    _, location = tablespace_of(server.recording)
    mapping = ["-T", f"{location}={sandbox.work}/space"] if "-Fp" in options else []
    target = sandbox.work / "t"
    running = start_polarvault("basebackup", "-d", server.conninfo, "-c", "fast", "-D", target, *options, *mapping)
    wait_until(lambda: (target / MARKER_NAME).exists() and len(list(target.iterdir())) > 1, "files are written")
    running.kill()
    running.communicate()
    killed.set()
    assert (target / MARKER_NAME).exists()
    assert f"process {running.pid}" in (target / MARKER_NAME).read_text()
    for command in (["verifybackup", str(target)], ["restore", str(target), "-D", "r"]):
        outcome = worker.run(command, sandbox.work)
        assert outcome.status, command
        assert MARKER_NAME in outcome.errors, outcome.errors
    # Its report goes to standard output.
    assert worker.run(["drill", str(target), "--report", f"{sandbox.root}/report"], sandbox.work).status


def test_a_failed_backup_that_is_kept_says_that_it_is_none(
    worker: Worker, sandbox: Sandbox, server: HostileServer
) -> None:
    server.answers["^BASE_BACKUP"] = encode(base_backup_answer(server.recording))[:20_000]
    for options in (["-Fp"], ["-Ft"]):
        outcome = take(worker, sandbox, server, *options, "-n")
        assert outcome.status == 1
        assert (sandbox.work / "t" / MARKER_NAME).exists()
        assert "not removed" in outcome.errors
        worker.run(
            ["--version"], sandbox.work, prelude="import shutil\nshutil.rmtree('t')\nshutil.rmtree('space', True)"
        )


def test_a_server_that_was_started_from_an_unfinished_backup_is_not_backed_up(worker: Worker, sandbox: Sandbox) -> None:
    for options in ("-Fp", "-Ft"):
        with member_server(encode_member(MARKER_NAME, b"x")) as server:
            refused(sandbox, take(worker, sandbox, server, options), "started from a base backup that was cut off")


@pytest.mark.parametrize(
    "conninfo",
    [
        "postgresql://user:s3cr%zzet@host/db",
        "postgresql://user:s3cr%et@host/db",
        "postgresql://user:s3cr@et@host/db",
        "postgresql://user:s3/cret@host/db",
        "postgresql://user:s3cret%@host/db",
        "postgresql://user:s3cret@host/db?s3cret=1",
        "postgresql://user:s3cr[et@host:x/db",
        "host=x password=a s3cret",
        "host=x password='s3cret",
        "password=a s3cret=b",
        "host=x password=s3cret\\",
    ],
)  # fmt: skip
def test_a_connection_string_that_cannot_be_read_does_not_show_its_password(conninfo: str) -> None:
    for command in ("basebackup", "receivewal"):
        finished = run_polarvault(command, "-d", conninfo, "-D", "/nonexistent/x", "-w", check=False, timeout_s=60)
        assert finished.returncode == 1
        for part in ("s3cr", "s3/c", "cret", "et@"):
            assert part not in finished.stderr


def test_a_connection_string_with_stray_bytes_ends_in_words(worker: Worker, sandbox: Sandbox) -> None:
    for conninfo in ("host=\udcff", "user=\udc80 host=127.0.0.1 port=1", "dbname='\udcfe' host=127.0.0.1 port=1"):
        outcome = worker.run(["basebackup", "-d", conninfo, "-D", "t"], sandbox.work)
        refused(sandbox, outcome)


# The receiver writes through no link, whoever has put it there


@pytest.mark.parametrize(
    "name",
    [".polarvault-receivewal.lock", ".polarvault-receivewal.json.tmp", "00000002.history", "00000002.history.tmp"],
)
def test_a_receiver_writes_through_no_link(worker: Worker, sandbox: Sandbox, server: HostileServer, name: str) -> None:
    (sandbox.work / "w").mkdir()
    (sandbox.work / "w" / name).symlink_to(sandbox.outside / "victim")
    words = ["receivewal", "-n", "-d", server.conninfo, "-D", "w", "-S", "slot", "--endpos", server.recording.stop[0]]
    outcome = worker.run(words, sandbox.work)
    assert outcome.problem() is None, outcome.errors
    assert sandbox.escaped("w") == []


def test_a_segment_is_not_written_through_a_link(worker: Worker, sandbox: Sandbox, server: HostileServer) -> None:
    recording = server.recording
    number = recording.wal_start >> 20
    for suffix, options in ((".partial", []), (".gz.partial", ["-Z", "gzip"])):
        (sandbox.work / "w").mkdir(exist_ok=True)
        place = sandbox.work / "w" / f"00000002{0:08X}{number:08X}{suffix}"
        place.unlink(missing_ok=True)
        place.symlink_to(sandbox.outside / "victim")
        end = str(Lsn(recording.wal_start + 8192))
        words = ["receivewal", "-n", "-d", server.conninfo, "-D", "w", "-S", "slot", "--endpos", end, *options]
        outcome = worker.run(words, sandbox.work)
        assert outcome.problem() is None, outcome.errors
        assert outcome.status == 1, outcome.errors
        assert sandbox.escaped("w") == []


def test_the_terminator_is_all_that_an_empty_archive_needs(worker: Worker, sandbox: Sandbox) -> None:
    recording = without_tablespace(load_recording())
    with HostileServer(replace(recording, archives={"base.tar": TERMINATOR})) as server:
        assert take(worker, sandbox, server, "-Ft", "-X", "none").status == 0
