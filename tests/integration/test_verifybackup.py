"""Polarvault verifybackup beside the real pg_verifybackup of each version: the same directories, the same verdict.

The cases follow the manual's description of pg_verifybackup. One plain backup for each version; a case changes
something in it and puts it back.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from polarvault.backupset.unfinished import MARKER_NAME, marker_content
from polarvault.instance.account import server_account
from polarvault.instance.model import Binaries
from support.backups import back_up_with_postgres
from support.cluster import Cluster
from support.program import run_polarvault
from support.servers import EXPECTED, ServerPool, found_installations, missing_reason
from support.verifying import (
    Verdict,
    append,
    copy,
    cut,
    findings,
    flip,
    ours,
    remove,
    rewrite_manifest,
    set_aside,
    theirs,
)

pytestmark = pytest.mark.postgres

MAJORS = sorted({*found_installations(), *EXPECTED})
GOOD = "backup successfully verified\n"
ODD_NAME = os.fsdecode(b"odd \xff\nname")


@dataclass(frozen=True, slots=True)
class Lab:
    """A cluster's backups in a directory of their own: `plain`, with a tablespace, odd names; the cluster is gone."""

    installation: Binaries
    directory: Path
    table: str

    @property
    def plain(self) -> Path:
        return self.directory / "plain"

    @property
    def tablespace(self) -> str:
        """The tablespace's link, relative to the backup."""
        (link,) = (self.plain / "pg_tblspc").iterdir()
        return f"pg_tblspc/{link.name}"

    def ours(self, *options: str, **how: Any) -> Verdict:
        return ours(*options, self.plain, **how)

    def theirs(self, *options: str, **how: Any) -> Verdict:
        return theirs(self.installation, *options, self.plain, **how)


@pytest.fixture(scope="module")
def labs(servers: ServerPool) -> Iterator[Callable[[int], Lab]]:
    made: dict[int, Lab] = {}
    root = Path(tempfile.mkdtemp(prefix="pv-", dir="/tmp"))
    root.chmod(0o755)

    def get(major: int) -> Lab:
        if major not in servers.installations:
            pytest.skip(missing_reason(major))
        if major not in made:
            made[major] = make_lab(servers.installations[major], root / f"v{major}")
        return made[major]

    yield get
    shutil.rmtree(root)


def make_lab(installation: Binaries, directory: Path) -> Lab:
    server_account().make_directory(directory)
    with Cluster.made(installation, directory / "cluster", wal_segment_mb=1) as cluster:
        location = cluster.add_tablespace("one", rows=10)
        (cluster.data / ODD_NAME).write_text("not the server's file")
        (cluster.data / "two words").write_text("")
        cluster.account.own(cluster.data)
        ((table,),) = cluster.query("SELECT pg_relation_filepath('accounts')")
        mapping = ["-T", f"{location}={directory}/tablespace"]
        back_up_with_postgres(cluster, directory / "plain", *mapping)
        for algorithm in ("NONE", "SHA512"):
            options = ["-X", "none", "--manifest-checksums", algorithm, "-T", f"{location}={directory}/t{algorithm}"]
            back_up_with_postgres(cluster, directory / algorithm, *options)
    return Lab(installation, directory, table)


@pytest.fixture(params=MAJORS, ids=[f"pg{major}" for major in MAJORS])
def lab(request: pytest.FixtureRequest, labs: Callable[[int], Lab]) -> Lab:
    return labs(request.param)


def assert_alike(lab: Lab, words: str, *options: str, ordinary_user: bool = False) -> tuple[Verdict, Verdict]:
    """Check that both call the backup bad, and that both name what is wrong."""
    mine, other = lab.ours(*options, ordinary_user=ordinary_user), lab.theirs(*options, ordinary_user=ordinary_user)
    assert (mine.status, mine.output) == (1, "")
    assert (other.status, other.output) == (1, "")
    assert re.search(words, other.errors), other.errors
    assert re.search(words, mine.errors), mine.errors
    return mine, other


# A case: what is set aside, what is done to the copy in its place, what both say. TABLE, SPACE: the lab's names.

Change = Callable[[Path], object]


