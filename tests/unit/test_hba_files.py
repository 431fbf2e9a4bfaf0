"""Which files pg_hba.conf names, and a pg_hba.conf that a server takes without them."""

from __future__ import annotations

import pytest

from polarvault.pgconf.hba import ReferenceKind, references, without_missing

HBA = b"""# @comment
local all all peer   # @comment
host all @admins 10.0.0.0/8 scram-sha-256
host "@db",@more/dbs,app +group,@users \\
     0.0.0.0/0 md5
host all @evil all reject
include 'ignored quotes'
include "/etc/pg/with space.conf"
include_if_exists maybe.conf
include_dir hba.d
"include" all all trust
local @ all peer
"""


def test_every_file_is_found_with_its_lines() -> None:
    found = [(one.first_line, one.last_line, one.kind, one.target) for one in references(HBA)]
    assert found == [
        (3, 3, ReferenceKind.WORDS, "admins"),
        (4, 5, ReferenceKind.WORDS, "more/dbs"),
        (4, 5, ReferenceKind.WORDS, "users"),
        (6, 6, ReferenceKind.WORDS, "evil"),
        (7, 7, ReferenceKind.INCLUDE, "'ignored"),
        (8, 8, ReferenceKind.INCLUDE, "/etc/pg/with space.conf"),
        (9, 9, ReferenceKind.INCLUDE_IF_EXISTS, "maybe.conf"),
        (10, 10, ReferenceKind.INCLUDE_DIR, "hba.d"),
    ]


def test_names_are_relative_to_the_file_that_has_them() -> None:
    paths = [one.path_from("/etc/pg/pg_hba.conf") for one in references(b"host all @a,@../b all md5\ninclude /c\n")]
    assert paths == ["/etc/pg/a", "/etc/b", "/c"]


def test_lines_whose_files_are_there_stay_as_they_are() -> None:
    assert without_missing(HBA, "/d/pg_hba.conf", lambda path: True, "why") == (HBA, [])


def test_lines_whose_files_are_absent_are_commented_out_and_named() -> None:
    content, missing = without_missing(HBA, "/d/pg_hba.conf", lambda path: path == "/d/hba.d", "why")
    lines = content.split(b"\n")
    assert b"#host all @admins 10.0.0.0/8 scram-sha-256  # why" in lines
    assert b'#host "@db",@more/dbs,app +group,@users   # why' in lines
    assert b"#     0.0.0.0/0 md5  # why" in lines
    assert b"include_if_exists maybe.conf" in lines
    assert b"include_dir hba.d" in lines
    assert {one.target for one in missing} >= {"admins", "users", "/etc/pg/with space.conf"}
    # Nothing that is still read names a file that is not there.
    assert without_missing(content, "/d/pg_hba.conf", lambda path: path == "/d/hba.d", "why") == (content, [])


def test_a_line_that_rejects_rejects_everybody_without_its_file() -> None:
    content, _ = without_missing(b"host all @evil,mallory all reject\n", "/d/pg_hba.conf", lambda path: False, "why")
    assert content.split(b"\n")[1] == b"host all all,mallory all reject"


@pytest.mark.parametrize(
    "content", [b"", b"\\", b'"', b"@", b"host all @a", b"\xff @\xfe x\n", b"include\n", b"a\\\r\n@b"]
)
def test_odd_files_are_read_to_their_end(content: bytes) -> None:
    list(references(content))
    without_missing(content, "/d/pg_hba.conf", lambda path: False, "why")
