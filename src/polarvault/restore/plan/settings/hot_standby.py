"""The settings in which hot standby must not have less than the server that wrote the WAL (manual, 26.4.3). Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from polarvault.errors import UsageError
from polarvault.polardb.settings import Wanted, is_true
from polarvault.restore.plan.settings.book import SettingsBook

# What the server takes where nothing is set.
_DEFAULTS = {
    "max_connections": "100",
    "max_worker_processes": "8",
    "max_wal_senders": "10",
    "max_prepared_transactions": "0",
    "max_locks_per_transaction": "64",
}


def as_in_the_source(book: SettingsBook) -> Iterator[Wanted]:
    """Yield the settings as the source had them, for a postgresql.conf that has to be made."""
    control = book.facts.backup.inventory.control
    for name in _DEFAULTS if control is not None else ():
        yield Wanted(name, str(getattr(control, name)), "as in the source, which hot standby demands")


def raised_settings(book: SettingsBook, why: str) -> Iterator[Wanted]:
    """Yield what is lower than hot standby needs."""
    for name, value in hot_standby_shortfalls(_values(book), _needs(book)).items():
        yield Wanted(name, value, why)


def check_given(book: SettingsBook) -> None:
    """Raise UsageError for a --set with which the server would stop on its way."""
    if not is_true(book.value("hot_standby") or "on"):
        return
    given = {name.lower(): value for name, value in book.request.settings}
    for name, value in hot_standby_shortfalls(_values(book), _needs(book)).items():
        if name in given:
            raise UsageError(
                f"--set {name}={given[name]}: hot standby needs at least {value}, as the source had when it wrote "
                "the WAL; the server would stop in the middle of the recovery",
                hint=f"leave it out, set it after the promotion, or give at least {value}",
            )


def hot_standby_shortfalls(configured: Mapping[str, str], needed: Mapping[str, str]) -> dict[str, str]:
    """Return the settings, with the value that is needed, that are lower here; both by name."""
    return {
        name: value
        for name, value in needed.items()
        if name in configured and _number(value) > _number(configured[name])
    }


def _number(text: str) -> int:
    return int(text) if text.strip().isdecimal() else 0


def _needs(book: SettingsBook) -> dict[str, str]:
    """Return what hot standby needs at least: by the primary, by the WAL, and by what the source ran with."""
    facts = book.facts
    control = facts.backup.inventory.control
    theirs = facts.primary.primary.settings if facts.primary is not None else {}
    in_wal = facts.recovery.hot_standby_needs if facts.recovery is not None else {}
    needs = {name: int(value) for name, value in theirs.items() if value.isdecimal()}
    for name in _DEFAULTS:
        # With options on its command line the source ran with other values than its files say.
        ran_with = 0 if control is None else int(getattr(control, name))
        needs[name] = max(needs.get(name, 0), in_wal.get(name, 0), ran_with)
    return {name: str(value) for name, value in needs.items()}


def _values(book: SettingsBook) -> dict[str, str]:
    """Return what the copy would have: as set, else what the source ran with, else PostgreSQL's default."""
    control = book.facts.backup.inventory.control
    return {
        name: book.value(name) or (default if control is None else str(getattr(control, name)))
        for name, default in _DEFAULTS.items()
    }
