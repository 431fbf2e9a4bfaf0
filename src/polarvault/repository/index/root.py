"""The root: the parts of a backup, and the chunks of its table of files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy
from blake3 import blake3

from polarvault.errors import ObjectDamaged
from polarvault.repository.format import columns
from polarvault.repository.format.chunks import ChunkRef, Moved, References, parse_references, referred
from polarvault.repository.format.documents import Fields, parse_json

_MOST_PARTS = 65_536


class PartArea(Enum):
    """Which directory of a cluster a part is."""

    LOCAL = "local"
    SHARED = "shared"
    TABLESPACE = "tablespace"
    WAL = "wal"


@dataclass(frozen=True, slots=True)
class Part:
    """One directory of a backup; oid and location of a tablespace, 0 and "" for the others."""

    area: PartArea
    oid: int = 0
    location: str = ""


@dataclass(frozen=True, slots=True)
class FilesChunk:
    """A chunk of the table of files, and how many rows it has."""

    ref: ChunkRef
    rows: int


@dataclass(frozen=True, slots=True)
class Root:
    """What a root says."""

    parts: tuple[Part, ...]
    files: tuple[FilesChunk, ...]


def encode_root(parts: Sequence[Part], files: Sequence[FilesChunk]) -> bytes:
    """Return the raw bytes of a root's sealed part."""
    refs = References()
    listed = [{"area": part.area.value, "oid": part.oid, "location": part.location} for part in parts]
    positions = [refs.position(chunk.ref) for chunk in files]
    return columns.encode(
        {
            1: numpy.frombuffer(json.dumps({"parts": listed}).encode(), numpy.uint8),
            2: numpy.array(positions, "<u4"),
            3: numpy.array([chunk.rows for chunk in files], "<u4"),
            **refs.columns(),
        }
    )


def root_hash(content: bytes | memoryview) -> bytes:
    """Return what proves the whole backup."""
    return blake3(content).digest()


def parse_root(content: memoryview, what: str, moved: Moved | None = None) -> Root:
    """Parse a root; raise ObjectDamaged."""
    found = columns.Columns(content, what)
    refs = parse_references(found, what, moved)
    listed = Fields(parse_json(found.blob(1), f"the parts of {what}"), f"the parts of {what}").items("parts")
    if len(listed) > _MOST_PARTS:
        raise ObjectDamaged(f"{what} has {len(listed)} parts")
    positions = found.numbers(2, 4).tolist()
    rows = found.numbers(3, 4, len(positions)).tolist()
    files = [FilesChunk(referred(refs, at, what), count) for at, count in zip(positions, rows, strict=True)]
    return Root(tuple(_part(one, what) for one in listed), tuple(files))


def _part(listed: Any, what: str) -> Part:
    if not isinstance(listed, dict):
        raise ObjectDamaged(f"{what} has a part that is none")
    fields = Fields(listed, f"a part of {what}")
    try:
        area = PartArea(fields.text("area"))
    except ValueError:
        raise ObjectDamaged(f"{what} has a part of an unknown kind") from None
    return Part(area, fields.number("oid", most=0xFFFFFFFF), fields.text("location"))