def a_socket(path: Path) -> None:
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        # The path may be too long for a socket's address.
        here = os.getcwd()
        os.chdir(path.parent)
        try:
            listener.bind(path.name)
        finally:
            os.chdir(here)


def replaced(by: Change) -> Change:
    def change(path: Path) -> None:
        remove(path)
        by(path)

    return change


def a_file(path: Path) -> None:
    path.write_text("a file")


def a_link_elsewhere(path: Path) -> None:
    """Move a file out of the backup and leave a link."""
    elsewhere = path.parents[3] / "elsewhere"
    elsewhere.unlink(missing_ok=True)
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


BAD: dict[str, tuple[str, Change, str]] = {
    "altered": ("TABLE", lambda path: flip(path, 20000), 'checksum mismatch for file "TABLE"'),
    "altered small": ("PG_VERSION", lambda path: flip(path, -1), 'checksum mismatch for file "PG_VERSION"'),
    "altered in tablespace": ("SPACE", lambda path: flip(rows_in(path)), 'checksum mismatch for file "SPACE/PG_'),
    "missing": ("TABLE", remove, '"TABLE" is present in the manifest but not on disk'),
    "extra": ("base/extra", a_file, '"base/extra" is present on disk but not in the manifest'),
    "extra directory": ("new", lambda path: path.mkdir() or a_file(path / "in"), '"new/in" is present on disk but not'),
    "missing directory": ("pg_xact", remove, '"pg_xact/0000" is present in the manifest but not on disk'),
    "truncated": ("TABLE", lambda path: cut(path, -8192), r'"TABLE" has size \d+ on disk but size \d+ in the manif'),
    "emptied": ("TABLE", lambda path: cut(path, 0), '"TABLE" has size 0 on disk but size'),
    "appended": ("TABLE", append, r'"TABLE" has size \d+ on disk but size \d+ in the manifest'),
    "directory for file": ("TABLE", replaced(Path.mkdir), '"TABLE" is present in the manifest but not on disk'),
    "file for directory": ("pg_xact", replaced(a_file), '"pg_xact" is present on disk but not in the manifest'),
    "fifo": ("base/fifo", os.mkfifo, "fifo\" is not a (regular )?file or directory"),
    "fifo for file": ("TABLE", replaced(os.mkfifo), "is not a (regular )?file or directory"),
    "socket": ("base/socket", a_socket, "socket\" is not a (regular )?file or directory"),
    "dangling link": ("TABLE", replaced(lambda path: path.symlink_to("nowhere")), "could not stat file or directory"),
    "missing tablespace": ("SPACE", remove, '"SPACE/PG_.*" is present in the manifest but not on disk'),
    "tablespace link dangles": (
        "SPACE", replaced(lambda path: path.symlink_to("/nowhere")), "could not stat file or directory"
    ),
    "extra in tablespace": ("SPACE", lambda path: a_file(path / "extra"), '"SPACE/extra" is present on disk but not'),
    "extra tablespace": (
        "pg_tblspc/99999", lambda path: path.mkdir() or a_file(path / "in"), '"pg_tblspc/99999/in" is present on disk'
    ),
    "missing manifest": ("backup_manifest", remove, "could not open file .*backup_manifest.*No such file"),
    "manifest is a directory": ("backup_manifest", replaced(Path.mkdir), "backup_manifest.*Is a directory"),
    "manifest altered": ("backup_manifest", lambda path: flip(path, 200), "manifest checksum mismatch|could not parse"),
    "manifest checksum altered": ("backup_manifest", lambda path: swap_digit(path), "manifest checksum mismatch"),
    "manifest cut": ("backup_manifest", lambda path: cut(path, 5000), "could not parse backup manifest"),
    "manifest without its last line": ("backup_manifest", lambda path: cut(path, -86), "could not parse backup manif"),
    "manifest without its last byte": ("backup_manifest", lambda path: cut(path, -1), "newline-term|could not parse"),
    "manifest with an empty line": ("backup_manifest", lambda path: append(path, b"\n"), "manifest checksum mismatch"),
    "manifest empty": ("backup_manifest", lambda path: cut(path, 0), "could not parse backup manifest"),
    "manifest no JSON": ("backup_manifest", lambda path: path.write_text("no\nJSON\n"), "could not parse backup manif"),
    "missing WAL": ("pg_wal", lambda path: first_segment(path).unlink(), "WAL"),
    "no pg_wal": ("pg_wal", remove, "WAL parsing failed for timeline 1"),
    "WAL cut": ("pg_wal", lambda path: cut(first_segment(path), 100), "WAL"),
    "WAL cut to nothing": ("pg_wal", lambda path: cut(first_segment(path), 0), "WAL"),
    "WAL page damaged": ("pg_wal", lambda path: flip(first_segment(path), 1), "WAL"),
    "WAL record damaged": ("pg_wal", lambda path: flip(first_segment(path), 60), "WAL"),
    "WAL zeroed": ("pg_wal", lambda path: zero(first_segment(path)), "WAL"),
}  # fmt: skip


