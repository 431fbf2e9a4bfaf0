"""How a backup slows down while the server is slow for others."""

from __future__ import annotations

from polarvault.taking.guards.courtesy import FLOOR_BYTES_PER_S, Pace, Seen
from polarvault.taking.request import CourtesyLimits

MB = 1 << 20


def bytes_in(pace: Pace, start: float, done: int, seconds: float, unhindered: float) -> int:
    """Return how far a reader gets that could read so many bytes a second, a megabyte at a time."""
    now = start
    while now < start + seconds:
        now += MB / unhindered
        done += MB
        now += pace.wait_s(now, done)
    return done


def test_without_trouble_there_is_no_wait() -> None:
    pace = Pace(0)
    done = 0
    for second in range(5):
        done = bytes_in(pace, second, done, 1, 200 * MB)
        pace.look(second + 1, done, is_over=False)
        assert pace.rate is None


def test_it_slows_down_to_the_floor_and_recovers() -> None:
    pace, done, now = Pace(0), 0, 0.0
    rates = []
    for round_number in range(40):
        done = bytes_in(pace, now, done, 0.5, 200 * MB)
        now += 0.5
        pace.look(now, done, is_over=2 <= round_number < 16)
        rates.append(pace.rate)
    assert rates[1] is None
    falling = [rate for rate in rates[2:16] if rate is not None]
    assert len(falling) == 14
    assert falling == sorted(falling, reverse=True)
    assert falling[0] <= 110 * MB
    assert falling[-1] == FLOOR_BYTES_PER_S
    assert rates[-1] is None


def test_at_the_floor_it_goes_on() -> None:
    pace = Pace(0)
    pace.look(1, 100 * MB, is_over=True)
    for second in range(2, 12):
        pace.look(second, 100 * MB, is_over=True)
    assert pace.rate == FLOOR_BYTES_PER_S
    assert bytes_in(pace, 11, 100 * MB, 10, 200 * MB) - 100 * MB >= 10 * MB


def test_a_limit_is_of_commits_or_of_lag() -> None:
    limits = CourtesyLimits(0.05, 10)
    assert not Seen(0.05, 10).is_over(limits)
    assert Seen(0.051, 0).is_over(limits)
    assert Seen(0, 10.1).is_over(limits)
