"""Compression specifications as -Z takes them: ``[{client|server}-]METHOD[:DETAIL]``, or a number."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Self

from polarvault.errors import UsageError

SUFFIXES = {"none": "", "gzip": ".gz", "lz4": ".lz4", "zstd": ".zst"}
_NUMBER = re.compile(r"-?[0-9]+")
_LEVELS = {"gzip": (1, 9), "lz4": (1, 12), "zstd": (-131072, 22)}


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
    def parse(cls, text: str) -> Self:
        """Parse a -Z argument; raise UsageError with pg_basebackup's words."""
        if _NUMBER.fullmatch(text):
            level = int(text)
            if level == 0:
                return cls(detail=None)
            return cls("gzip", None, _level("gzip", str(level), text), detail=text)
        location, name = None, text
        for prefix in ("server", "client"):
            if text == prefix or text.startswith((prefix + "-", prefix + ":")):
                location = prefix
                name = text[len(prefix) + 1 :] if text.startswith(prefix + "-") else text[len(prefix) :]
        name, colon, detail = name.partition(":")
        if name not in SUFFIXES:
            raise UsageError(f'unrecognized compression algorithm: "{name}"')
        return cls._with_detail(name, location, detail if colon else None)

    @classmethod
    def _with_detail(cls, algorithm: str, location: str | None, detail: str | None) -> Self:
        level, workers, long, window_log = None, None, False, None
        if detail is not None and algorithm == "none":
            raise UsageError('invalid compression specification: compression algorithm "none" does not accept options')
        for word in detail.split(",") if detail is not None else ():
            keyword, equals, value = word.partition("=")
            if not equals and _NUMBER.fullmatch(keyword):
                level = _level(algorithm, keyword, detail or "")
            elif keyword == "level":
                level = _level(algorithm, value, detail or "")
            elif keyword == "workers" and algorithm == "zstd":
                if not (value.isascii() and value.isdigit()):
                    raise UsageError('invalid compression specification: option "workers" needs a number')
                workers = int(value)
            elif keyword == "long" and algorithm == "zstd":
                if value not in ("", "on", "off", "true", "false", "yes", "no", "1", "0"):
                    raise UsageError('invalid compression specification: option "long" needs a Boolean value')
                long = value in ("", "on", "true", "yes", "1")
            elif keyword in ("workers", "long"):
                raise UsageError(
                    f'invalid compression specification: compression algorithm "{algorithm}" '
                    f"does not accept {'a worker count' if keyword == 'workers' else 'long-distance mode'}"
                )
            elif not keyword:
                raise UsageError("invalid compression specification: found empty string where an option was expected")
            else:
                raise UsageError(f'invalid compression specification: unrecognized compression option: "{keyword}"')
        return cls(algorithm, location, level, workers, long, window_log, detail)


def _level(algorithm: str, value: str, detail: str) -> int:
    if not _NUMBER.fullmatch(value):
        raise UsageError(f'invalid compression specification: level "{value}" in "{detail}" is not a number')
    low, high = _LEVELS[algorithm]
    if not low <= int(value) <= high:
        raise UsageError(
            f'invalid compression specification: compression algorithm "{algorithm}" '
            f"expects a compression level between {low} and {high}"
        )
    return int(value)
