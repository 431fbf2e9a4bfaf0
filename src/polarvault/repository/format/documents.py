"""The body of a document: a clear part in JSON, which needs no key, and a sealed part."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any, cast

from polarvault.errors import ObjectDamaged
from polarvault.model import limits
from polarvault.repository.format.frame import Buffer

_LENGTH = struct.Struct("<I")


def encode_json(content: Mapping[str, Any]) -> bytes:
    """Return an object's JSON: one line, keys in the order given."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def parse_json(content: Buffer, what: str) -> dict[str, Any]:
    """Parse an object; raise ObjectDamaged for anything else, for names given twice, and for what nests too deep."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name stands there twice")
        return found

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no number")

    try:
        document = json.loads(bytes(content).decode(), object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as problem:
        raise ObjectDamaged(f"{what} is not the JSON that it must be: {problem}") from problem
    if not isinstance(document, dict):
        raise ObjectDamaged(f"{what} is no JSON object")
    return cast("dict[str, Any]", document)


class Fields:
    """Reads the fields of a JSON object by name and type; everything else than what is asked for is ObjectDamaged."""

    def __init__(self, content: Mapping[str, Any], what: str) -> None:
        self._content = content
        self._what = what

    def text(self, name: str) -> str:
        """Return a text."""
        return cast("str", self._get(name, str))

    def optional_text(self, name: str) -> str | None:
        """Return a text, or None for null."""
        return None if self._content.get(name) is None else self.text(name)

    def number(self, name: str, *, most: int = (1 << 64) - 1) -> int:
        """Return a number from 0 on."""
        value = cast("int", self._get(name, int))
        if isinstance(value, bool) or not 0 <= value <= most:
            raise ObjectDamaged(f'{self._what}: "{name}" is {value!r}, not a number from 0 to {most}')
        return value

    def flag(self, name: str) -> bool:
        """Return true or false."""
        return cast("bool", self._get(name, bool))

    def items(self, name: str) -> list[Any]:
        """Return a list."""
        return cast("list[Any]", self._get(name, list))

    def optional_items(self, name: str) -> list[Any]:
        """Return a list; an empty one if there is none."""
        return [] if self._content.get(name) is None else self.items(name)

    def fields(self, name: str) -> Fields:
        """Return an object."""
        return Fields(self.mapping(name), f"{self._what}: {name}")

    def mapping(self, name: str) -> dict[str, Any]:
        """Return an object as a dictionary."""
        return cast("dict[str, Any]", self._get(name, dict))

    def hexadecimal(self, name: str, length: int) -> bytes:
        """Return bytes."""
        text = self.text(name)
        try:
            value = bytes.fromhex(text)
        except ValueError:
            value = b""
        if len(value) != length or len(text) != 2 * length:
            raise ObjectDamaged(f'{self._what}: "{name}" is no number of {length} bytes')
        return value

    def _get(self, name: str, kind: type) -> Any:
        value = self._content.get(name)
        if not isinstance(value, kind):
            raise ObjectDamaged(f'{self._what} has no "{name}" of the kind that it must be')
        return value


def encode_body(clear: bytes, envelope: Buffer) -> list[Buffer]:
    """Return the parts of a body."""
    return [_LENGTH.pack(len(clear)), clear, _LENGTH.pack(len(envelope)), envelope]


def parse_body(name: str, body: memoryview) -> tuple[memoryview, memoryview]:
    """Return the clear part and the envelope; raise ObjectDamaged."""
    parts = []
    at = 0
    for _ in range(2):
        if len(body) - at < _LENGTH.size:
            raise ObjectDamaged(f'"{name}" ends too early')
        (length,) = _LENGTH.unpack_from(body, at)
        at += _LENGTH.size
        if length > len(body) - at:
            raise ObjectDamaged(f'"{name}" has a part that is longer than itself')
        parts.append(body[at : at + length])
        at += length
    if at != len(body):
        raise ObjectDamaged(f'"{name}" has {len(body) - at} bytes behind its end')
    if len(parts[0]) > limits.REPOSITORY_JSON_BYTES:
        raise ObjectDamaged(f'"{name}" has a clear part of more than {limits.REPOSITORY_JSON_BYTES} bytes')
    return parts[0], parts[1]
