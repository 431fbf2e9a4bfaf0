"""The content of a compressed WAL file, whole or cut. Not loaded to serve a plain one."""

from __future__ import annotations

from polarvault.errors import IntegrityError
from polarvault.pipeline.decompress import decoder_for
from polarvault.wal.segment_header import OTHER_COPY
from polarvault.walfiles.files import CutShort, WalFile, read_plain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


def read_compressed(file: WalFile, piece_bytes: int) -> Iterator[memoryview]:
    """Yield the plain content of a file in order; a view is valid until the next one is asked for. Raises OSError.

    A partial one that is cut or has a damaged tail ends quietly at the last byte that can be decoded. Of any other
    damage or a missing end raises IntegrityError with the file and the position in it.
    """
    return _read_partial(file, piece_bytes) if file.partial else _read_whole(file, piece_bytes)


def _read_whole(file: WalFile, piece_bytes: int) -> Iterator[memoryview]:
    decoder = decoder_for(f".{file.compression}", file.path, IntegrityError)
    try:
        for piece in read_plain(file.path, piece_bytes):
            for views in decoder.feed([piece]):
                yield from views
    except IntegrityError as problem:
        problem.hint = OTHER_COPY
        raise
    if not decoder.is_whole:
        raise CutShort(file, f'"{file.path}" ends at byte {decoder.position}, before its compressed content does')


def _read_partial(file: WalFile, piece_bytes: int) -> Iterator[memoryview]:
    what = f".{file.compression}"
    decoder = decoder_for(what, file.path, IntegrityError)
    try:
        for piece in read_plain(file.path, piece_bytes):
            for views in decoder.feed([piece]):
                yield from views
        for views in decoder.rest():
            yield from views
        return
    except IntegrityError:
        good_bytes = decoder.position
    # A decoder that fails keeps what it decoded of the failing piece to itself: go there once more, byte by byte.
    decoder = decoder_for(what, file.path, IntegrityError)
    position = 0
    try:
        for piece in read_plain(file.path, piece_bytes):
            before = max(0, min(good_bytes - position, len(piece)))
            for _ in decoder.feed([piece[:before]]):
                pass
            for offset in range(before, len(piece)):
                for views in decoder.feed([piece[offset : offset + 1]]):
                    yield from views
            position += len(piece)
    except IntegrityError:
        return
