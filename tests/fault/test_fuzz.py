"""Damaged answers, WAL streams and backups: each ends soon, in words, within its memory, and inside of its target.

The cases are the same in every run; `make fuzz` goes on with more. A failure names its number, which repeats it:
``cd tests && python -m support.fuzz_campaigns CAMPAIGN --first NUMBER --cases 1 -v``.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.fuzz_campaigns import CAMPAIGNS, remove_taken, run_cases
from support.fuzzing import Worker

# About ten seconds each on two cores that have nothing else to do.
CASES = {"backup": 90, "wal": 60, "directory": 60}


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as started:
        yield started
    remove_taken()


@pytest.mark.parametrize("campaign", sorted(CAMPAIGNS))
def test_damaged_input_ends_in_words(worker: Worker, campaign: str) -> None:
    failures, succeeded = [], 0
    for _, outcome, failure in run_cases(worker, campaign, iter(range(CASES[campaign]))):
        succeeded += outcome.status == 0
        if failure is not None:
            failures.append(str(failure))
    assert not failures, "\n\n".join(failures)
    # What is changed does not always matter; if it never did, or always, nothing would have been tried.
    assert 0 < succeeded < CASES[campaign]
