"""Which backups are kept, and why. Pure: ages and order come in, a verdict for each backup comes out.

Order is by system identifiers as the repository has met them, then by timeline and LSN: never by a name, nor by the
clock of a machine that took a backup. Ages are by the clock of the store alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from polarvault.config.model import Retention

DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class Kept:
    """A backup as the policy sees it.

    order: greater is later. recorded: when its record was written, by the store's clock. is_good: whole, undamaged, and
    its WAL is there; others count for nothing that is kept by number.
    """

    label: str
    order: tuple[int, ...]
    recorded: datetime
    is_good: bool = True
    why_not_good: str = ""
    is_pinned: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a backup is kept, and all reasons for it.

    needs_later_wal: a window, or what is kept by number, begins with it or before: every later moment is wanted.
    """

    label: str
    is_kept: bool
    reasons: tuple[str, ...] = field(default=())
    needs_later_wal: bool = False


def judge(backups: Sequence[Kept], policy: Retention, now: datetime) -> list[Verdict]:
    """Return a verdict for each backup, oldest first. now: of the store's clock."""
    ordered = sorted(backups, key=lambda one: one.order)
    good = [one for one in ordered if one.is_good]
    if not good:
        why = "no backup of the cluster is good: nothing goes until one is"
        return [Verdict(one.label, is_kept=True, reasons=(why,), needs_later_wal=True) for one in ordered]
    reasons: dict[str, list[str]] = {one.label: [] for one in ordered}
    continuous: set[str] = set()
    reasons[good[-1].label].append("the last good backup")
    continuous.add(good[-1].label)
    for one in ordered:
        if one.is_pinned:
            reasons[one.label].append("pinned")
    if policy.keep is not None:
        for number, one in enumerate(reversed(good[-policy.keep :] if policy.keep else []), 1):
            reasons[one.label].append(f"one of the last {policy.keep}: number {number}")
            continuous.add(one.label)
    if policy.window_s is not None:
        continuous |= _keep_window(ordered, policy.window_s, now, reasons)
    for count, words, key in (
        (policy.daily, "day", _day),
        (policy.weekly, "week", _week),
        (policy.monthly, "month", _month),
        (policy.yearly, "year", _year),
    ):
        if count:
            _keep_points(good, count, words, key, reasons)
    first = min((one.order for one in ordered if one.label in continuous), default=None)
    return [
        Verdict(
            one.label,
            bool(reasons[one.label]),
            tuple(reasons[one.label]) or (_why_it_goes(one, policy),),
            needs_later_wal=first is not None and bool(reasons[one.label]) and one.order >= first,
        )
        for one in ordered
    ]


def _keep_window(ordered: Sequence[Kept], window_s: int, now: datetime, reasons: dict[str, list[str]]) -> set[str]:
    begin = now - timedelta(seconds=window_s)
    inside = [one for one in ordered if one.recorded >= begin]
    before = [one for one in ordered if one.recorded < begin and one.is_good]
    for one in inside:
        reasons[one.label].append(f"in the window of {_days(window_s)}")
    if before:
        # Every moment of the window, its first one as well, is reached from a backup that ended before.
        reasons[before[-1].label].append(f"the window of {_days(window_s)} begins with it")
        return {before[-1].label, *(one.label for one in inside)}
    return {one.label for one in inside}


def _keep_points(
    good: Sequence[Kept], count: int, words: str, key: Callable[[datetime], str], reasons: dict[str, list[str]]
) -> None:
    last: dict[str, Kept] = {}
    for one in good:
        last[key(one.recorded)] = one
    for name in sorted(last)[-count:]:
        reasons[last[name].label].append(f"the last of {words} {name}")


def _why_it_goes(one: Kept, policy: Retention) -> str:
    if not one.is_good:
        return f"{one.why_not_good or 'not good'}, and nothing keeps it"
    if policy.window_s is not None:
        return f"older than the window of {_days(policy.window_s)}, and no point of the policy"
    return "no rule of the policy keeps it"


def _day(time: datetime) -> str:
    return f"{time:%Y-%m-%d}"


def _week(time: datetime) -> str:
    return f"{time:%G-W%V}"


def _month(time: datetime) -> str:
    return f"{time:%Y-%m}"


def _year(time: datetime) -> str:
    return f"{time:%Y}"


def _days(seconds: int) -> str:
    days, rest = divmod(seconds, DAY_S)
    return f"{days} days" if not rest and days != 1 else "1 day" if seconds == DAY_S else f"{seconds} s"