def rows_in(path: Path) -> Path:
    return next(found for found in sorted(path.rglob("*")) if found.is_file() and found.stat().st_size)


def first_segment(directory: Path) -> Path:
    return min(found for found in directory.iterdir() if len(found.name) == 24)


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def swap_digit(path: Path) -> None:
    """Change the manifest's own checksum, and keep it a number."""
    content = path.read_bytes()
    digit = content[-10:-9]
    path.write_bytes(content[:-10] + (b"0" if digit != b"0" else b"1") + content[-9:])


@pytest.mark.parametrize("case", BAD)
def test_both_find_what_is_wrong(lab: Lab, case: str) -> None:
    name, change, words = (part.replace("TABLE", lab.table) if isinstance(part, str) else part for part in BAD[case])
    assert isinstance(name, str)
    assert isinstance(words, str)
    assert callable(change)
    name, words = name.replace("SPACE", lab.tablespace), words.replace("SPACE", lab.tablespace)
    with set_aside(lab.plain / name, aside=lab.directory) as path:
        if name == lab.tablespace and path.is_symlink():
            # Not through the link: the tablespace itself stays as it is.
            target = path.readlink()
            path.unlink()
            copy(target, path)
        change(path)
        mine, _ = assert_alike(lab, words)
        assert "Traceback" not in mine.errors
        assert "problem" in mine.errors.splitlines()[-1]


def test_both_accept_what_was_not_touched(lab: Lab) -> None:
    mine = lab.ours()
    # cron mails whatever comes beside the verdict.
    assert (mine.status, mine.output, mine.errors) == (0, GOOD, "")
    assert lab.ours("-q").output == lab.ours("-q").errors == ""
    for asked in ("--summary", "-P"):
        more = lab.ours(asked)
        assert (more.status, more.output) == (0, GOOD)
        assert "checked: " in more.errors
        assert not re.search("error|warning|not checked", more.errors), more.errors
    assert lab.theirs().output.endswith(GOOD)


# What is good for both, though something is different from the day of the backup


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("recovery.signal", a_file),
        ("standby.signal", a_file),
        ("postgresql.auto.conf", lambda path: append(path, b"primary_conninfo = 'host=x'\n")),
        ("pg_wal/archive_status/x.done", a_file),
        ("base/empty", Path.mkdir),
        ("backup_manifest", lambda path: rewrite_manifest(path, lambda fields: None)),
    ],
    ids=["recovery.signal", "standby.signal", "settings", "in pg_wal", "empty directory", "manifest laid out"],
)
def test_both_accept(lab: Lab, name: str, change: Change) -> None:
    with set_aside(lab.plain / name.replace("TABLE", lab.table), aside=lab.directory) as path:
        change(path)
        mine, other = lab.ours(), lab.theirs()
        assert (mine.status, mine.output) == (0, GOOD), mine.errors
        assert (other.status, other.output) == (0, GOOD), other.errors
        # Lines that -R or ALTER SYSTEM on the copy would have added are no reason for a warning.
        assert "warning" not in mine.errors


