"""Making many files durable ends soon after a signal or a failure, however many files are left."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from types import FrameType

import pytest

from polarvault.errors import StorageFailed
from polarvault.storage.files import fsync_paths

MANY = 40_000
THREADS = 8
WAIT_S = 60


def test_an_interruption_ends_it_although_many_files_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x")
    came = threading.Event()
    synced: list[int] = []
    fsync = os.fsync
    own = threading.local()
    # Sent once all threads are at work, so that the main one only waits for them.
    begun = threading.Barrier(THREADS, action=lambda: os.kill(os.getpid(), signal.SIGTERM), timeout=WAIT_S)

    def handler(number: int, _: FrameType | None) -> None:
        came.set()
        raise KeyboardInterrupt

    def watched(descriptor: int) -> None:
        if not hasattr(own, "begun"):
            own.begun = begun.wait()
        assert came.wait(WAIT_S)
        synced.append(descriptor)
        fsync(descriptor)

    before = signal.signal(signal.SIGTERM, handler)
    monkeypatch.setattr(os, "fsync", watched)
    try:
        with pytest.raises(KeyboardInterrupt):
            fsync_paths([str(file)] * MANY)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(synced) < MANY


def test_a_file_that_cannot_be_synced_ends_it(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x")
    with pytest.raises(StorageFailed, match="gone"):
        fsync_paths([str(file)] * 20 + [str(tmp_path / "gone")] + [str(file)] * 20)


def test_nothing_to_sync_is_no_failure() -> None:
    fsync_paths([])
