"""Whatever a configuration file holds, an edit changes what it was told to change and not one byte more."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from polarvault.pgconf.configuration import Configuration, MemoryReader
from polarvault.pgconf.document import ConfDocument
from polarvault.pgconf.grammar import LineSyntaxError, format_value, parse_line, quote_value

names = st.from_regex(rb"\A[A-Za-z_][A-Za-z_0-9]{0,8}(\.[a-z]{1,4})?\Z").filter(
    lambda name: not name.startswith(b"inc")
)
values = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=20)
blanks = st.sampled_from([b"", b" ", b"\t", b"  \t"])
ends = st.sampled_from([b"\n", b"\r\n"])
comments = st.one_of(st.just(b""), st.binary(max_size=10).map(lambda body: b"#" + body.replace(b"\n", b"")))


@st.composite
def setting_lines(draw: st.DrawFn) -> bytes:
    name, value = draw(names), draw(values).encode()
    text = format_value(value.decode()) if draw(st.booleans()) else quote_value(value.decode())
    equals = draw(st.sampled_from([b"=", b" ", b" = ", b"\t=  "]))
    return draw(blanks) + name + equals + text.encode() + draw(blanks) + draw(comments) + draw(ends)


lines = st.one_of(
    setting_lines(),
    comments.flatmap(lambda comment: ends.map(lambda end: comment + end)),
    st.binary(max_size=30).map(lambda body: body.replace(b"\n", b"") + b"\n"),
)
files = st.lists(lines, max_size=8).flatmap(
    lambda parts: st.binary(max_size=6).map(lambda tail: b"".join(parts) + tail.replace(b"\n", b""))
)


@given(values)
def test_a_quoted_value_is_read_back_unchanged(value: str) -> None:
    for written in (quote_value(value), format_value(value)):
        parsed = parse_line(b"name = " + written.encode() + b"  # comment\n")
        assert parsed is not None
        assert parsed.value == value


@given(st.binary(max_size=400))
def test_any_bytes_survive_a_round_trip(content: bytes) -> None:
    assert ConfDocument(content).content == content


@given(files)
def test_reading_never_changes_a_file(content: bytes) -> None:
    document = ConfDocument(content)
    list(document.entries())
    assert document.content == content


@given(files, values, st.data())
def test_an_edit_changes_one_value_and_nothing_else(content: bytes, value: str, data: st.DataObject) -> None:
    document = ConfDocument(content)
    entries = list(document.entries())
    if not entries:
        return
    chosen = data.draw(st.sampled_from(entries))
    before = content.split(b"\n")
    document.set_value(chosen.line, value)
    after = document.content.split(b"\n")
    assert [line for i, line in enumerate(after) if i != chosen.line - 1] == [
        line for i, line in enumerate(before) if i != chosen.line - 1
    ]
    old, new = parse_line(before[chosen.line - 1]), parse_line(after[chosen.line - 1])
    assert old is not None
    assert new is not None
    assert (new.name, new.value) == (old.name, value)
    # Everything behind the value, comment and carriage return included, is as it was.
    assert after[chosen.line - 1][new.value_end :] == before[chosen.line - 1][old.value_end :]


@given(files, files, names, values)
def test_what_was_set_wins_in_every_file(main: bytes, auto: bytes, name: bytes, value: str) -> None:
    reader = MemoryReader({"/d/postgresql.conf": main, "/d/postgresql.auto.conf": auto})
    found = Configuration("/d", reader)
    found.set(name.decode(), value, "polarvault restore")
    # Read again from the bytes that would be written: that is what the server sees.
    again = Configuration("/d", MemoryReader({**reader.files, **found.edited()}))
    assert again.value(name.decode()) == value
    assert len(again.lines(name.decode())) == 1


@given(st.binary(max_size=60))
def test_any_line_is_parsed_or_refused(line: bytes) -> None:
    try:
        parsed = parse_line(line.replace(b"\n", b""))
    except LineSyntaxError:
        return
    if parsed is not None:
        assert 0 < parsed.value_start < parsed.value_end <= len(line)
