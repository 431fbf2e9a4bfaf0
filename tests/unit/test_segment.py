"""WAL segment arithmetic against what servers print."""

from __future__ import annotations

import pytest

from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment, is_segment_size

MB = 1 << 20


@pytest.mark.parametrize(
    ("lsn", "timeline", "size_mb", "name"),
    [
        # As pg_walfile_name prints them.
        ("0/1", 1, 16, "000000010000000000000000"),
        ("0/1D42488", 1, 16, "000000010000000000000001"),
        ("16/B374D848", 3, 16, "0000000300000016000000B3"),
        ("0/1D42488", 1, 1, "00000001000000000000001D"),
        ("1/0", 1, 1, "000000010000000100000000"),
        ("0/FFFFFFFF", 1, 1024, "000000010000000000000003"),
        ("1/40000000", 10, 1024, "0000000A0000000100000001"),
        ("FFFFFFFF/FFFFFFFF", 4294967295, 64, "FFFFFFFFFFFFFFFF0000003F"),
    ],
)
def test_the_name_is_the_server_s(lsn: str, timeline: int, size_mb: int, name: str) -> None:
    segment = WalSegment.holding(Lsn.parse(lsn), timeline, size_mb * MB)
    assert segment.file_name == name
    assert WalSegment.parse(name, size_mb * MB) == segment


def test_a_segment_ends_where_the_next_begins() -> None:
    segment = WalSegment.parse("0000000100000000000000FF", 16 * MB)
    assert segment.next().file_name == "000000010000000100000000"
    assert segment.end == segment.next().start == Lsn.parse("1/0")


@pytest.mark.parametrize("name", ["", "00000001", "00000002.history", "00000001000000000000000G", "0" * 25, "a" * 24])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not a WAL segment name"):
        WalSegment.parse(name, 16 * MB)


def test_a_name_of_another_segment_size_is_refused() -> None:
    with pytest.raises(ValueError, match="for 1073741824-byte segments"):
        WalSegment.parse("0000000100000000000000B3", 1024 * MB)


@pytest.mark.parametrize("size", [0, MB - 1, 3 * MB, 2048 * MB, -MB])
def test_sizes_that_initdb_refuses(size: int) -> None:
    assert not is_segment_size(size)


@pytest.mark.parametrize("text", ["", "0", "0/", "/0", "G/0", "0/123456789", "0/0 ", "-1/0", "0x1/0", "\uff11/0"])
def test_what_is_no_lsn_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an LSN"):
        Lsn.parse(text)


def test_an_lsn_is_a_number_and_prints_as_the_server_prints_it() -> None:
    lsn = Lsn.parse("16/b374d848")
    assert str(lsn) == f"{lsn}" == "16/B374D848"
    assert lsn - 0x48 == 0x16_B374_D800
    assert Lsn.parse("0/0") < lsn
