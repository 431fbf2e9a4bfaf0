"""A WAL directory as a source, and what a directory is that holds no WAL.

`polarvault wal fetch` imports this for every segment of a recovery: nothing heavy may be imported at the top.
"""

from __future__ import annotations

import os

from polarvault.storage.files import storage_failed
from polarvault.wal.names import is_backup_history_name, is_history_name, is_segment_name
from polarvault.wal.segment_header import SegmentHeader, parse_segment_header
from polarvault.walfiles.files import first_bytes, forms_of, is_pg_wal, wal_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from polarvault.wal.source import HeldRange, WalSource
    from polarvault.walfiles.files import WalFile

# What other archive_commands make of a segment, in forms that are not read here.
FOREIGN_SUFFIXES = (".bz2", ".xz", ".lzma", ".lzo", ".br", ".gpg", ".enc", ".age")
_HEX = frozenset("0123456789ABCDEF")
_SHOWN_NAMES = 3
_LISTED_NAMES = 100_000


def wal_sources(directories: Sequence[str]) -> list[WalSource]:
    """Return the sources behind the --wal options of a command."""
    return [WalDirectory(path) for path in directories]


class WalDirectory:
    """A `wal.source.WalSource`: a directory that was written by a receiver or an archive_command, or a pg_wal."""

    def __init__(self, path: str) -> None:
        self.path = path

    @property
    def place(self) -> str:
        """The directory."""
        return self.path

    @property
    def paths(self) -> Sequence[str]:
        """The directory."""
        return (self.path,)

    def timelines(self) -> Sequence[int]:
        """Return every timeline of which there is a segment or a history file, sorted."""
        names = {wal_file(self.path, name, in_pg_wal=False).name for name in self._listed()}
        return sorted({int(name[:8], 16) for name in names if is_segment_name(name) or is_history_name(name)})

    def ranges(self, timeline_id: int, segment_size_bytes: int) -> Sequence[HeldRange]:
        """Return what there is of a timeline, in some form, by the names."""
        from polarvault.wal.source import ranges_of_names

        names = (wal_file(self.path, name, in_pg_wal=False).name for name in self._listed())
        return ranges_of_names(names, timeline_id, segment_size_bytes)

    def copies(self, name: str) -> Sequence[WalFile]:
        """Return the files, as `forms_of` finds them."""
        return forms_of(self.path, name)

    def first_header(self) -> SegmentHeader | None:
        """Return the facts of some segment."""
        in_pg_wal = is_pg_wal(self.path)
        for name in sorted(self._listed(), reverse=True):
            file = wal_file(self.path, name, in_pg_wal=in_pg_wal)
            if is_segment_name(file.name):
                header = parse_segment_header(first_bytes(file))
                if header is not None:
                    return header
        return None

    def foreign_form(self, name: str) -> str | None:
        """Return the path of a segment in a form that cannot be read here; None if there is none."""
        paths = (os.path.join(self.path, name + suffix) for suffix in FOREIGN_SUFFIXES)
        return next(filter(os.path.exists, paths), None)

    def lack(self) -> tuple[str, str] | None:
        """Say what the directory is if it holds no WAL file by its name; raise StorageFailed if it cannot be read."""
        return _unrecognised(self.path)

    def fetch_options(self) -> Sequence[str]:
        """Return --wal."""
        return "--wal", os.path.abspath(self.path)

    def expect(self, is_wanted: Callable[[str], bool]) -> None:
        """Do nothing: any file can be opened at any time."""

    def finish(self) -> None:
        """Do nothing: a file that was not asked for does not get in the way of the others."""

    def close(self) -> None:
        """Do nothing: no file stays open."""

    def _listed(self) -> list[str]:
        try:
            return os.listdir(self.path)
        except OSError as problem:
            raise storage_failed(problem, "read directory", self.path) from problem


def _unrecognised(directory: str) -> tuple[str, str] | None:
    """Say what a directory is that holds no WAL file by its name, and what to do; None for one that holds WAL.

    Raises StorageFailed if it cannot be read.
    """
    names: list[str] = []
    for name in _names(directory):
        if _is_wal_name(name):
            return None
        if len(names) < _LISTED_NAMES:
            names.append(name)
    if not names:
        return "is empty", "mount its file system, or leave this --wal out if nothing has been archived so far"
    below = [name for name in sorted(names) if os.path.isdir(os.path.join(directory, name))]
    with_wal = [name for name in below if any(_is_wal_name(inner) for inner in _names_if_any(directory, name))]
    if with_wal:
        barman = all(len(name) == 16 and _HEX.issuperset(name) for name in with_wal)
        # Recovery crosses from one of these to the next.
        shown = " ".join(f"--wal {os.path.join(directory, name)}" for name in with_wal[:_SHOWN_NAMES])
        more = f" and so on for all {len(with_wal)}" if len(with_wal) > _SHOWN_NAMES else ""
        what = "Barman's layout, one directory for 256 segments" if barman else "one level too high"
        return f"holds no WAL itself, but its sub-directories do ({what})", f"name them: {shown}{more}"
    odd = next((name for name in sorted(names) if is_segment_name(name[:24])), None)
    if odd is None:
        inner = ((name, other) for name in below for other in _names_if_any(directory, name))
        odd = next((f"{name}/{other}" for name, other in inner if is_segment_name(other[:24])), None)
    if odd is not None:
        return (
            f'holds no file named as a WAL segment, but "{odd}": the repository of another backup program',
            "have that program put the segments into a directory under their own names (pgbackrest archive-get, "
            "barman get-wal), or name it as the archive: --set restore_command=...",
        )
    return (
        f'holds no file named as a WAL segment (such as 000000010000000000000001), but "{sorted(names)[0]}"',
        "name the directory with the segments: --wal DIR",
    )


def _names_if_any(directory: str, name: str) -> list[str]:
    try:
        return os.listdir(os.path.join(directory, name))
    except OSError:
        return []  # Not a directory that we may look into: it is none to be named either.


def _names(directory: str) -> Iterator[str]:
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                yield entry.name
    except OSError as problem:
        raise storage_failed(problem, "read directory", directory) from problem


def _is_wal_name(file_name: str) -> bool:
    for suffix in FOREIGN_SUFFIXES:
        # Of it will be said that it cannot be read, which is another thing.
        file_name = file_name.removesuffix(suffix)
    name = wal_file("", file_name, in_pg_wal=False).name
    return is_segment_name(name) or is_history_name(name) or is_backup_history_name(name)
