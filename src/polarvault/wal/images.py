"""The whole page that a record holds, as replay would put it in place. Pure.

Behind the headers of a record (`wal.blocks`) stand for each block its image and then its data, in the order of the
headers. An image lacks the hole between the pointers and the rows of a page, which is zeros, and may be compressed
(server: access/transam/xloginsert.c, XLogRecordAssemble; xlogreader.c, RestoreBlockImage; common/pg_lzcompress.c).
"""

from __future__ import annotations

import struct

from polarvault.model import versions
from polarvault.model.relation import BlockId, RelationFile
from polarvault.wal.records import (
    BLOCK_HAS_IMAGE,
    BLOCK_SAME_RELATION,
    IMAGE_HAS_HOLE,
    LAST_BLOCK_ID,
    ORIGIN,
    TOP_XID,
    Record,
    find_main_data,
)

PAGE_BYTES = 8192
_FORK_MASK = 0x0F
_RELATION = struct.Struct("<III")
# A tag of pglz: at least 3 bytes are repeated, and 18 or more have a third byte.
_LEAST_MATCH, _LONG_MATCH = 3, 18


def page_image(record: Record, page: BlockId) -> bytearray | None:
    """Return the page as it stands after a record that holds its image; None if it holds none that replay applies.

    The LSN is the one that replay sets; the checksum is not set. Raises ValueError for an image that makes no sense.
    """
    layout = versions.record_layout(record.magic)
    body, at, data_bytes = record.body, 0, 0
    relation: RelationFile | None = None
    found: tuple[int, int, int, int, int] | None = None
    try:
        main_at, _ = find_main_data(body, record.magic)
        while len(body) - at > data_bytes:
            block_id = body[at]
            if block_id in (ORIGIN, TOP_XID):
                at += 3 if block_id == ORIGIN else 5
                continue
            if block_id > LAST_BLOCK_ID:
                break
            flags = body[at + 1]
            (block_bytes,) = struct.unpack_from("<H", body, at + 2)
            at += 4
            image_bytes, hole_at, image_flags, hole_bytes = 0, 0, 0, 0
            if flags & BLOCK_HAS_IMAGE:
                image_bytes, hole_at, image_flags = struct.unpack_from("<HHB", body, at)
                at += 5
                if image_flags & IMAGE_HAS_HOLE and image_flags & layout.image_is_compressed:
                    (hole_bytes,) = struct.unpack_from("<H", body, at)
                    at += 2
                elif image_flags & IMAGE_HAS_HOLE:
                    hole_bytes = PAGE_BYTES - image_bytes
            if not flags & BLOCK_SAME_RELATION:
                relation = RelationFile(*_RELATION.unpack_from(body, at))
                at += _RELATION.size
            (block,) = struct.unpack_from("<I", body, at)
            at += 4
            if image_flags & layout.image_applies and (relation, flags & _FORK_MASK, block) == page:
                found = data_bytes, image_bytes, image_flags, hole_at, hole_bytes
            data_bytes += image_bytes + block_bytes
    except (IndexError, struct.error) as short:
        raise ValueError("the record is shorter than its headers say") from short
    if found is None:
        return None
    before, image_bytes, image_flags, hole_at, hole_bytes = found
    start = main_at - data_bytes + before
    if start < 0 or hole_at + hole_bytes > PAGE_BYTES:
        raise ValueError("the image of a page lies outside of its record")
    raw = _raw(body[start : start + image_bytes], image_flags, layout, PAGE_BYTES - hole_bytes)
    result = bytearray(raw[:hole_at] + bytes(hole_bytes) + raw[hole_at:])
    lower_and_upper = result[12:16]
    if any(lower_and_upper[2:]):
        # A page that is new has no LSN (server: xlogutils.c, XLogReadBufferForRedoExtended).
        result[:8] = struct.pack("<II", record.end_lsn >> 32, record.end_lsn & 0xFFFFFFFF)
    return result


def _raw(stored: bytes, flags: int, layout: versions.RecordLayout, size: int) -> bytes:
    method = next((name for bit, name in layout.image_methods if flags & bit), None)
    raw = stored
    try:
        if method == "pglz":
            raw = expand_pglz(stored, size)
        elif method == "lz4":
            import lz4.block

            raw = lz4.block.decompress(stored, uncompressed_size=size)
        elif method == "zstd":
            import zstandard

            raw = zstandard.ZstdDecompressor().decompress(stored, max_output_size=size)
    except Exception as problem:  # Each library has its own, and none of them a base that says what it was.
        raise ValueError(f"the image of a page cannot be decompressed: {problem}") from problem
    if len(raw) != size:
        raise ValueError(f"the image of a page has {len(raw)} bytes, and should have {size}")
    return raw


def expand_pglz(stored: bytes, size: int) -> bytes:
    """Decompress PostgreSQL's own format; raise ValueError unless exactly `size` bytes come out.

    A control byte says of the next eight items, from its lowest bit, whether each is a byte (0) or a tag (1): length
    and how far back what is repeated begins.
    """
    result = bytearray()
    at = 0
    try:
        while at < len(stored) and len(result) < size:
            control = stored[at]
            at += 1
            for bit in range(8):
                if at >= len(stored) or len(result) >= size:
                    break
                if not control >> bit & 1:
                    result.append(stored[at])
                    at += 1
                    continue
                length = (stored[at] & 0x0F) + _LEAST_MATCH
                back = (stored[at] & 0xF0) << 4 | stored[at + 1]
                at += 2
                if length == _LONG_MATCH:
                    length += stored[at]
                    at += 1
                if not 0 < back <= len(result):
                    raise ValueError("it repeats what was not there")
                for _ in range(min(length, size - len(result))):
                    result.append(result[-back])
    except IndexError as short:
        raise ValueError("it ends within a tag") from short
    if len(result) != size or at != len(stored):
        raise ValueError(f"{len(result)} bytes came out of {at} of {len(stored)}, and {size} should have")
    return bytes(result)
