"""What a command sets for its whole process: never below `cli`, where the process may have other work to do."""

from __future__ import annotations

import gc
import os
import sys

_SWITCH_INTERVAL_S = 0.0005
_COLLECT_AFTER = 50_000


def switch_threads_quickly() -> None:
    """Let threads take turns more often: one that imports the compiler must not hold up those that read files."""
    sys.setswitchinterval(_SWITCH_INTERVAL_S)


def leave_cores_to_our_threads() -> None:
    """Keep numpy's linear algebra, which nothing uses, from starting a thread for every core; before its import."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def collect_rarely() -> None:
    """Look for unreachable cycles of objects less often.

    A manifest of a hundred thousand files makes as many objects, all of which stay, and Python would look through them
    again and again. Cycles are rare here (exceptions that are kept), so that a long-lived
    command can wait for them.
    """
    gc.set_threshold(_COLLECT_AFTER, 10, 10)