def test_a_file_that_is_a_link_out_of_the_backup_is_compared_and_warned_of(lab: Lab) -> None:
    with set_aside(lab.plain / lab.table, aside=lab.directory) as path:
        a_link_elsewhere(path)
        mine = lab.ours()
        assert (mine.status, mine.output) == (0, GOOD), mine.errors
        assert lab.theirs().output == GOOD
        assert f'warning: "{lab.table}" is a link to a file outside of the backup' in mine.errors
        flip(path.resolve(), 20000)
        assert_alike(lab, f'checksum mismatch for file "{lab.table}"')
        # Of what is not in the backup nothing but that is told.
        assert "page with a wrong checksum" not in lab.ours().errors


def test_a_strangers_link_is_a_problem_and_not_read(lab: Lab) -> None:
    secret = lab.directory / "secret"
    secret.write_text("secret")
    for name in ("stolen", f"{Path(lab.table).parent}/99999", "pg_xact/0001"):
        with set_aside(lab.plain / name, aside=lab.directory) as path:
            path.symlink_to(secret)
            mine = lab.ours()
            assert mine.status == 1
            assert f'error: "{name}" is a link to a file outside of the backup' in mine.errors


def test_a_directory_that_is_a_link_out_of_the_backup_is_lost(lab: Lab) -> None:
    # pg_verifybackup follows it, and whoever copies or restores the backup has one database less.
    for name in (str(Path(lab.table).parent), "pg_xact"):
        with set_aside(lab.plain / name, aside=lab.directory) as path:
            elsewhere = lab.directory / "elsewhere_directory"
            path.rename(elsewhere)
            path.symlink_to(elsewhere)
            try:
                assert lab.theirs().is_good
                mine = lab.ours()
                assert not mine.is_good
                assert f'error: "{name}" is a link to a directory outside of the backup: "{elsewhere}"' in mine.errors
                # What lies behind the link is not reported file by file.
                assert "not on disk" not in mine.errors
            finally:
                remove(elsewhere)


def test_a_backup_that_is_still_being_made_is_none(lab: Lab) -> None:
    for kind in ("plain", "NONE"):
        path = lab.directory / kind / MARKER_NAME
        path.write_bytes(marker_content(datetime(2026, 11, 26, tzinfo=UTC), 4711))
        try:
            mine = ours("-n", path.parent)
            assert mine.status == 1
            assert "the backup is still being made, or was cut off" in mine.errors
            assert "process 4711" in mine.errors
            assert mine.errors.count("error:") == 1
        finally:
            path.unlink()


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("PG_VERSION", lambda path: path.chmod(0), 'could not read file "PG_VERSION": Permission denied'),
        ("PG_VERSION", replaced(os.mkfifo), '"PG_VERSION" is not a file or directory'),
        ("PG_VERSION", replaced(lambda path: path.symlink_to("nowhere")), 'could not stat file or directory "PG_VERSI'),
        ("PG_VERSION", replaced(lambda path: path.symlink_to("PG_VERSION")), 'could not stat file or directory "PG_V'),
        ("backup_label", lambda path: path.chmod(0), 'could not read file "backup_label": Permission denied'),
        ("global/pg_control", lambda path: path.chmod(0), 'could not read file "global/pg_control": Permission denied'),
        ("global/pg_control", replaced(a_socket), '"global/pg_control" is not a file or directory'),
    ],
)
def test_what_cannot_be_read_is_reported_once(lab: Lab, name: str, change: Change, words: str) -> None:
    with set_aside(lab.plain / name, aside=lab.directory) as path:
        change(path)
        mine = lab.ours(ordinary_user=True)
        assert mine.status == 1
        (said,) = [line for line in mine.errors.splitlines() if "error:" in line]
        assert words in said


def test_a_damaged_page_is_reported_once(lab: Lab) -> None:
    with set_aside(lab.plain / lab.table, aside=lab.directory) as path:
        flip(path, 20000)
        (said,) = [line for line in lab.ours("--pages").errors.splitlines() if "error:" in line]
        assert f'checksum mismatch for file "{lab.table}"' in said
        if lab.ours("--json").output.count('"page-checksum"'):
            assert "1 page with a wrong checksum: block 2 (calculated" in said


