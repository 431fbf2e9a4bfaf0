"""Addresses of stores as users write them. No I/O."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from enum import Enum

from polarvault.errors import UsageError
from polarvault.model.secrets import hide_secrets
from polarvault.storage.objects.model import is_object_name

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):", re.ASCII | re.IGNORECASE)
# Buckets and containers: 3 to 63 letters, digits, hyphens; Google and S3 allow dots and (older ones) underscores.
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,221}[A-Za-z0-9]", re.ASCII)


class Scheme(Enum):
    """What kind of store it is; the value is how an address begins."""

    FILE = "file"
    S3 = "s3"
    GOOGLE = "gs"
    AZURE = "az"


@dataclass(frozen=True, slots=True)
class StoreAddress:
    """Where a store is. place: an absolute path, or a bucket; folder: where in the bucket, "" for all of it."""

    scheme: Scheme
    place: str
    folder: str = ""

    def __str__(self) -> str:
        if self.scheme is Scheme.FILE:
            return self.place
        return f"{self.scheme.value}://{self.place}" + (f"/{self.folder}" if self.folder else "")


def parse_address(text: str) -> StoreAddress:
    """Return the store that an address names: a path, file:, s3:, gs: or az:. Raise UsageError."""
    found = _SCHEME.match(text)
    if found is None:
        if not text or "\0" in text:
            raise UsageError("the address of a repository is empty", hint="name a directory, or s3://BUCKET/FOLDER")
        return StoreAddress(Scheme.FILE, os.path.abspath(text))
    shown = hide_secrets(text)
    rest = text[found.end() :]
    try:
        scheme = Scheme(found[1].lower())
    except ValueError:
        raise UsageError(
            f'"{shown}" does not begin with file:, s3:, gs: or az:',
            hint=f"a directory with such a name is written ./{shown}" if not rest.startswith("//") else None,
        ) from None
    if scheme is Scheme.FILE:
        return StoreAddress(scheme, _file_path(rest, shown))
    place, _, folder = rest.removeprefix("//").partition("/")
    folder = folder.strip("/")
    if "@" in place or "?" in rest or "#" in rest:
        # A user and a password there would end up in every log.
        raise UsageError(
            f'"{shown}": an address holds no credentials and no options',
            hint="credentials come from the usual environment variables or the configuration file",
        )
    if not _BUCKET.fullmatch(place):
        raise UsageError(f'"{shown}" names no bucket', hint=f"write {scheme.value}://BUCKET/FOLDER")
    if folder and not is_object_name(folder):
        raise UsageError(
            f'"{shown}": the folder may hold letters, digits and . _ = + - only', hint="choose another folder"
        )
    return StoreAddress(scheme, place, folder)


def _file_path(rest: str, shown: str) -> str:
    if rest.startswith("//") and not rest.startswith("///"):
        raise UsageError(f'"{shown}" names another machine', hint=f"write file:///{rest.strip('/')}, or the path alone")
    if not rest.strip("/") or "\0" in rest:
        raise UsageError(f'"{shown}" names no directory', hint="write file:/PATH, or the path alone")
    # Three slashes are an empty host before an absolute path (RFC 8089).
    return os.path.abspath(rest.removeprefix("//"))
