"""What a word on the command line means."""

from __future__ import annotations

import pytest

from polarvault.config.words import BackupWord, PathWord, parse_word
from polarvault.errors import UsageError

CLUSTERS = {"shop", "bank", "both"}
FILES = {"both", "monday", "shop@latest", "Upper"}


def _word(text: str) -> PathWord | BackupWord:
    return parse_word(text, is_cluster=CLUSTERS.__contains__, is_path=FILES.__contains__)


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("-", PathWord("-")),
        ("./shop", PathWord("./shop")),
        ("/backup/monday", PathWord("/backup/monday")),
        ("dir/", PathWord("dir/")),
        ("shop/x@latest", PathWord("shop/x@latest")),
        ("monday", PathWord("monday")),
        ("Upper", PathWord("Upper")),
        ("shop", BackupWord("shop")),
        ("shop@latest", BackupWord("shop", "latest")),
        ("shop@2026", BackupWord("shop", "2026")),
        ("shop@20261125T22", BackupWord("shop", "20261125T22")),
        ("shop@20261125T224401Z-k3f9", BackupWord("shop", "20261125T224401Z-k3f9")),
        ("both@latest", BackupWord("both", "latest")),
    ],
)
def test_words(text: str, meaning: PathWord | BackupWord) -> None:
    assert _word(text) == meaning


def test_a_word_that_is_both_is_refused_with_both_spellings() -> None:
    with pytest.raises(UsageError, match='"both" is a cluster, and there is a file') as caught:
        _word("both")
    assert "./both" in (caught.value.hint or "")
    assert "both@latest" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "neither a path nor"),
        ("Shop", "neither a path nor"),
        ("sh op", "neither a path nor"),
        ("@latest", "neither a path nor"),
        ("unknown", 'there is no cluster "unknown"'),
        ("unknown@latest", 'there is no cluster "unknown"'),
        ("shop@", "not the beginning of a label"),
        ("shop@yesterday", "not the beginning of a label"),
        ("shop@2026-11-25", "not the beginning of a label"),
        ("shop@20261125T22@x", "not the beginning of a label"),
        ("a\x1b[2Jb", "neither a path nor"),
    ],
)
def test_words_that_mean_nothing(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        _word(text)
    assert caught.value.message.isprintable()