def test_settings_that_changed_are_a_warning_and_no_more(lab: Lab) -> None:
    # pg_verifybackup leaves postgresql.auto.conf out. So do we, but whoever restores should look at it.
    with set_aside(lab.plain / "postgresql.auto.conf", aside=lab.directory) as path:
        flip(path, 5)
        assert lab.theirs().is_good
        mine = lab.ours()
        assert mine.is_good
        assert 'warning: "postgresql.auto.conf" is not what the server sent' in mine.errors


def test_what_may_not_be_read_is_named(lab: Lab) -> None:
    # As the servers' user: root may read everything.
    for name, mode in ((lab.table, 0o200), ("pg_xact", 0o300), ("backup_manifest", 0o200)):
        path = lab.plain / name
        before = path.stat().st_mode
        path.chmod(mode)
        try:
            assert_alike(
                lab, rf'could not (open|read) (file|directory) ".*{name}": Permission denied', ordinary_user=True
            )
        finally:
            path.chmod(before)


# Manifests that no server writes; their own checksum is right


def duplicate(fields: dict[str, Any]) -> None:
    fields["Files"].append(dict(label_of(fields)))


def label_of(fields: dict[str, Any]) -> dict[str, Any]:
    return next(entry for entry in fields["Files"] if entry.get("Path") == "backup_label")


def entry(**values: Any) -> Callable[[dict[str, Any]], None]:
    """Return an edit that sets fields of backup_label's entry; None takes one out."""

    def edit(fields: dict[str, Any]) -> None:
        found = label_of(fields)
        for name, value in values.items():
            found[name.replace("_", "-")] = value
            if value is None:
                del found[name.replace("_", "-")]

    return edit


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (duplicate, 'duplicate path name in backup manifest: "backup_label"'),
        (entry(Checksum_Algorithm="SHA111"), 'unrecognized checksum algorithm: "SHA111"'),
        (entry(Checksum="01020304"), 'checksum mismatch for file "backup_label"'),
        (entry(Checksum="zz"), "could not parse backup manifest|invalid checksum for file"),
        (entry(Size=1), r'"backup_label" has size \d+ on disk but size 1 in the manifest'),
        (entry(Path="elsewhere"), '"elsewhere" is present in the manifest but not on disk'),
        (entry(Size="many"), "could not parse backup manifest"),
        (entry(Path=None), "could not parse backup manifest"),
        (entry(Size=None), "could not parse backup manifest"),
        (entry(Checksum_Algorithm=None), "could not parse backup manifest"),
        (entry(Encoded_Path="00"), "could not parse backup manifest"),
        (entry(Path=None, Encoded_Path="0g"), "could not parse backup manifest"),
        (lambda fields: fields.update({"PostgreSQL-Backup-Manifest-Version": 9}), "unexpected manifest version"),
        (lambda fields: fields["WAL-Ranges"][0].update({"Start-LSN": "oops"}), "could not parse backup manifest"),
        (lambda fields: fields.pop("PostgreSQL-Backup-Manifest-Version"), "could not parse backup manifest|version"),
    ],
)
def test_both_refuse_a_manifest_that_is_wrong(lab: Lab, edit: Callable[[dict[str, Any]], None], words: str) -> None:
    with set_aside(lab.plain / "backup_manifest", aside=lab.directory) as path:
        rewrite_manifest(path, edit)
        assert_alike(lab, words)


def test_the_manifest_of_another_cluster_is_noticed(labs: Callable[[int], Lab], lab: Lab) -> None:
    """PostgreSQL 17 and later write the system identifier into the manifest; before, the files alone tell."""
    with set_aside(lab.plain / "backup_manifest", aside=lab.directory) as path:
        fields = json.loads(path.read_bytes())
        if lab.installation.major < 17:
            assert "System-Identifier" not in fields
            return
        rewrite_manifest(path, lambda fields: fields.update({"System-Identifier": fields["System-Identifier"] + 1}))
        mine, _ = assert_alike(lab, "system identifier")
        assert "of two clusters" in mine.errors


