"""The plain content of a WAL file, plain or compressed, whole or cut."""

from __future__ import annotations

from polarvault.errors import IntegrityError
from polarvault.storage.files import open_regular, storage_failed
from polarvault.wal.segment_header import OTHER_COPY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from polarvault.wal.source import WalCopy
    from polarvault.walfiles.files import WalFile


class CutShort(IntegrityError):
    """A file under its final name ends too early: it was cut, or it is being written right now."""

    id = "wal-cut-short"
    remedy = "take another copy of the segment from the server or another WAL archive"

    def __init__(self, copy: WalCopy, message: str) -> None:
        super().__init__(message, hint=OTHER_COPY)
        self.copy = copy


def read_file(file: WalFile, piece_bytes: int) -> Iterator[memoryview]:
    """Yield the plain content of a file in order; a view is valid until the next one is asked for.

    A compressed partial that is cut or has a damaged tail ends quietly at the last byte that can be decoded. Of any
    other compressed file damage or a missing end raises IntegrityError with the file and the position in it.
    """
    try:
        if file.compression is None:
            yield from _read_plain(file.path, piece_bytes)
        elif file.partial:
            yield from _read_compressed_partial(file, piece_bytes)
        else:
            yield from _read_compressed(file, piece_bytes)
    except OSError as problem:
        raise storage_failed(problem, "read", file.path) from problem


def _read_plain(path: str, piece_bytes: int) -> Iterator[memoryview]:
    with open_regular(path) as source:
        while piece := source.read(piece_bytes):
            yield memoryview(piece)


def _read_compressed(file: WalFile, piece_bytes: int) -> Iterator[memoryview]:
    from polarvault.pipeline.decompress import decoder_for

    decoder = decoder_for(f".{file.compression}", file.path, IntegrityError)
    try:
        for piece in _read_plain(file.path, piece_bytes):
            for views in decoder.feed([piece]):
                yield from views
    except IntegrityError as problem:
        problem.hint = OTHER_COPY
        raise
    if not decoder.is_whole:
        raise CutShort(file, f'"{file.path}" ends at byte {decoder.position}, before its compressed content does')


def _read_compressed_partial(file: WalFile, piece_bytes: int) -> Iterator[memoryview]:
    from polarvault.pipeline.decompress import decoder_for

    what = f".{file.compression}"
    decoder = decoder_for(what, file.path, IntegrityError)
    try:
        for piece in _read_plain(file.path, piece_bytes):
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
        for piece in _read_plain(file.path, piece_bytes):
            before = max(0, min(good_bytes - position, len(piece)))
            for _ in decoder.feed([piece[:before]]):
                pass
            for offset in range(before, len(piece)):
                for views in decoder.feed([piece[offset : offset + 1]]):
                    yield from views
            position += len(piece)
    except IntegrityError:
        return
