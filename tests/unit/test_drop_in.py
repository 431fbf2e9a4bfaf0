"""The command line habits of PostgreSQL's programs."""

from __future__ import annotations

from typing import Any

import click
import pytest

from polarvault.cli.commands.basebackup import command


def parsed(*arguments: str) -> dict[str, Any]:
    return command.make_context("basebackup", list(arguments)).params


def test_an_abbreviation_means_an_option_of_the_replaced_tool_not_one_of_ours() -> None:
    assert parsed("--checkp", "fast", "--form=t")["checkpoint"] == "fast"


def test_an_ambiguous_abbreviation_is_refused_with_its_possibilities() -> None:
    with pytest.raises(click.UsageError, match="--manifest-checksums --manifest-force-encode"):
        parsed("--manifest")


def test_a_value_that_looks_like_an_option_is_still_a_value() -> None:
    params = parsed("-l", "--form", "-PD", "--wal", "-X", "none")
    assert (params["label"], params["pgdata"], params["progress"], params["wal_method"]) == (
        "--form",
        "--wal",
        True,
        "none",
    )


def test_words_after_a_double_dash_are_left_alone() -> None:
    assert parsed("-v", "--", "--form")["rest"] == ("--form",)
