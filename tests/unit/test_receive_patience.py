"""How long a server is kept waiting for what cannot be made durable."""

from __future__ import annotations

import pytest

from polarvault.errors import ConnectionLost
from polarvault.walarchive.receive.patience import LIMIT_S, Patience


def test_a_server_is_left_when_nothing_could_be_taken_for_long() -> None:
    patience = Patience()
    patience.full(100)
    patience.full(100 + LIMIT_S - 1)
    patience.took()
    patience.full(100 + LIMIT_S)
    patience.full(100 + 2 * LIMIT_S - 1)
    with pytest.raises(ConnectionLost, match="no room"):
        patience.full(100 + 2 * LIMIT_S)


def test_a_server_is_left_that_asks_without_end_for_what_is_not_durable() -> None:
    patience = Patience()
    now = 0.0
    while now < LIMIT_S:
        patience.asked(now, is_durable=False)
        now += 1.0
    with pytest.raises(ConnectionLost, match="shut down"):
        patience.asked(now, is_durable=False)


@pytest.mark.parametrize(("step", "durable_each"), [(5.0, 0), (1.0, 20)])
def test_one_that_asks_now_and_then_or_gets_its_answer_is_not(step: float, durable_each: int) -> None:
    patience = Patience()
    for number in range(1, 200):
        patience.asked(number * step, is_durable=bool(durable_each) and number % durable_each == 0)
