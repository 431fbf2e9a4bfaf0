"""One configuration file as lines of bytes; edits touch the lines they are asked to and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from polarvault.pgconf.grammar import LineSyntaxError, ParsedLine, encode, format_value, parse_line


@dataclass(frozen=True, slots=True)
class Entry:
    """A setting or include directive: line number (from 1), lower-case name, value without quotes."""

    line: int
    name: str
    value: str


class ConfDocument:
    """An editable configuration file; `content` gives back every byte that was not edited."""

    def __init__(self, content: bytes) -> None:
        # Only a line feed ends a line for the server; a carriage return before it is white space.
        self._lines = content.splitlines(keepends=True) if b"\r" not in content else _split_at_line_feeds(content)

    @property
    def content(self) -> bytes:
        """The file as it would be written now."""
        return b"".join(self._lines)

    def entries(self) -> Iterator[Entry]:
        """Yield settings and include directives in file order; lines with syntax errors are left out."""
        for number, line in enumerate(self._lines, 1):
            if (parsed := _parsed(line)) is not None:
                yield Entry(number, parsed.name, parsed.value)

    def broken_lines(self) -> list[int]:
        """Return the numbers of the lines that the server would refuse."""
        return [number for number, line in enumerate(self._lines, 1) if _is_broken(line)]

    def set_value(self, line: int, value: str) -> None:
        """Replace the value of the setting on a line; name, spacing, comment and line end stay."""
        raw = self._lines[line - 1]
        parsed = parse_line(raw)
        if parsed is None:
            raise ValueError(f"line {line} holds no setting")
        before, after = raw[: parsed.value_start], raw[parsed.value_end :]
        # `port5432` would be one word: keep name and value apart where only a quote did.
        gap = b" " if before and before[-1:] not in b" \t\r=" else b""
        self._lines[line - 1] = before + gap + encode(format_value(value)) + after

    def comment_out(self, line: int, note: str) -> None:
        """Turn a line into a comment that keeps its text and says why."""
        raw = self._lines[line - 1]
        end = raw[len(raw.rstrip(b"\r\n")) :]
        self._lines[line - 1] = b"#" + raw[: len(raw) - len(end)] + encode(f"  # {note}") + end

    def append(self, lines: Sequence[str]) -> None:
        """Add lines at the end, in the file's own line-end style, even when its last line lacks an end."""
        end = b"\r\n" if self._lines and self._lines[0].endswith(b"\r\n") else b"\n"
        if self._lines and not self._lines[-1].endswith(b"\n"):
            self._lines[-1] += end
        self._lines += [encode(line) + end for line in lines]


def _split_at_line_feeds(content: bytes) -> list[bytes]:
    parts = content.split(b"\n")
    return [part + b"\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


def _parsed(line: bytes) -> ParsedLine | None:
    try:
        return parse_line(line)
    except LineSyntaxError:
        return None


def _is_broken(line: bytes) -> bool:
    try:
        parse_line(line)
    except LineSyntaxError:
        return True
    return False
