"""A file system that fills up soon."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(directory: Path, size: str) -> Iterator[None]:
    """Mount a file system of a size such as 12m on a directory; skip the test where that is not allowed."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small file system needs the right to mount one: {mounted.stderr.strip()}")
    try:
        yield
    except BaseException:
        # A file that the failed test left open must not keep it mounted, nor hide the failure.
        subprocess.run(["umount", "--lazy", str(directory)], check=False)
        raise
    # What is still open here was forgotten by the program.
    subprocess.run(["umount", str(directory)], check=True)
