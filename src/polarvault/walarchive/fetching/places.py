"""A place with WAL that is opened when it is asked first: one that is away must not keep others from serving."""

from __future__ import annotations

from polarvault.errors import PolarvaultError, StorageFailed, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from polarvault.wal.segment_header import SegmentHeader
    from polarvault.wal.source import HeldRange, WalCopy, WalSource


class OpenedLater:
    """A `wal.source.WalSource` behind a function that opens it; StorageFailed each time when it cannot be opened."""

    def __init__(self, place: str, open_source: Callable[[], WalSource]) -> None:
        self.place = place
        self._open = open_source
        self._source: WalSource | None = None
        self._failed: StorageFailed | None = None

    def _opened(self) -> WalSource:
        if self._failed is not None:
            raise self._failed
        if self._source is None:
            try:
                self._source = self._open()
            except UsageError:
                raise
            except PolarvaultError as problem:
                # Whatever it is: the place could not be asked, which is no end of the WAL.
                self._failed = StorageFailed(problem.message, hint=problem.hint)
                raise self._failed from problem
        return self._source

    @property
    def paths(self) -> Sequence[str]:
        """Those of the source."""
        return self._opened().paths

    def timelines(self) -> Sequence[int]:
        """Ask the source."""
        return self._opened().timelines()

    def ranges(self, timeline_id: int, segment_size_bytes: int) -> Sequence[HeldRange]:
        """Ask the source."""
        return self._opened().ranges(timeline_id, segment_size_bytes)

    def copies(self, name: str) -> Sequence[WalCopy]:
        """Ask the source."""
        return self._opened().copies(name)

    def first_header(self) -> SegmentHeader | None:
        """Ask the source."""
        return self._opened().first_header()

    def foreign_form(self, name: str) -> str | None:
        """Ask the source."""
        return self._opened().foreign_form(name)

    def lack(self) -> tuple[str, str] | None:
        """Ask the source."""
        return self._opened().lack()

    def fetch_options(self) -> Sequence[str]:
        """Ask the source."""
        return self._opened().fetch_options()

    def expect(self, is_wanted: Callable[[str], bool]) -> None:
        """Tell the source."""
        self._opened().expect(is_wanted)

    def finish(self) -> None:
        """Tell the source."""
        self._opened().finish()

    def close(self) -> None:
        """Close the source, if it was opened."""
        if self._source is not None:
            self._source.close()
