"""The configuration editor: the server's grammar, who wins, and what an edit leaves alone."""

from __future__ import annotations

import pytest

from polarvault.pgconf.configuration import Configuration, MemoryReader, is_included_name
from polarvault.pgconf.document import ConfDocument
from polarvault.pgconf.grammar import LineSyntaxError, format_value, parse_line, quote_value


def configuration(cluster_file: str | None = None, **files: bytes) -> Configuration:
    """Make a configuration in /d; a name such as postgresql_conf stands for postgresql.conf."""
    named = {"/d/" + name.replace("_auto", ".auto").replace("_conf", ".conf"): body for name, body in files.items()}
    if cluster_file is not None:
        named["/s/global/polar_settings.conf"] = named.pop("/d/cluster.conf")
    return Configuration("/d", MemoryReader(named), cluster_file=cluster_file)


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        (b"port = 5432\n", "port", "5432"),
        (b"port 5432", "port", "5432"),
        (b"PORT=5432#x", "port", "5432"),
        (b"\tshared_buffers\t=\t'1GB'  # note\r\n", "shared_buffers", "1GB"),
        (b"name = 'it''s'", "name", "it's"),
        (rb"name = 'it\'s \101\n\x'", "name", "it's A\nx"),
        (rb"preload ='\$libdir/x'", "preload", "$libdir/x"),
        (b"polar_vfs.localfs_mode = true", "polar_vfs.localfs_mode", "true"),
        (b"cost = -1.5e3", "cost", "-1.5e3"),
        (b"mask = 0x1F", "mask", "0x1F"),
        (b"path = a/b-c:d", "path", "a/b-c:d"),
        (b"search_path = a.b.c", "search_path", "a.b.c"),
        (b"port 'a # b'", "port", "a # b"),
        (b"\xe4nder = on", "\udce4nder", "on"),
        (b"include_dir 'conf.d'", "include_dir", "conf.d"),
    ],
)
def test_a_line_is_read_as_the_server_reads_it(line: bytes, name: str, value: str) -> None:
    parsed = parse_line(line)
    assert parsed is not None
    assert (parsed.name, parsed.value) == (name, value)


@pytest.mark.parametrize("line", [b"", b"\n", b"  # port = 1\n", b"#port = 1", b"\r\n"])
def test_a_comment_holds_no_setting(line: bytes) -> None:
    assert parse_line(line) is None


@pytest.mark.parametrize(
    "line", [b"port", b"port =", b"= 1", b"1 = 1", b"port = 'a", b"port = 1 2", b"search_path = a.b", b"a = b = c"]
)
def test_what_the_server_refuses_is_refused(line: bytes) -> None:
    with pytest.raises(LineSyntaxError):
        parse_line(line)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("on", "on"),
        ("5432", "5432"),
        ("64MB", "64MB"),
        ("a b", "'a b'"),
        ("it's", "'it''s'"),
        ("", "''"),
        ("\\", "'\\\\'"),
    ],
)
def test_values_are_quoted_only_where_needed(value: str, written: str) -> None:
    assert format_value(value) == written


def test_a_nul_character_cannot_be_quoted() -> None:
    with pytest.raises(ValueError, match="NUL"):
        quote_value("a\0b")


def test_an_edit_keeps_name_spacing_comment_and_line_end() -> None:
    document = ConfDocument(b"# first\r\n  Port\t=\t5432\t# the port\r\nother = 1")
    document.set_value(2, "5433")
    assert document.content == b"# first\r\n  Port\t=\t5433\t# the port\r\nother = 1"


def test_an_edit_of_a_value_that_touches_its_name_keeps_them_apart() -> None:
    document = ConfDocument(b"port'5432'\n")
    document.set_value(1, "5433")
    assert document.content == b"port 5433\n"


def test_a_commented_line_keeps_its_text_and_says_why() -> None:
    document = ConfDocument(b"archive_command = 'cp %p /a/%f' # to the archive\r\n")
    document.comment_out(1, "why")
    assert document.content == b"#archive_command = 'cp %p /a/%f' # to the archive  # why\r\n"
    assert list(document.entries()) == []


def test_appended_lines_follow_a_last_line_without_an_end() -> None:
    document = ConfDocument(b"a = 1\r\nb = 2")
    document.append(["c = 3"])
    assert document.content == b"a = 1\r\nb = 2\r\nc = 3\r\n"


def test_the_last_line_wins_and_auto_conf_beats_postgresql_conf() -> None:
    found = configuration(postgresql_conf=b"port = 1\nport = 2\nwork_mem = 1MB\n", postgresql_auto_conf=b"Port = 3\n")
    assert found.value("port") == "3"
    assert found.value("WORK_MEM") == "1MB"
    assert found.value("other") is None


