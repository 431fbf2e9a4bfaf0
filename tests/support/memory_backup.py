"""A backup that lies nowhere but in memory: what a repository will be to a restore."""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath

from polarvault.backupset.backup import DeliveryStopped, Entry, FileSink, Share
from polarvault.backupset.model import Area, Form, Inventory, Part
from polarvault.pgfiles.control import parse_known_control
from polarvault.pgfiles.tar import MemberKind
from polarvault.wal.source import WalSource
from support.memory_wal import MemoryWal

_SMALL_BYTES = 64 << 10
_PIECE_BYTES = 7000


class MemoryBackup:
    """Files by name; those in pg_wal are segments. Every share holds two files, delivered in small pieces."""

    def __init__(self, files: Mapping[str, bytes], *, path: str = "memory") -> None:
        self.path = path
        self.form = Form.TAR_FILE
        self.parts: tuple[Part, ...] = ()
        self.description: Mapping[str, object] = {}
        self.archives: tuple[WalSource, ...] = ()
        self.fetched_bytes: int | None = None
        self._files = files

    def saved_configuration(self) -> None:
        return None

    def remarks(self) -> Sequence[str]:
        """Return nothing."""
        return ()

    def speeds(self) -> Sequence[float]:
        """Return nothing."""
        return ()

    def note_speed(self, size_bytes: int, seconds: float) -> None:
        """Do nothing."""

    def parts_of(self, area: Area) -> list[Part]:
        return []

    def look_through(self) -> Inventory:
        small = {(Area.LOCAL, name): content for name, content in self._files.items() if len(content) <= _SMALL_BYTES}
        control = parse_known_control(self._files["global/pg_control"], int(self._files["PG_VERSION"]))
        return Inventory(
            files=small,
            sizes={Area.LOCAL: sum(map(len, self._files.values()))},
            tablespace_sizes={},
            wal={name.removeprefix("pg_wal/"): len(self._files[name]) for name in self._files if "pg_wal/" in name},
            names=frozenset((Area.LOCAL, name) for name in self._files),
            tablespaces=(),
            has_control=True,
            control=control,
            group_readable=False,
            file_count=len(self._files),
        )

    @contextmanager
    def shares(
        self, inventory: Inventory, wanted: Callable[[Entry], bool], *, tablespaces: Container[int]
    ) -> Iterator[Iterator[Share]]:
        yield self._shares(wanted)

    def _shares(self, wanted: Callable[[Entry], bool]) -> Iterator[Share]:
        entries = []
        for directory in sorted({str(above) for name in self._files for above in PurePosixPath(name).parents} - {"."}):
            wanted(Entry(Area.LOCAL, directory, MemberKind.DIRECTORY))
        for name, content in self._files.items():
            if wanted(entry := Entry(Area.LOCAL, name, MemberKind.FILE, len(content))):
                entries.append((entry, content))
        for start in range(0, len(entries), 2):
            yield _Share(entries[start : start + 2])

    def wal(self, inventory: Inventory) -> WalSource:
        segments = {name: content for name, content in self._files.items() if name.startswith("pg_wal/")}
        return MemoryWal.of_segments({name.removeprefix("pg_wal/"): content for name, content in segments.items()})


class _Share:
    def __init__(self, files: list[tuple[Entry, bytes]]) -> None:
        self._files = files

    def deliver(self, sink: FileSink, stop: threading.Event) -> None:
        try:
            for entry, content in self._files:
                if stop.is_set():
                    raise DeliveryStopped
                if not sink.begin(entry, None):
                    continue
                buffer = bytearray(_PIECE_BYTES)
                for start in range(0, len(content), _PIECE_BYTES):
                    piece = content[start : start + _PIECE_BYTES]
                    buffer[: len(piece)] = piece
                    sink.data([memoryview(buffer)[: len(piece)]])
                sink.end()
        finally:
            sink.close()
