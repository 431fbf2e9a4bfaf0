"""A server that can be written, on a new timeline, at a target or at the end of the WAL."""

from __future__ import annotations

from collections.abc import Iterable

from polarvault.errors import UsageError
from polarvault.instance.model import Role
from polarvault.polardb.settings import Wanted
from polarvault.recovery.settings import NO_ARCHIVE_COMMAND, archive_recovery_settings
from polarvault.restore.facts import RestoreFacts
from polarvault.restore.model import Archiving, RestoreRequest
from polarvault.restore.plan.roles.rules import RoleRules
from polarvault.restore.plan.settings.book import SettingsBook
from polarvault.restore.plan.settings.hot_standby import raised_settings

# With none of them nobody starts the workers of a subscription, whatever the catalogs say (manual, 31.12).
_LOGICAL_WORKERS = "max_logical_replication_workers"


class PrimaryRules(RoleRules):
    """The rules of `--as primary`."""

    role = Role.PRIMARY

    def check_role_options(self, request: RestoreRequest) -> None:
        """Refuse what is for a standby, and targets that nobody would look for."""
        for option, value in (
            ("--primary-conninfo", request.primary_conninfo),
            ("--slot", request.slot),
            ("--create-slot", request.create_slot),
        ):
            if value:
                raise UsageError(f"{option} is for a standby", hint="add --as standby")
        if request.recovery.keep_archiving and request.archiving is not Archiving.OFF:
            raise UsageError(
                f"--keep-archiving and --archive {request.archiving.value} exclude one another", hint="give one of them"
            )
        if request.archiving is Archiving.ALWAYS:
            raise UsageError("--archive always is for a standby", hint="add --as standby, or use --archive on")
        doubled = [name.lower() for name, _ in request.settings if name.lower().startswith("recovery_target")]
        if doubled:
            # Nobody would look whether that can be reached; and the plan would speak of another target.
            raise UsageError(
                f"--set {doubled[0]}: recovery targets are checked before anything is written, by options of their own",
                hint=f"give it as --{doubled[0].removeprefix('recovery_').replace('_', '-')}",
            )

    def surveys_wal(self, request: RestoreRequest) -> bool:
        """Look where recovery ends, if it goes beyond the backup."""
        return request.recovery.is_wanted

    def restore_command(self, request: RestoreRequest, facts: RestoreFacts) -> str | None:
        """Return one in every case: the server demands it together with recovery.signal."""
        if any(name == "restore_command" for name, _ in request.settings):
            return None
        return super().restore_command(request, facts) or NO_ARCHIVE_COMMAND

    def settle(self, book: SettingsBook) -> None:
        """Let the server recover to where the plan says, and wait for nobody."""
        command = self.restore_command(book.request, book.facts)
        book.set_all(archive_recovery_settings(book.facts.recovery, command, book.value("hot_standby")))
        book.set_all(raised_settings(book, "as the source had it, which hot standby demands"))
        if book.value("synchronous_standby_names"):
            book.disable("synchronous_standby_names", "commits would wait for standbys of the source")

    def last_settings(self, request: RestoreRequest) -> Iterable[Wanted]:
        """Yield what keeps subscriptions of the source quiet."""
        if self.disables_subscriptions(request):
            yield Wanted(_LOGICAL_WORKERS, "0", "subscriptions of the source would take its place at their publishers")

    def disables_subscriptions(self, request: RestoreRequest) -> bool:
        """Leave them only in what replaces its source."""
        return not request.recovery.keep_archiving
