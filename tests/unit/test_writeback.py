"""Early writing to the disk: a hint that keeps no descriptor, waits for nobody and loses nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from polarvault.storage import writeback
from support.waiting import wait_until


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """What the kernel is asked for: the file, and the range."""
    found: list[tuple[str, int, int]] = []

    def note(descriptor: int, offset: int, length: int) -> None:
        found.append((os.readlink(f"/proc/self/fd/{descriptor}"), offset, length))

    monkeypatch.setattr(writeback, "start_writeback", note)
    return found


def test_a_file_is_sent_on_in_large_steps_and_the_rest_when_it_is_finished(
    tmp_path: Path, asked: list[tuple[str, int, int]]
) -> None:
    step = 8 << 20
    with open(tmp_path / "file", "wb") as file:
        one = writeback.Writeback(file.fileno())
        for offset in (step, 0, 2 * step):
            one.wrote(offset, step)
        one.finish()
        one.finish()
    name = str(tmp_path / "file")
    wait_until(lambda: asked == [(name, 0, 2 * step), (name, 2 * step, step)], "both are asked for")


def test_small_files_are_left_to_the_sync(tmp_path: Path, asked: list[tuple[str, int, int]]) -> None:
    with open(tmp_path / "file", "wb") as file:
        one = writeback.Writeback(file.fileno())
        one.wrote(0, 8192)
        one.finish()
        writeback.start_aside(file.fileno(), 0, 2 << 20)
    wait_until(lambda: len(asked) > 0, "the large one is asked for")
    assert asked == [(str(tmp_path / "file"), 0, 2 << 20)]


def test_what_the_kernel_does_not_keep_up_with_holds_no_descriptors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    go_on = threading.Event()
    monkeypatch.setattr(writeback, "start_writeback", lambda *_: go_on.wait(10))
    before = len(os.listdir("/proc/self/fd"))
    with open(tmp_path / "file", "wb") as file:
        for _ in range(200):
            writeback.start_aside(file.fileno(), 0, 2 << 20)
        assert len(os.listdir("/proc/self/fd")) < before + 40
    go_on.set()
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before, "all are closed")
