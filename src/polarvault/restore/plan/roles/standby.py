"""A server that stays in recovery, and follows a primary or a WAL archive."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from polarvault.errors import UsageError
from polarvault.instance.model import Role
from polarvault.polardb.settings import Wanted, is_true
from polarvault.recovery.target import LATEST_TIMELINE, RecoveryRequest
from polarvault.restore.model import RestoreRequest
from polarvault.restore.plan.roles.rules import RoleRules
from polarvault.restore.plan.settings.book import SettingsBook
from polarvault.restore.plan.settings.hot_standby import raised_settings

_SLOT_NAME = re.compile(r"[a-z0-9_]{1,63}\Z")
_NOT_A_NAME = re.compile(r"[^A-Za-z0-9_.-]+")


class FollowerRules(RoleRules):
    """What all servers that stay in recovery have in common."""

    def check_role_options(self, request: RestoreRequest) -> None:
        """Refuse targets, and slots that cannot be."""
        option = next(self.only_for_primaries(request.recovery), None)
        if option is not None:
            raise UsageError(
                f"{option} is for a server that is to be a primary, not a {self.role.value}",
                hint="leave --as out; with --target-action pause the recovered server stays read-only",
            )
        if request.slot is not None and _SLOT_NAME.match(request.slot) is None:
            raise UsageError(
                f"--slot {request.slot!r}: a slot's name has up to 63 small letters, digits and underscores",
                hint="for example: --slot standby2",
            )
        if request.create_slot and not request.slot:
            raise UsageError("--create-slot needs a name", hint="add --slot NAME")
        if request.create_slot and not request.primary_conninfo:
            raise UsageError(
                "--create-slot needs the primary to make the slot on", hint="add --primary-conninfo CONNSTR"
            )

    def only_for_primaries(self, recovery: RecoveryRequest) -> Iterator[str]:
        """Yield what was given and is for a server that is to end its recovery."""
        if recovery.target is not None:
            yield recovery.target.kind.option
        if recovery.timeline != LATEST_TIMELINE:
            yield "--target-timeline"
        if recovery.keep_archiving:
            yield "--keep-archiving"
        if recovery.accepted_end is not None:
            yield "--accept-end"

    def settle(self, book: SettingsBook) -> None:
        """Let the server follow, and take queries meanwhile."""
        request = book.request
        command = self.restore_command(request, book.facts)
        if command is not None:
            book.set("restore_command", command, "--wal")
        if request.primary_conninfo:
            wanted = _primary_conninfo(book, request.primary_conninfo)
            book.set(wanted.name, wanted.value, wanted.why)
        if request.slot:
            made = "--slot, made on the primary" if request.create_slot else "--slot"
            book.set("primary_slot_name", request.slot, made)
        book.set_all(raised_settings(book, "as on the primary, which hot standby demands"))
        if book.value("hot_standby") and not is_true(book.value("hot_standby")):
            book.set("hot_standby", "on", "a standby has to answer queries")


class StandbyRules(FollowerRules):
    """The rules of `--as standby`."""

    role = Role.STANDBY

    def streams_wal(self, request: RestoreRequest) -> bool:
        """Tell whether a primary was named."""
        return bool(request.primary_conninfo)


def application_name(request: RestoreRequest) -> str:
    """Return the name under which the standby shows in the primary's pg_stat_replication."""
    return request.slot or _NOT_A_NAME.sub("_", os.path.basename(request.target)) or "standby"


def _primary_conninfo(book: SettingsBook, given: str) -> Wanted:
    """Return the setting; a standby that synchronises slots (17 and later) needs a database in it."""
    if not is_true(book.settled_value("sync_replication_slots")):
        return Wanted("primary_conninfo", given, "--primary-conninfo")
    # Loaded only here: a restore that speaks to no primary does without libpq.
    from psycopg.conninfo import conninfo_to_dict, make_conninfo

    for name, is_there in (
        ("--slot", bool(book.request.slot)),
        ("hot_standby_feedback = on", is_true(book.settled_value("hot_standby_feedback"))),
    ):
        if not is_there:
            book.warnings.append(
                f"sync_replication_slots is on, but slots are synchronised only with {name}: add it"
                + ("" if name.startswith("--") else ", --set hot_standby_feedback=on")
            )
    words = conninfo_to_dict(given)
    if words.get("dbname") or "service" in words:
        return Wanted("primary_conninfo", given, "--primary-conninfo")
    complete = make_conninfo("", **{**words, "dbname": "postgres"})
    return Wanted("primary_conninfo", complete, "--primary-conninfo; sync_replication_slots needs a dbname")
