"""What a word on the command line means: a path, or a cluster and one of its backups. No I/O.

What contains a slash, or is `-`, is a path. A bare word is a cluster, `shop`, or one of its backups: `shop@latest`,
`shop@20261125T22`, `shop@20261125T224401Z-k3f9`. A bare word that is both is refused, because nobody can know which was
meant; both have a spelling that is only one of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from polarvault.config.values import is_name
from polarvault.errors import UsageError
from polarvault.model.names import shown_name

LATEST = "latest"
# The beginning of a label, however short: digits of the time, and what follows.
_LABEL = re.compile(r"[0-9]{1,8}(?:T[0-9]{0,6}(?:Z(?:-[a-z0-9]{0,4})?)?)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class PathWord:
    """A path; `-` is standard input or output."""

    path: str


@dataclass(frozen=True, slots=True)
class BackupWord:
    """A cluster, and which of its backups: "latest", the beginning of a label, or None where nothing is said."""

    cluster: str
    label: str | None = None


def parse_word(
    word: str, *, is_cluster: Callable[[str], bool], is_path: Callable[[str], bool]
) -> PathWord | BackupWord:
    """Return what a word means; raise UsageError if that is not certain.

    is_cluster: whether a cluster of this name is known; is_path: whether something in the current directory has the
    name. A bare word that is only a file's is that file.
    """
    if "/" in word or word == "-":
        return PathWord(word)
    name, separator, label = word.partition("@")
    known = is_name(name) and is_cluster(name)
    if known and not separator and is_path(word):
        raise UsageError(
            f'"{word}" is a cluster, and there is a file or directory of that name here',
            hint=f"write ./{word} for the file, {name}@{LATEST} for the cluster's last backup",
        )
    if not known and is_path(word):
        return PathWord(word)
    if not is_name(name):
        raise UsageError(
            f"{shown_name(word)} is neither a path nor the name of a cluster",
            hint="a path has a slash in it: ./NAME; a cluster has small letters, digits, _ and -",
        )
    if not known:
        raise UsageError(
            f'there is no cluster "{name}", and no file of that name here',
            hint="name clusters in the configuration, see `polarvault config show`; or write a path",
        )
    if separator and label != LATEST and not _LABEL.fullmatch(label):
        raise UsageError(
            f"{shown_name(word)}: {shown_name(label)} is not the beginning of a label",
            hint=f"write {name}@{LATEST}, or {name}@ and a time such as 20261125T22",
        )
    return BackupWord(name, label if separator else None)
