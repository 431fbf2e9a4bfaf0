"""Names of tables on the command line, and those that a copy's indexes get."""

from __future__ import annotations

import pytest

from polarvault.errors import UsageError
from polarvault.flashback.names import TableName, derived_name, parse_table


@pytest.mark.parametrize(
    ("text", "schema", "name"),
    [
        ("orders", None, "orders"),
        ("Shop.ORDERS", "shop", "orders"),
        ('"Shop"."Or.de""rs"', "Shop", 'Or.de"rs'),
        ('shop."Zwei Wörter"', "shop", "Zwei Wörter"),
        ("Ünï", None, "Ünï"),
        ("a b", None, "a b"),
    ],
)
def test_names_are_read_as_in_sql_and_written_so_that_they_are_read_back(text: str, schema: str, name: str) -> None:
    parsed = parse_table(text, "--table")
    assert parsed == TableName(schema, name)
    assert parse_table(str(parsed), "--table") == parsed
    assert parse_table(parsed.pattern, "--table") == parsed


@pytest.mark.parametrize("text", ["", ".", "a.", ".a", "a..b", '"a', 'a"b"', '"a"b', '""', "a.b.c", "a\0", "x" * 64])
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--table"):
        parse_table(text, "--table")


def test_the_database_in_front_of_a_name_is_told_where_it_goes() -> None:
    with pytest.raises(UsageError) as refused:
        parse_table("shop.public.orders", "--table")
    assert refused.value.hint is not None
    assert refused.value.hint.endswith("-d DATABASE --table public.orders")


def test_names_of_a_copys_parts_are_free_and_fit() -> None:
    taken = {"then_pkey"}
    assert derived_name("orders_pkey", "orders", "then", taken) == "then_pkey1"
    assert derived_name("by_amount", "orders", "then", taken) == "then_by_amount"
    long = {derived_name("o" + "x" * 62, "orders", "t" * 63, taken) for _ in range(12)}
    assert len(long) == 12
    assert all(len(name) <= 63 for name in long)
    umlauts = derived_name("ü" * 31, "orders", "ö" * 31, taken)
    assert len(umlauts.encode()) <= 63