def test_polar_settings_lose_against_postgresql_conf() -> None:
    found = configuration(
        "/s/global/polar_settings.conf", cluster_conf=b"work_mem = 9MB\nport = 9\n", postgresql_conf=b"port = 1\n"
    )
    assert (found.value("port"), found.value("work_mem")) == ("1", "9MB")


def test_setting_a_value_edits_the_winner_and_disarms_the_losers() -> None:
    found = configuration(postgresql_conf=b"port = 1 # one\nport = 2 # two\n", postgresql_auto_conf=b"port = 3\n")
    assert found.set("port", "4", "why") == "/d/postgresql.auto.conf"
    assert found.value("port") == "4"
    assert found.edited() == {
        "/d/postgresql.auto.conf": b"port = 4\n",
        "/d/postgresql.conf": b"#port = 1 # one  # why\n#port = 2 # two  # why\n",
    }


def test_new_settings_go_into_one_marked_block() -> None:
    found = configuration(postgresql_conf=b"port = 1")
    found.set("a", "1", "mark")
    found.set("b", "x y", "mark")
    assert found.edited()["/d/postgresql.conf"] == b"port = 1\n\n# mark\na = 1\nb = 'x y'\n"


def test_a_winner_in_polar_settings_is_overridden_where_replay_cannot_reach() -> None:
    found = configuration("/s/global/polar_settings.conf", cluster_conf=b"work_mem = 9MB\n", postgresql_conf=b"a = 1\n")
    assert found.set("work_mem", "1MB", "mark") == "/d/postgresql.conf"
    assert found.value("work_mem") == "1MB"
    assert found.edited()["/s/global/polar_settings.conf"].startswith(b"#work_mem")


def test_includes_are_followed_in_place() -> None:
    files = {
        "/d/postgresql.conf": b"include 'x.conf'\nport = 1\ninclude_dir = 'conf.d'\ninclude_if_exists 'none.conf'\n",
        "/d/x.conf": b"port = 2\nwork_mem = 2MB\n",
        "/d/conf.d/b.conf": b"port = 4\n",
        "/d/conf.d/a.conf": b"port = 3\n",
        "/d/conf.d/.hidden.conf": b"port = 9\n",
        "/d/conf.d/note.txt": b"port = 9\n",
    }
    found = Configuration("/d", MemoryReader(files))
    assert [setting.value for setting in found.lines("port")] == ["2", "1", "3", "4"]
    assert not found.bad_includes
    assert found.set("work_mem", "3MB", "why") == "/d/x.conf"


def test_a_missing_include_is_reported_and_can_be_disarmed() -> None:
    found = configuration(postgresql_conf=b"include '/etc/none.conf'\nport = 1\n")
    (bad,) = found.bad_includes
    assert (bad.target, bad.line) == ("/etc/none.conf", 1)
    found.disable_include(bad, "why")
    assert not found.bad_includes
    assert found.edited()["/d/postgresql.conf"].startswith(b"#include")


def test_includes_that_loop_end() -> None:
    files = {"/d/postgresql.conf": b"include 'a.conf'\n", "/d/a.conf": b"include 'postgresql.conf'\nport = 1\n"}
    assert Configuration("/d", MemoryReader(files)).value("port") == "1"


def test_a_file_outside_of_the_data_directory_is_never_edited() -> None:
    files = {"/d/postgresql.conf": b"include '/etc/x.conf'\n", "/etc/x.conf": b"polar_datadir = '/live'\n"}
    found = Configuration("/d", MemoryReader(files))
    assert found.outside_files() == ["/etc/x.conf"]
    assert found.set("polar_datadir", "/new", "mark") == "/d/postgresql.conf"
    assert found.value("polar_datadir") == "/new"
    assert set(found.edited()) == {"/d/postgresql.conf"}


def test_disabling_comments_every_line_out() -> None:
    found = configuration(postgresql_conf=b"a = 1\nb = 2\na = 3\n", postgresql_auto_conf=b"a = 4\n")
    assert [setting.value for setting in found.disable("a", "why")] == ["1", "3", "4"]
    assert found.value("a") is None
    assert found.disable("none", "why") == []


def test_lines_with_errors_are_named() -> None:
    assert ConfDocument(b"a = 1\n= 2\nport\n").broken_lines() == [2, 3]


@pytest.mark.parametrize(("name", "taken"), [("a.conf", True), (".a.conf", False), (".conf", False), ("a.txt", False)])
def test_include_dir_takes_conf_files_only(name: str, taken: bool) -> None:
    assert is_included_name(name) is taken