def test_a_file_name_that_is_no_text_is_found_by_its_bytes(lab: Lab) -> None:
    with set_aside(lab.plain / ODD_NAME, aside=lab.directory) as path:
        path.write_text("not the server's File")
        assert_alike(lab, "checksum mismatch for file .odd ")
        # Output that cannot be text all the same is JSON.
        ((severity, check, subject),) = findings(lab.plain)
        assert (severity, check) == ("problem", "wrong-checksum")
        assert subject.startswith("odd ")
    # A name must not be taken for a command by a terminal.
    with set_aside(lab.plain / "red \x1b[31m", aside=lab.directory) as path:
        a_file(path)
        assert '"red ?[31m" is present on disk but not in the manifest' in lab.ours().errors


# Options


def test_what_is_ignored_is_not_looked_at(lab: Lab) -> None:
    with set_aside(lab.plain / lab.table, aside=lab.directory) as table:
        flip(table, 20000)
        for options in (["-i", lab.table], ["--ignore=base"], ["-i", "global", "-i", "base"]):
            mine, other = lab.ours(*options), lab.theirs(*options)
            assert mine.is_good is other.is_good is True, (options, mine, other)
        # Version 13 takes a path letter by letter; ours never does.
        other_spelling = ["-i", f"./base//{Path(lab.table).parent.name}/"]
        assert lab.ours(*other_spelling).is_good
        assert lab.theirs(*other_spelling).is_good or lab.installation.major < 15
        assert not lab.ours("-i", lab.table[:-1]).is_good
        assert not lab.theirs("-i", lab.table[:-1]).is_good
        table.unlink()
        assert lab.ours("-i", lab.table).is_good
        assert lab.theirs("-i", lab.table).is_good
        a_file(table.with_name("extra"))
        try:
            assert not lab.ours("-i", lab.table).is_good
            assert not lab.theirs("-i", lab.table).is_good
        finally:
            table.with_name("extra").unlink()


def test_only_the_first_error_with_exit_on_error(lab: Lab) -> None:
    with set_aside(lab.plain / "pg_xact", aside=lab.directory) as path:
        remove(path)
        a_file(path)
        mine, other = assert_alike(lab, "pg_xact", "-e")
        assert mine.errors.count("error:") == other.errors.count("error:") == 1
        assert lab.ours().errors.count("error:") > 1


def test_checksums_are_skipped_but_not_sizes(lab: Lab) -> None:
    with set_aside(lab.plain / lab.table, aside=lab.directory) as path:
        flip(path, 20000)
        assert lab.theirs("-s").is_good
        assert lab.ours("--skip-checksums").is_good
        # Page checksums are not among those that -s means when they are asked for.
        assert "page" in lab.ours("-s", "--pages").errors
        append(path)
        assert_alike(lab, "has size", "-s")


def test_nothing_but_errors_is_said_when_quiet(lab: Lab) -> None:
    mine, other = lab.ours("-q"), lab.theirs("-q")
    assert mine == other == Verdict(0, "", "")
    with set_aside(lab.plain / "PG_VERSION", aside=lab.directory) as path:
        flip(path)
        assert_alike(lab, 'checksum mismatch for file "PG_VERSION"', "-q")


def test_the_manifest_may_lie_elsewhere(lab: Lab) -> None:
    manifest = lab.plain / "backup_manifest"
    elsewhere = lab.directory / "manifest elsewhere"
    manifest.rename(elsewhere)
    try:
        assert lab.ours("-m", str(elsewhere)).output == lab.theirs("-m", str(elsewhere)).output == GOOD
        assert_alike(lab, "could not open file .*nowhere", "--manifest-path=/nowhere")
    finally:
        elsewhere.rename(manifest)


def test_wal_may_lie_elsewhere_or_be_left_out(lab: Lab) -> None:
    wal, elsewhere = lab.plain / "pg_wal", lab.directory / "wal"
    wal.rename(elsewhere)
    try:
        assert lab.ours("-w", str(elsewhere)).output == lab.theirs("-w", str(elsewhere)).output == GOOD
        assert lab.ours("-n").output == lab.theirs("-n").output == GOOD
        assert "not checked: WAL" in lab.ours("-n", "--summary").errors
        assert_alike(lab, "WAL parsing failed for timeline 1")
        for nowhere in ("/nowhere", str(lab.plain)):
            assert not lab.theirs("-w", nowhere).is_good
            mine = lab.ours("-w", nowhere)
            assert mine.status == 1
            assert nowhere in mine.errors
    finally:
        elsewhere.rename(wal)


