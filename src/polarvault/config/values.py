"""Single values of the configuration: text, numbers and lists to what they mean. No I/O.

A parser takes what TOML had and returns the value; ValueError says what was expected, in words that follow the value.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from polarvault.errors import UsageError
from polarvault.model.names import SMALL, is_spelled
from polarvault.storage.objects.address import parse_address
from polarvault.storage.objects.settings import endpoint_problem, storage_class_problem

Parser = Callable[[object], Any]

_NAME_CHARACTERS = SMALL | frozenset("_-")
_AMOUNT = r"(\d{1,15}(?:\.\d{1,6})?)\s*([A-Za-z]*)"
# As PostgreSQL writes units of memory: powers of 1024 ("Setting Parameters", manual).
_SIZES = {"B": 1, "kB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}
_TIMES = {"s": 1, "min": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_MOST_WORDS = 100
_MOST_SECONDS = 100 * 366 * 86_400


def is_name(text: str) -> bool:
    """Tell whether a text can name a cluster or a repository."""
    return is_spelled(text, SMALL, _NAME_CHARACTERS, most=63)


def text(value: object) -> str:
    """Any text that is not empty, in one line."""
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ValueError("must be a text in one line")
    return value


def absolute_path(value: object) -> str:
    """A path that means the same in whatever directory a command is run."""
    path = text(value)
    if not path.startswith("/"):
        raise ValueError("must be an absolute path")
    return path


def absolute_paths(value: object) -> tuple[str, ...]:
    """One path, or a list of paths."""
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list) or not 0 < len(given) <= _MOST_WORDS:
        raise ValueError("must be an absolute path, or a list of such")
    return tuple(map(absolute_path, given))


def address(value: object) -> str:
    """The address of a store; a path is absolute."""
    written = text(value)
    try:
        parsed = parse_address(written)
    except UsageError as problem:
        raise ValueError(f"is no address: {problem.message}") from None
    path = written[5:] if written[:5].lower() == "file:" else written
    if parsed.place.startswith("/") and not path.startswith("/"):
        raise ValueError("must be an absolute path, or begin with s3:, gs: or az:")
    return str(parsed)


def endpoint(value: object) -> str:
    """The address of a store's service."""
    written = text(value)
    if (why := endpoint_problem(written)) is not None:
        raise ValueError(why)
    return written


def storage_class(value: object) -> str:
    """A class of objects that can be read at once."""
    written = text(value)
    if (why := storage_class_problem(written)) is not None:
        raise ValueError(why)
    return written


def boolean(value: object) -> bool:
    """Yes or no, as TOML has it."""
    if not isinstance(value, bool):
        raise ValueError("must be true or false, without quotes")
    return value


def repository_id(value: object) -> str:
    """What `polarvault repo info` shows as id: 32 hexadecimal digits."""
    written = text(value).lower()
    if not re.fullmatch(r"[0-9a-f]{32}", written, re.ASCII):
        raise ValueError("must have 32 hexadecimal digits")
    return written


def names(value: object) -> tuple[str, ...]:
    """One name, or a list of names without repetition."""
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list) or not given or not all(isinstance(one, str) and is_name(one) for one in given):
        raise ValueError("must be the name of a repository, or a list of names")
    if len(set(given)) != len(given):
        raise ValueError("holds a name twice")
    return tuple(given)


def command_words(value: object) -> tuple[str, ...]:
    """A program by its path and its arguments; nothing for an empty list. No shell will read it."""
    if isinstance(value, str):
        raise ValueError('must be a list of words, as ["/usr/local/bin/page", "dba"]')
    if not isinstance(value, list) or len(value) > _MOST_WORDS:
        raise ValueError(f"must be a list of at most {_MOST_WORDS} words")
    if not all(isinstance(word, str) and "\0" not in word for word in value):
        raise ValueError("must be a list of texts")
    if value and not value[0].startswith("/"):
        raise ValueError("must begin with the absolute path of a program")
    return tuple(value)


def number(least: int, most: int) -> Parser:
    """Return the parser of a whole number between two limits, both included."""

    def parse(value: object) -> int:
        # A TOML boolean is a Python int.
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError(f"must be a whole number from {least} to {most}")
        return value

    return parse


def duration_s(value: object) -> int:
    """A time such as 36h or 14d, in seconds."""
    seconds = _amount(value, _TIMES, "a time such as 90s, 30min, 36h, 14d or 2w")
    if not 0 < seconds <= _MOST_SECONDS:
        raise ValueError("must be more than nothing and at most a hundred years")
    return seconds


def limit_s(value: object) -> int:
    """A time in seconds after which `status` warns, 0 for `"off"`."""
    if value == "off":
        return 0
    try:
        return duration_s(value)
    except ValueError as problem:
        raise ValueError(f'{problem}, or "off"') from None


def rate(value: object) -> int:
    """A rate such as 50MB, in bytes per second."""
    size = _amount(value, _SIZES, "a rate such as 512kB or 50MB, each second")
    if size < 1024:
        raise ValueError("must be at least 1kB")
    return size


def size_bytes(value: object) -> int:
    """A size such as 20GB, in bytes."""
    return _amount(value, _SIZES, "a size such as 512MB or 20GB")


def _amount(value: object, units: dict[str, int], expected: str) -> int:
    found = re.fullmatch(_AMOUNT, value, re.ASCII) if isinstance(value, str) else None
    if found is None or found[2] not in units:
        raise ValueError(f"must be {expected}")
    return int(float(found[1]) * units[found[2]])
