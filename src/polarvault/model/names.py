"""Names that come from outside: which of them can be a file's below a directory."""

from __future__ import annotations

from polarvault.model import limits

SMALL = frozenset("abcdefghijklmnopqrstuvwxyz0123456789")
"""Small letters and digits."""
LETTERS = SMALL | frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
"""Letters and digits."""


def is_spelled(word: str, first: frozenset[str], others: frozenset[str], *, most: int) -> bool:
    """Tell whether a word of 1 to `most` characters begins with one of `first` and goes on with `others`.

    For words that every command checks: compiling a pattern takes longer than looking at a thousand of them.
    """
    return 0 < len(word) <= most and word[0] in first and others.issuperset(word[1:])


def name_problem(name: str) -> str | None:
    """Say why a name cannot be that of something below a directory; None if it can."""
    if not name:
        return "it is empty"
    if "\0" in name:
        return "it holds a zero byte"
    try:
        length = len(name.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        return "no file can have it"
    if length > limits.NAME_BYTES:
        return f"it is longer than {limits.NAME_BYTES} bytes"
    if name.startswith("/"):
        return "it is absolute"
    components = name.split("/")
    if len(components) > limits.NAME_DEPTH:
        return f"it is deeper than {limits.NAME_DEPTH} directories"
    for component in components:
        if component in ("", ".", ".."):
            return f'it has a component "{component}"'
    return None


def shown_name(name: str) -> str:
    """Return a name from outside as a message may quote it: without control characters, and not too long."""
    cut = name if len(name) <= limits.SHOWN_NAME_CHARACTERS else name[: limits.SHOWN_NAME_CHARACTERS] + "..."
    return repr(cut)


def shown_text(text: str) -> str:
    """Return a text from outside as it may be printed: without control characters that a terminal obeys, and cut."""
    if len(text) > limits.SHOWN_CHARACTERS:
        text = text[: limits.SHOWN_CHARACTERS] + f"... ({len(text)} characters)"
    if text.isprintable():
        return text
    return "".join(one if one in "\n\t" or not _is_control(one) else "?" for one in text)


def _is_control(character: str) -> bool:
    # C0, DEL and C1: the last ones begin sequences as well where a terminal takes 8-bit controls.
    return character < " " or "\x7f" <= character <= "\x9f"
