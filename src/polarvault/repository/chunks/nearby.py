"""Chunks for who asks for them in about the order in which they lie: a stretch of a pack is fetched at a time."""

from __future__ import annotations

import threading
from collections import OrderedDict

from polarvault.repository.chunks.reader import ChunkReader, Window
from polarvault.repository.format.chunks import ChunkRef


class NearbyReader:
    """Reads chunks of one cluster; may be used by several threads.

    window_bytes: of a stretch. windows: how many of them are kept, one for each place that is read at the same time.
    kept_bytes: how much is kept of chunks that were decoded, because they are asked for several times in a row.
    """

    def __init__(self, chunks: ChunkReader, *, window_bytes: int, windows: int, kept_bytes: int = 0) -> None:
        self._chunks = chunks
        self._window_bytes, self._most_windows, self._most_kept = window_bytes, windows, kept_bytes
        self._lock = threading.Lock()
        self._windows: OrderedDict[tuple[str, int, int], Window] = OrderedDict()
        self._kept: OrderedDict[ChunkRef, memoryview] = OrderedDict()
        self._kept_bytes = 0

    def read(self, ref: ChunkRef) -> memoryview:
        """Return the raw bytes of a chunk; raise ObjectDamaged that names pack, chunk and offset."""
        with self._lock:
            raw = self._kept.get(ref)
            if raw is not None:
                self._kept.move_to_end(ref)
                return raw
        raw = self._fetched(ref)
        if self._most_kept:
            self._keep(ref, raw)
        return raw

    def _fetched(self, ref: ChunkRef) -> memoryview:
        if ref.stored > self._window_bytes // 4:
            return self._chunks.read(ref)
        with self._lock:
            found = None
            for key, window in self._windows.items():
                if key[:2] == (ref.label, ref.pack) and window.holds(ref):
                    found = key
            if found is not None:
                self._windows.move_to_end(found)
                window = self._windows[found]
        if found is None:
            window = self._chunks.read_ahead(ref, self._window_bytes)
            with self._lock:
                self._windows[ref.label, ref.pack, ref.offset] = window
                while len(self._windows) > self._most_windows:
                    self._windows.popitem(last=False)
        return self._chunks.from_window(window, ref)

    def _keep(self, ref: ChunkRef, raw: memoryview) -> None:
        with self._lock:
            if ref in self._kept:
                return
            self._kept[ref] = raw
            self._kept_bytes += len(raw)
            while self._kept_bytes > self._most_kept:
                self._kept_bytes -= len(self._kept.popitem(last=False)[1])
