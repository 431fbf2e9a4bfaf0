"""Which settings a restore changes, and why: a list of rules over the source's configuration. Pure.

Order counts: what names the source's place is switched off first, then the role's settings are made, then PolarDB's,
and `--set` comes last and wins.
"""

from __future__ import annotations

from polarvault.errors import UsageError
from polarvault.polardb.settings import DATADIR, Wanted, names_directory
from polarvault.recovery.settings import target_setting
from polarvault.recovery.target import TargetKind
from polarvault.restore.facts import RestoreFacts
from polarvault.restore.model import RestoreRequest
from polarvault.restore.plan.roles.rules import RoleRules
from polarvault.restore.plan.settings.book import SettingsBook
from polarvault.restore.plan.settings.hot_standby import as_in_the_source
from polarvault.restore.plan.settings.source import cut_off_from_source

# What an unknown postgresql.conf may hold that acts during any recovery; empty is harmless where it holds nothing.
_EMPTIED_IF_UNKNOWN = (
    ("archive_cleanup_command", "would delete from the source's WAL archive, if a postgresql.conf elsewhere sets it"),
    ("recovery_end_command", "was meant for another recovery, if a postgresql.conf elsewhere sets it"),
)
_TARGETS = tuple(sorted(name for kind in TargetKind if (name := target_setting(kind)) is not None))


def decide_settings(request: RestoreRequest, facts: RestoreFacts, rules: RoleRules) -> SettingsBook:
    """Run every rule; return the book of what was changed. Raises UsageError for a --set that cannot be."""
    book = SettingsBook(request, facts, is_armed_by_main_file=rules.is_armed_by_main_file)
    if book.has_unknown_main_file:
        _make_main_file(book)
    book.is_read_elsewhere = book.has_unknown_main_file or facts.host.cluster is not None
    cut_off_from_source(book)
    if book.has_unknown_main_file:
        _empty_other_targets(book)
    rules.settle(book)
    book.set_all(rules.storage(request).settings(book))
    if request.host_id is not None:
        book.set("polar_hostid", str(request.host_id), "--hostid")
    if book.has_unknown_main_file:
        for name, why in _EMPTIED_IF_UNKNOWN:
            if book.value(name) is None:
                book.set(name, "", why)
    book.set_all(rules.last_settings(request))
    if request.port is not None:
        book.set("port", str(request.port), "--port")
    book.set_all(Wanted(name, value, "--set") for name, value in request.settings)
    rules.check_settled(book)
    # Only --set can have undone it; it would start a second writer on somebody's storage (facts 4.2).
    shared = book.layout.shared
    if shared and not names_directory(book.value(DATADIR), shared):
        raise UsageError(
            f"--set {DATADIR}={book.value(DATADIR)} does not name the restored shared half",
            hint=f"leave it out; --polardata decides where the shared half goes (now {shared})",
        )
    return book


def _make_main_file(book: SettingsBook) -> None:
    cluster = book.facts.host.cluster
    if cluster is not None:
        book.warnings.append(f'"{cluster.main_file}" of cluster {cluster} cannot be read')
        return
    book.warnings.append(
        "the backup holds no postgresql.conf (Debian keeps it in /etc/postgresql): a minimal one is written; what "
        "must hold, should the server be started with another one, is in postgresql.auto.conf"
    )
    # Hot standby refuses to start with less than the source had (manual, 26.4.3).
    book.set_all(as_in_the_source(book))


def _empty_other_targets(book: SettingsBook) -> None:
    recovery = book.facts.recovery
    target = recovery and target_setting(recovery.target.kind)
    for name in _TARGETS if target else ():
        # The server takes one target only; a second, from wherever, would keep it from starting. These lines stand
        # before the target's, because it refuses even an empty one that follows another kind.
        if name != target and book.value(name) is None:
            book.set(name, "", "only one target can be set, should a postgresql.conf elsewhere set another")
