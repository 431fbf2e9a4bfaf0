"""pg_hba.conf and pg_ident.conf as far as other files are concerned: which ones they name, and how to do without. Pure.

Source: manual, "The pg_hba.conf File"; server: tokenize_auth_file in hba.c. A line is a list of fields, a backslash at
its end continues it (14 and later); a field is a list of words between commas; an unquoted word that begins with @ is
the name of a file of further words, relative to the file that names it. From 16 on a line can include a whole file.
A server does not start when such a file is absent.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

_WORD = re.compile(rb'"(?P<quoted>[^"]*)"?|(?P<plain>[^\s",#]+)|(?P<comma>,)|(?P<comment>#.*)')


class ReferenceKind(Enum):
    """How a file is named; the value is the keyword."""

    WORDS = "@"
    INCLUDE = "include"
    INCLUDE_IF_EXISTS = "include_if_exists"
    INCLUDE_DIR = "include_dir"


@dataclass(frozen=True, slots=True)
class Reference:
    """A file or directory that a line names: the first and last of the physical lines, from 1, and what it says."""

    first_line: int
    last_line: int
    kind: ReferenceKind
    target: str
    rejects: bool

    def path_from(self, path: str) -> str:
        """Return the absolute path of the target, when the file that names it is at `path`."""
        return posixpath.normpath(posixpath.join(posixpath.dirname(path), self.target))


def references(content: bytes) -> Iterator[Reference]:
    """Yield every file that the lines name, in their order."""
    for first, last, line in _logical_lines(content):
        words = [
            _decoded(match) for match in _WORD.finditer(line) if match["comma"] is None and match["comment"] is None
        ]
        if not words:
            continue
        keyword, is_quoted = words[0]
        kind = next((kind for kind in ReferenceKind if kind.value == keyword and not is_quoted), None)
        if kind is not None and kind is not ReferenceKind.WORDS and len(words) > 1:
            yield Reference(first, last, kind, words[1][0], rejects=False)
            continue
        rejects = ("reject", False) in words[3:]
        for word, quoted in words:
            if word.startswith("@") and len(word) > 1 and not quoted:
                yield Reference(first, last, ReferenceKind.WORDS, word[1:], rejects)


def without_missing(
    content: bytes, path: str, exists: Callable[[str], bool], note: str
) -> tuple[bytes, list[Reference]]:
    """Return the content without the lines that name files which are not there, and what these were.

    A line is commented out, so that those it let in stay outside; one that rejects is kept, and rejects everybody whom
    the file might have named.
    """
    missing = [
        reference
        for reference in references(content)
        if reference.kind is not ReferenceKind.INCLUDE_IF_EXISTS and not exists(reference.path_from(path))
    ]
    lines = content.split(b"\n")
    for reference in {reference.first_line: reference for reference in missing}.values():
        kept = b"\n".join(lines[reference.first_line - 1 : reference.last_line])
        for number in range(reference.first_line - 1, reference.last_line):
            lines[number] = b"#" + lines[number].rstrip(b"\\") + (b"  # " + note.encode())
        if reference.rejects:
            lines[reference.last_line - 1] += b"\n" + re.sub(rb'(?<![^\s,])@("[^"]*"|[^\s,]+)', b"all", kept)
    return b"\n".join(lines), missing


def _logical_lines(content: bytes) -> Iterator[tuple[int, int, bytes]]:
    first, gathered = 1, b""
    for number, line in enumerate(content.split(b"\n"), 1):
        line = line.rstrip(b"\r")
        if line.endswith(b"\\"):
            gathered += line[:-1]
            continue
        yield first, number, gathered + line
        first, gathered = number + 1, b""
    if gathered:
        yield first, content.count(b"\n") + 1, gathered


def _decoded(match: re.Match[bytes]) -> tuple[str, bool]:
    is_quoted = match["quoted"] is not None
    return (match["quoted"] if is_quoted else match["plain"]).decode("utf-8", "surrogateescape"), is_quoted
