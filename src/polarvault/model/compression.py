"""Compression specifications as -Z takes them: ``[{client|server}-]METHOD[:DETAIL]``, or a number."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Self

from polarvault.errors import UsageError
from polarvault.model.c_numbers import as_int, strtol

SUFFIXES = {"none": "", "gzip": ".gz", "lz4": ".lz4", "zstd": ".zst"}
_LEVELS = {"gzip": (1, 9), "lz4": (1, 12), "zstd": (-131072, 22)}
# What zlib and lz4 take for "as you like" (server: common/compression.c).
_DEFAULT_LEVELS = {"gzip": -1, "lz4": 0}


@dataclass(frozen=True, slots=True)
class Compression:
    """One parsed specification.

    location is "client", "server" or None when the user named none. level None means the method's default.
    """

    algorithm: str = "none"
    location: str | None = None
    level: int | None = None
    workers: int | None = None
    long: bool = False
    window_log: int | None = None
    detail: str | None = None

    @property
    def suffix(self) -> str:
        """What is appended to a tar file's name."""
        return SUFFIXES[self.algorithm]

    @property
    def threads(self) -> int:
        """How many threads a client compressor uses: as asked, else up to four."""
        if self.workers is not None:
            return self.workers
        cores = os.cpu_count() or 1
        # Twice the cores keeps them busy while one chunk waits to be written; high levels need much memory a thread.
        fast = (self.level or 0) <= 3
        return min(4, 2 * cores if fast else cores)

    @classmethod
    def parse(cls, text: str, *, by_server: bool = False) -> Self:
        """Parse a -Z argument; raise UsageError with pg_basebackup's words.

        What the server is to do, because the text says so or by_server, is not judged here: the server does.
        """
        location, text_below = None, text
        for prefix in ("server", "client"):
            if text.startswith(prefix + "-"):
                location, text_below = prefix, text[len(prefix) + 1 :]
        name, detail = _split(text_below)
        if location == "server" or (location is None and by_server):
            return cls(name, location, detail=detail)
        if name not in SUFFIXES:
            raise UsageError(f'unrecognized compression algorithm: "{name}"')
        return cls._with_detail(name, location, detail)

    @classmethod
    def _with_detail(cls, algorithm: str, location: str | None, detail: str | None) -> Self:
        if detail is None:
            return cls(algorithm, location)
        number, rest = strtol(detail)
        if number is not None and not rest:
            return cls(algorithm, location, _level(algorithm, as_int(number)), detail=detail)
        level, workers, long = None, None, False
        for word in detail.split(","):
            keyword, equals, value = word.partition("=")
            given = value if equals else None
            if keyword == "level":
                level = _integer(keyword, given)
            elif keyword == "workers":
                workers = _integer(keyword, given)
            elif keyword == "long":
                long = _boolean(keyword, given)
            elif not keyword:
                raise _invalid("found empty string where a compression option was expected")
            else:
                raise _invalid(f'unrecognized compression option: "{keyword}"')
        if level is not None or algorithm == "none":
            level = _level(algorithm, level or 0)
        for wanted, what in ((workers is not None, "a worker count"), (long, "long-distance mode")):
            if wanted and algorithm != "zstd":
                raise _invalid(f'compression algorithm "{algorithm}" does not accept {what}')
        return cls(algorithm, location, level, workers, long, detail=detail)


def _split(text: str) -> tuple[str, str | None]:
    """Return method and detail; a bare number is gzip's level, and zero none."""
    number, rest = strtol(text)
    if not rest:
        return ("gzip", text) if number else ("none", None)
    name, colon, detail = text.partition(":")
    return name, detail if colon else None


def _integer(keyword: str, value: str | None) -> int:
    if value is None:
        raise _invalid(f'compression option "{keyword}" requires a value')
    number, rest = strtol(value)
    if number is None or rest:
        raise _invalid(f'value for compression option "{keyword}" must be an integer')
    return as_int(number)


def _boolean(keyword: str, value: str | None) -> bool:
    if value is None or value.lower() in ("yes", "on", "1"):
        return True
    if value.lower() not in ("no", "off", "0"):
        raise _invalid(f'value for compression option "{keyword}" must be a Boolean value')
    return False


def _level(algorithm: str, level: int) -> int | None:
    """Check a level; the number that stands for a method's own default is None."""
    if algorithm == "none":
        if level != 0:
            raise _invalid('compression algorithm "none" does not accept a compression level')
        return None
    if level == _DEFAULT_LEVELS.get(algorithm):
        return None
    low, high = _LEVELS[algorithm]
    if not low <= level <= high:
        default = f" (default at {_DEFAULT_LEVELS[algorithm]})" if algorithm in _DEFAULT_LEVELS else ""
        raise _invalid(
            f'compression algorithm "{algorithm}" expects a compression level between {low} and {high}{default}'
        )
    return level


def _invalid(why: str) -> UsageError:
    return UsageError(f"invalid compression specification: {why}")
