"""Addresses of stores as users write them. No I/O."""

from __future__ import annotations

import os
from enum import Enum

from polarvault.errors import UsageError
from polarvault.model.dataclass import dataclass
from polarvault.model.names import LETTERS, is_spelled
from polarvault.model.secrets import hide_secrets
from polarvault.storage.objects.model import is_object_name

_SCHEME_FIRST, _SCHEME_OTHERS = LETTERS - frozenset("0123456789"), LETTERS | frozenset("+.-")
# Buckets and containers: 3 to 63 letters, digits, hyphens; Google and S3 allow dots and (older ones) underscores.
_BUCKET_OTHERS, _BUCKET_LEAST, _BUCKET_MOST = LETTERS | frozenset("._-"), 3, 223


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
    word, colon, rest = text.partition(":")
    if not colon or not is_spelled(word, _SCHEME_FIRST, _SCHEME_OTHERS, most=len(text)):
        if not text or "\0" in text:
            raise UsageError("the address of a repository is empty", hint="name a directory, or s3://BUCKET/FOLDER")
        return StoreAddress(Scheme.FILE, os.path.abspath(text))
    try:
        scheme = Scheme(word.lower())
    except ValueError:
        shown = hide_secrets(text)
        raise UsageError(
            f'"{shown}" does not begin with file:, s3:, gs: or az:',
            hint=f"a directory with such a name is written ./{shown}" if not rest.startswith("//") else None,
        ) from None
    if scheme is Scheme.FILE:
        return StoreAddress(scheme, _file_path(rest, text))
    place, _, folder = rest.removeprefix("//").partition("/")
    folder = folder.strip("/")
    _check_place(scheme, place, folder, rest, text)
    return StoreAddress(scheme, place, folder)


def _check_place(scheme: Scheme, place: str, folder: str, rest: str, text: str) -> None:
    if "@" in place or "?" in rest or "#" in rest:
        # A user and a password there would end up in every log.
        raise UsageError(
            f'"{hide_secrets(text)}": an address holds no credentials and no options',
            hint="credentials come from the usual environment variables or the configuration file",
        )
    if not _is_bucket(place):
        raise UsageError(f'"{hide_secrets(text)}" names no bucket', hint=f"write {scheme.value}://BUCKET/FOLDER")
    if folder and not is_object_name(folder):
        raise UsageError(
            f'"{hide_secrets(text)}": the folder may hold letters, digits and . _ = + - only',
            hint="choose another folder",
        )


def _is_bucket(place: str) -> bool:
    return (
        len(place) >= _BUCKET_LEAST
        and place[-1] in LETTERS
        and is_spelled(place, LETTERS, _BUCKET_OTHERS, most=_BUCKET_MOST)
    )


def _file_path(rest: str, text: str) -> str:
    if rest.startswith("//") and not rest.startswith("///"):
        raise UsageError(
            f'"{hide_secrets(text)}" names another machine', hint=f"write file:///{rest.strip('/')}, or the path alone"
        )
    if not rest.strip("/") or "\0" in rest:
        raise UsageError(f'"{hide_secrets(text)}" names no directory', hint="write file:/PATH, or the path alone")
    # Three slashes are an empty host before an absolute path (RFC 8089).
    return os.path.abspath(rest.removeprefix("//"))
