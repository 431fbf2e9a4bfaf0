"""Several places with WAL as one source: they are searched in their order."""

from __future__ import annotations

from polarvault.walfiles.directory import wal_sources

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from polarvault.wal.segment_header import SegmentHeader
    from polarvault.wal.source import HeldRange, WalCopy, WalSource


def wal_places(directories: Sequence[str]) -> SearchList:
    """Return the source behind the --wal options of a command."""
    return SearchList(wal_sources(directories))


class SearchList:
    """A `wal.source.WalSource` made of others."""

    def __init__(self, sources: Sequence[WalSource]) -> None:
        self.sources = tuple(sources)

    @property
    def place(self) -> str:
        """All places."""
        return " ".join(source.place for source in self.sources)

    @property
    def paths(self) -> Sequence[str]:
        """The directories of all."""
        return [path for source in self.sources for path in source.paths]

    def timelines(self) -> Sequence[int]:
        """Return the timelines of all."""
        return sorted({timeline_id for source in self.sources for timeline_id in source.timelines()})

    def ranges(self, timeline_id: int, segment_size_bytes: int) -> Sequence[HeldRange]:
        """Return what one or another has."""
        from polarvault.wal.source import joined

        return joined(held for source in self.sources for held in source.ranges(timeline_id, segment_size_bytes))

    def copies(self, name: str) -> Sequence[WalCopy]:
        """Return the copies of all."""
        return [copy for source in self.sources for copy in source.copies(name)]

    def first_header(self) -> SegmentHeader | None:
        """Return the facts that the first one knows that knows any."""
        return next(filter(None, (source.first_header() for source in self.sources)), None)

    def foreign_form(self, name: str) -> str | None:
        """Return the first form that cannot be read."""
        return next(filter(None, (source.foreign_form(name) for source in self.sources)), None)

    def lack(self) -> tuple[str, str] | None:
        """Say what is wrong with the first place that can hold no WAL."""
        return next(filter(None, (source.lack() for source in self.sources)), None)

    def fetch_options(self) -> Sequence[str]:
        """Return the options of all."""
        return [word for source in self.sources for word in source.fetch_options()]

    def expect(self, is_wanted: Callable[[str], bool]) -> None:
        """Tell all."""
        for source in self.sources:
            source.expect(is_wanted)

    def finish(self) -> None:
        """Finish all."""
        for source in self.sources:
            source.finish()

    def close(self) -> None:
        """Close all."""
        for source in self.sources:
            source.close()
