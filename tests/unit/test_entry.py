"""The program's first steps: nothing is imported before an interrupt is taken care of."""

from __future__ import annotations

import subprocess
import sys

_IMPORTED = """
import os, sys
before = set(sys.modules)
import polarvault.cli.entry
print(*sorted(set(sys.modules) - before))
"""


def test_the_entry_point_imports_nothing_that_takes_time() -> None:
    finished = subprocess.run([sys.executable, "-c", _IMPORTED], capture_output=True, text=True, check=True)
    # _signal is compiled in; `signal` would bring enum and all that it needs.
    assert set(finished.stdout.split()) <= {"__future__", "polarvault", "polarvault.cli", "polarvault.cli.entry"}
