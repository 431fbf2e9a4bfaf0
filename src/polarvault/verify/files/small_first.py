"""Which files of a half are small enough to be looked at many at a time (`looks`), and what has to be read besides."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from polarvault.pgfiles.manifest import ManifestFile
from polarvault.pgfiles.pages import PAGE_BYTES
from polarvault.verify.files.contents import Contents
from polarvault.verify.files.looks import MOST_BYTES, Looked, SmallFiles, look_at

FirstBlock = Callable[[str], int | None]
_CRC_DIGITS = 8


def look_at_small(
    found: Contents,
    entries: Mapping[str, ManifestFile],
    *,
    with_checksums: bool,
    first_block: FirstBlock | None,
    jobs: int,
    kernel_loaded: threading.Event,
    take: Callable[[Looked], None],
) -> list[str]:
    """Look at the small files of a half that the manifest lists; return the paths that are left to be read.

    first_block: of a relation file by its path, None: for one without page checksums; None itself: no pages are
    checked. take: called with what came of each batch.
    """
    if found.tree is None:
        return list(found.sizes)
    chosen, left = SmallFiles(found.tree), []
    # Whether the files of a directory that are named by a number are relations' first segments.
    holds_relations: dict[str, bool] = {}
    for path, size in found.sizes.items():
        entry = entries.get(path)
        if entry is None or entry.size != size or size > MOST_BYTES or path in found.names or path in found.outside:
            left.append(path)
            continue
        crc = block = None
        if with_checksums and entry.algorithm is not None:
            stored = entry.checksum or ""
            if entry.algorithm != "CRC32C" or len(stored) != _CRC_DIGITS:
                left.append(path)
                continue
            crc = int.from_bytes(bytes.fromhex(stored), "little")
        directory, _, name = path.rpartition("/")
        if first_block is not None:
            if directory not in holds_relations:
                holds_relations[directory] = first_block(directory + "/1") is not None
            # Nearly all are such segments: nothing else has to be found out about them.
            is_first = holds_relations[directory] and name.isascii() and name.isdigit()
            block = 0 if is_first else first_block(path)
            if block is not None and size % PAGE_BYTES:
                left.append(path)
                continue
        if crc is None and block is None:
            left.append(path)
            continue
        chosen.add(directory, name, size, crc, block)
    for looked in look_at(chosen.batches(), jobs=jobs, kernel_loaded=kernel_loaded):
        take(looked)
        left += looked.others
    return left
