"""The directory of images: who is in it, in which order, and what goes.

AREA/polarvault-image-ID/run/data     the plain backup that it is; tablespaces and PolarDB's shared half beside it
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from polarvault.clones.control import is_old, remove_place
from polarvault.drill.place.confined import ConfinedThing
from polarvault.images.errors import ImageNotFound, ImageRefused
from polarvault.images.model import ImageRecord, ImageState, ImageStatus
from polarvault.snapshots.collection import Collection, Words
from polarvault.snapshots.model import Kind
from polarvault.storage.extents import allocated_bytes_below, own_bytes_below


@dataclass(frozen=True, slots=True)
class ImagePlace(ConfinedThing[ImageRecord]):
    """One image."""

    RECORD: ClassVar[type[ImageRecord]] = ImageRecord
    WORDS: ClassVar[Words] = Words("image", "images", ImageRefused, ImageNotFound)

    def status(self, *, sizes: bool = True) -> ImageStatus:
        """Return what is seen of it. sizes: look how much room it takes, which reads the map of every file."""
        record = self.record()
        if record is None or not self.is_whole:
            return ImageStatus(self.id, self.directory, ImageState.UNFINISHED, record, None)
        if not all(os.path.isdir(path) for path in (record.backup, record.shared) if path):
            return ImageStatus(self.id, self.directory, ImageState.GONE, record, None)
        own = None
        if sizes:
            own = own_bytes_below(self.run) if record.shares else allocated_bytes_below(self.run)
        return ImageStatus(self.id, self.directory, ImageState.WHOLE, record, own)


class ImageArea(Collection[ImagePlace]):
    """One directory of images."""

    KINDS = (Kind.IMAGE,)
    THING = ImagePlace

    def series(self, name: str) -> list[tuple[ImagePlace, ImageRecord]]:
        """Return the whole images of a series, the oldest first."""
        found = [(place, place.record()) for place in self.places(Kind.IMAGE) if place.is_whole]
        known = [(place, record) for place, record in found if record is not None and record.series == name]
        return sorted(known, key=lambda one: one[1].number)

    def newest(self, name: str) -> tuple[ImagePlace, ImageRecord]:
        """Return the newest image of a series; raise ImageNotFound."""
        found = self.series(name)
        if not found:
            there = {record.series for place in self.places(Kind.IMAGE) if (record := place.record()) is not None}
            raise ImageNotFound(
                f'there is no image "{name}" in "{self.path}"',
                hint=f"there are: {', '.join(sorted(there)) or 'none'}; another directory of images: --at DIR",
            )
        return found[-1]

    def named(self, word: str) -> list[ImagePlace]:
        """Return all images of a series, or the one that a name or an id names; raise ImageNotFound."""
        return [place for place, _ in self.series(word)] or [self.find(word)]

    def sweep(self) -> Iterator[str]:
        """Remove what killed commands have left, and stop its servers; yield what was done. What is at work stays."""
        for place in self.places(Kind.IMAGE):
            if place.is_whole or not is_old(place):
                continue
            try:
                with place.locked(wait=False):
                    if not place.is_whole:
                        remove_place(place)
                        yield f"removed the image {place.id}: what made it was killed"
            except ImageRefused:
                continue

    def prune(self, name: str, keep: int) -> Iterator[str]:
        """Remove the oldest images of a series beyond so many; yield what was done. What is at work stays."""
        for place, record in self.series(name)[:-keep]:
            try:
                with place.locked(wait=False):
                    remove_place(place)
                    yield f"removed the image {record.name}: {keep} are kept"
            except ImageRefused:
                yield f"the image {record.name} is in use and stays, although {keep} are kept"