def test_progress_is_shown(lab: Lab) -> None:
    mine = lab.ours("-P")
    assert re.search(r"\d+/\d+ kB \(100%\) verified", mine.errors)
    if lab.installation.major >= 16:
        assert re.search(r"\d+/\d+ kB \(100%\) verified", lab.theirs("-P").errors)


@pytest.mark.parametrize("algorithm", ["NONE", "SHA512"])
def test_every_kind_of_checksum_in_the_manifest(lab: Lab, algorithm: str) -> None:
    backup = lab.directory / algorithm
    assert theirs(lab.installation, "-n", backup).output == ours("-n", backup).output == GOOD
    # The backup was taken with -X none.
    assert theirs(lab.installation, backup).status == ours(backup).status == 1
    with set_aside(backup / "PG_VERSION", aside=lab.directory) as path:
        flip(path, -1)
        mine, other = ours("-n", backup), theirs(lab.installation, "-n", backup)
        assert other.is_good is (algorithm == "NONE")
        # Without a checksum of the file: its line feed is not what PG_VERSION ends with, which we see and it does not.
        assert mine.is_good is other.is_good
    with set_aside(backup / lab.table, aside=lab.directory) as path:
        flip(path, 20000)
        # Pages have checksums of their own.
        assert findings("-n", backup)[-1] == ("problem", "page-checksum", lab.table)
        assert theirs(lab.installation, "-n", backup).is_good is (algorithm == "NONE")


@pytest.mark.parametrize("algorithm", ["SHA224", "SHA256", "SHA384", "CRC32C"])
def test_every_checksum_algorithm(labs: Callable[[int], Lab], algorithm: str) -> None:
    """Only the manifest differs, so it is computed here: the real tool says whether it was done right."""
    lab = labs(18)

    def edit(fields: dict[str, Any]) -> None:
        for entry in fields["Files"]:
            path = entry.get("Path") or os.fsdecode(bytes.fromhex(entry["Encoded-Path"]))
            content = (lab.plain / path).read_bytes()
            entry["Checksum-Algorithm"] = algorithm
            if algorithm == "CRC32C":
                assert entry["Checksum"]
            else:
                entry["Checksum"] = hashlib.new(algorithm, content).hexdigest()

    with set_aside(lab.plain / "backup_manifest", aside=lab.directory) as path:
        rewrite_manifest(path, edit)
        assert lab.theirs().output == lab.ours().output == GOOD
        with set_aside(lab.plain / "backup_label", aside=lab.directory / "..") as label:
            flip(label)
            assert_alike(lab, 'checksum mismatch for file "backup_label"')


def test_arguments_that_make_no_sense(labs: Callable[[int], Lab], workspace: Path) -> None:
    lab = labs(18)
    (workspace / "empty").mkdir()
    (workspace / "file").write_text("")
    for arguments, words in (
        ([], "no backup directory specified"),
        ([lab.plain, workspace], "too many command-line arguments"),
        (["-P", "-q", lab.plain], "cannot specify both"),
        (["-F", "x", lab.plain], 'invalid backup format "x", must be "plain" or "tar"'),
        ([workspace / "nowhere"], "could not open|could not stat"),
        ([workspace / "file"], "is not a directory|could not open file|could not stat|Not a directory|it is empty"),
        ([workspace / "empty"], "could not open file|is not a backup"),
        (["-Fp", workspace / "empty"], "could not open file .*backup_manifest"),
        (["-Ft", "-n", workspace / "empty"], "could not open file .*backup_manifest"),
        (["--no-such-option", lab.plain], "unrecognized option|[Nn]o such option"),
    ):
        mine = run_polarvault("verifybackup", *arguments, check=False)
        other = theirs(lab.installation, *arguments)
        assert (mine.returncode, other.status) == (1, 1), arguments
        assert re.search(words, other.errors), other.errors
        assert re.search(words, mine.stderr), mine.stderr
        assert "Traceback" not in mine.stderr
