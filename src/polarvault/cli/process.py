"""What a command sets for its whole process: never below `cli`, where the process may have other work to do."""

from __future__ import annotations

import os
import sys

_SWITCH_INTERVAL_S = 0.0005


def switch_threads_quickly() -> None:
    """Let threads take turns more often: one that imports the compiler must not hold up those that read files."""
    sys.setswitchinterval(_SWITCH_INTERVAL_S)


def leave_cores_to_our_threads() -> None:
    """Keep numpy's linear algebra, which nothing uses, from starting a thread for every core; before its import."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
