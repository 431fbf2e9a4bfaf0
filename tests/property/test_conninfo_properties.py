"""Connection strings in configuration files: what libpq parses from what the server reads is what went in."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from polarvault.basebackup.recovery_settings import encode_settings
from polarvault.errors import UsageError
from polarvault.pgconf.grammar import decode, encode, parse_line
from polarvault.server.conninfo import format_conninfo, parse_conninfo

KEYWORDS = ("host", "user", "password", "application_name", "passfile", "options", "dbname")
BYTES = st.binary(min_size=1, max_size=20).map(lambda raw: raw.replace(b"\0", b"0"))
# More of what has a meaning somewhere on the way than chance would bring.
AWKWARD = st.lists(
    st.sampled_from([b"'", b"\\", b"\n", b"\r", b" ", b"=", b"#", b"\xff", b"a", b"\\n", b"''"]), min_size=1
)
VALUES = st.one_of(BYTES, AWKWARD.map(b"".join)).map(decode)
WORDS = st.dictionaries(st.sampled_from(KEYWORDS), VALUES, min_size=1)


@given(WORDS)
@example({"password": "pa'ss"})
@example({"password": "pa\\ss"})
@example({"password": "a\\"})
@example({"host": "/a dir,/tmp", "application_name": "x=y # z"})
def test_libpq_finds_what_was_put_into_a_connection_string(words: dict[str, str]) -> None:
    assert parse_conninfo(format_conninfo(words)) == words


@given(WORDS)
@example({"password": "quo'te\\n\n\\"})
def test_a_configuration_file_gives_back_every_byte_of_a_connection_string(words: dict[str, str]) -> None:
    (line,) = encode_settings({"primary_conninfo": format_conninfo(words)}).splitlines(keepends=True)
    parsed = parse_line(line)
    assert parsed is not None
    assert parse_conninfo(parsed.value) == words


@given(VALUES)
def test_any_path_survives_its_line_for_polar_datadir(path: str) -> None:
    (line,) = encode_settings({"polar_datadir": f"file-dio:///{path}"}).splitlines(keepends=True)
    parsed = parse_line(line)
    assert parsed is not None
    assert parsed.value == f"file-dio:///{path}"


@pytest.mark.parametrize("text", ["abc", "host", "postgres://a b/", "nonsense=1", "host='a", "postgresql://%zz/"])
def test_a_wrong_connection_string_is_refused_in_libpqs_words(text: str) -> None:
    with pytest.raises(UsageError, match="invalid connection string"):
        parse_conninfo(text)


def test_a_uri_may_hold_bytes_that_are_no_text() -> None:
    assert encode(parse_conninfo("postgresql://u:%FF%27@h:1,k/?options=x%5C")["password"]) == b"\xff'"
