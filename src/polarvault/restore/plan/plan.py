"""Decide everything about a restore. Pure: the request and the facts go in, the plan comes out, and nobody is asked."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import replace

from polarvault.errors import BackupUnusable
from polarvault.pgconf.configuration import MAIN_FILE
from polarvault.pgconf.hba import without_missing
from polarvault.recovery.reachability import RecoveryPlan
from polarvault.restore.delta.own_wal import KEPT_DIRECTORY
from polarvault.restore.facts import BackupFacts, HostFacts, RestoreFacts
from polarvault.restore.model import RestorePlan, RestoreRequest
from polarvault.restore.plan.backup import half_warnings, missing_wal
from polarvault.restore.plan.outside import HBA_FILE
from polarvault.restore.plan.places import plan_space, port_warnings
from polarvault.restore.plan.roles import RoleRules, rules_of
from polarvault.restore.plan.settings.book import NOTE, SettingsBook
from polarvault.restore.plan.settings.decide import decide_settings

# pg_hba.conf for a backup that has none; without one the server does not start.
_MINIMAL_HBA = b"""# Written by polarvault restore: the backup holds no pg_hba.conf.
local   all             all                                     peer
host    all             all             127.0.0.1/32            scram-sha-256
host    all             all             ::1/128                 scram-sha-256
"""


def plan_restore(request: RestoreRequest, facts: RestoreFacts) -> RestorePlan:
    """Return what is done; raise UsageError for settings that would not work.

    What else can be refused has been by then, each as soon as it was known (`gather`).
    """
    rules, backup, host = rules_of(request.role), facts.backup, facts.host
    if facts.primary is not None:
        request = replace(request, primary_conninfo=facts.primary.primary.conninfo)
    recovery = facts.recovery
    if recovery is not None and facts.choice is not None:
        recovery = replace(recovery, rejected=facts.choice.rejected, windows=facts.choice.windows)
    book = decide_settings(request, facts, rules)
    kept = host.put_back.files if host.put_back is not None and host.cluster is None else {}
    files = {**kept, **book.configuration.edited()}
    warnings = [
        *(facts.choice.warnings if facts.choice is not None else ()),
        *backup.warnings,
        *rules.backup_warnings(request, backup),
        *(recovery.warnings if recovery is not None else ()),
        *half_warnings(backup.inventory),
        *port_warnings(request, host),
        *_kept_wal_warnings(host),
        *_configuration_warnings(request, backup, host),
        *_settle_hba(book, rules, files),
        *book.warnings,
        *(facts.primary.warnings if facts.primary is not None else ()),
    ]
    return RestorePlan(
        request=request,
        facts=facts,
        rules=rules,
        source=backup.source,
        inventory=backup.inventory,
        changes=tuple(book.changes),
        files=files,
        signal_path=os.path.join(host.layout.local, request.role.signal_file),
        space=tuple(plan_space(backup, host, wal_bytes=_brought_bytes(request, recovery))),
        warnings=tuple(warnings),
        recovery=recovery,
        disagreements=backup.disagreements,
    )


def _kept_wal_warnings(host: HostFacts) -> list[str]:
    kept = host.existing.kept_wal if host.existing is not None else ()
    if not kept:
        return []
    place = os.path.join(host.layout.data, KEPT_DIRECTORY)
    names = kept[0] if len(kept) == 1 else f"{kept[0]} to {kept[-1]}"
    return [
        f"the repository lacks WAL of the target ({names}), in which the last transactions may be: it is kept in "
        f'"{place}"; recovery goes on with it if it is named: --wal {shlex.quote(place)}'
    ]


def _brought_bytes(request: RestoreRequest, recovery: RecoveryPlan | None) -> int:
    if not request.brings_wal or recovery is None:
        return 0
    return sum(segment.size_bytes for segment in recovery.needed)


def check_startable(plan: RestorePlan) -> None:
    """Raise BackupUnusable for a server that could not start, for want of WAL."""
    request, backup, rules = plan.request, plan.facts.backup, plan.rules
    missing = missing_wal(backup.inventory, backup.label) if backup.label else None
    if missing is not None and not rules.is_wal_supplied(request):
        raise BackupUnusable(
            f"the backup does not hold WAL segment {missing}, without which it cannot be started; nothing was written",
            hint="name the directory that holds it: --wal DIR; or leave --start out and put the WAL into pg_wal",
        )


def _configuration_warnings(request: RestoreRequest, backup: BackupFacts, host: HostFacts) -> list[str]:
    put, saved = host.put_back, host.saved_configuration
    if put is not None:
        return [f'configuration file "{path}" is not put back: it has no place in {put.root}' for path in put.left_out]
    if backup.inventory.file(MAIN_FILE) is not None or request.confined_to is not None or saved is None:
        return []
    return [
        f'the source\'s own configuration was kept in "{saved}": --configuration data puts it into the data directory, '
        f"--configuration /etc/postgresql/{backup.major_version}/NAME into that of a Debian cluster"
    ]


def _settle_hba(book: SettingsBook, rules: RoleRules, files: dict[str, bytes]) -> list[str]:
    """Make one where there is none, and comment out the lines that name files which are not here.

    A server does not start without the file, nor with such lines.
    """
    host, path = book.facts.host, os.path.join(book.layout.local, HBA_FILE)
    own = book.facts.backup.inventory.file(HBA_FILE)
    keeps_hba = host.cluster is not None or book.value("hba_file") or path in files
    if own is None and not keeps_hba:
        files[path] = _MINIMAL_HBA
        return ["the backup holds no pg_hba.conf: one that admits local users is written"]
    content = files.get(path) or own
    if host.cluster is not None or not rules.settles_hba or content is None:
        return []
    return _without_missing(path, content, book.exists, files)


def _without_missing(path: str, content: bytes, exists: Callable[[str], bool], files: dict[str, bytes]) -> list[str]:
    settled, missing = without_missing(content, path, exists, f"{NOTE}: the file is not here")
    if missing:
        files[path] = settled
    return [
        f'pg_hba.conf line {reference.first_line} names "{reference.path_from(path)}", which is not here: the line is '
        + ("made to reject all" if reference.rejects else "commented out")
        for reference in missing
    ]
