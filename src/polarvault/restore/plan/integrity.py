"""Does the backup hold what its manifest says? Decided before anything is written, as far as a listing can tell.

A server does not notice that a table's file is gone, or its end: it starts, and the loss shows when somebody reads the
table. So a backup that disagrees with its manifest is not restored, unless the user takes it as it is (--force).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from polarvault.backupset.backup import Backup, verify_command
from polarvault.backupset.listing import Disagreement, Fault
from polarvault.backupset.model import Area, Inventory
from polarvault.errors import IntegrityError
from polarvault.restore.model import RestoreRequest

# A damaged disk can lack thousands; these tell enough.
SHOWN_FILES = 20


def find_disagreements(source: Backup, inventory: Inventory, *, local_only: bool = False) -> list[Disagreement]:
    """Compare names and sizes; empty where there is nothing to compare. local_only: the shared half is not wanted."""
    listing = inventory.listing
    if listing is None or not listing.is_known or not inventory.is_whole:
        return []
    if local_only and listing.of_both:
        return []
    halves = {Area.LOCAL} | ({Area.SHARED} if Area.SHARED in inventory.sizes and not local_only else set())
    return sorted(
        listing.compare(inventory.lengths, halves=frozenset(halves)), key=lambda one: (one.fault.name, one.path)
    )


def check_integrity(
    request: RestoreRequest, source: Backup, inventory: Inventory, *, local_only: bool = False
) -> tuple[tuple[Disagreement, ...], list[str]]:
    """Return what disagrees, if that is accepted, and warnings; raise IntegrityError if it is not."""
    listing = inventory.listing
    if listing is None:
        return (), []
    warnings = []
    if listing.damage is not None:
        if not (request.force or request.reports_damage):
            raise IntegrityError(
                f'the manifest of "{source.path}" is damaged, so that nothing in the backup can be relied on: '
                f"{listing.damage}",
                hint="find a good copy of backup_manifest, or use another backup; or restore what is there: --force",
            )
        warnings.append(f"the manifest is damaged ({listing.damage}): nobody can tell whether the backup is whole")
    elif not listing.entries:
        warnings.append(
            "the backup has no backup_manifest: nobody can tell whether all of its files are there and undamaged"
        )
    else:
        warnings += _what_is_not_compared(request, listing.has_checksums, listing.missing_halves)
        _check_identity(source, inventory)
    found = tuple(find_disagreements(source, inventory, local_only=local_only))
    return found, warnings + judge(request, source, found)


def _what_is_not_compared(request: RestoreRequest, has_checksums: bool, missing: Sequence[Area]) -> list[str]:
    warnings = []
    if Area.SHARED in missing:
        warnings.append("the shared half has no backup_manifest: nobody can tell whether it is whole")
    if not has_checksums and request.verify_checksums:
        warnings.append("the manifest was made without checksums: names and sizes of files are compared, not contents")
    return warnings


def judge(request: RestoreRequest, source: Backup, found: Sequence[Disagreement]) -> list[str]:
    """Return warnings for what is accepted; raise IntegrityError for the rest."""
    wrong = [one for one in found if not one.is_setting]
    if wrong and not (request.force or request.reports_damage):
        raise disagrees(source, wrong)
    accepted = list(found) if not request.reports_damage else [one for one in found if one.is_setting]
    warnings = [f"not as the manifest says: {one}" for one in accepted[:SHOWN_FILES]]
    if len(accepted) > SHOWN_FILES:
        warnings.append(f"not as the manifest says: {len(accepted) - SHOWN_FILES} more files")
    return warnings


def disagrees(source: Backup, wrong: Sequence[Disagreement], *, undone: bool = False) -> IntegrityError:
    """Return the error for a backup that is not what its manifest says; undone: something was written and removed."""
    counts = [(fault, sum(one.fault is fault for one in wrong)) for fault in Fault]
    words = ", ".join(f"{count} file{'s' * (count > 1)} {_plural(fault, count)}" for fault, count in counts if count)
    outcome = "what was restored so far has been removed" if undone else "nothing was written"
    shown = [str(one) for one in wrong[:SHOWN_FILES]]
    if len(wrong) > SHOWN_FILES:
        shown.append(f"and {len(wrong) - SHOWN_FILES} more")
    first = f": {wrong[0]}" if len(wrong) == 1 else ""
    return IntegrityError(
        f'"{source.path}" does not agree with its manifest: {words}{first}; {outcome}',
        detail="\n  ".join(["file by file:", *shown]) if len(wrong) > 1 else None,
        hint=f"restore another backup; see all that is wrong: {verify_command(source.path)}; "
        + (_about_extra(wrong) or "or restore it as it is: --force"),
    )


def _plural(fault: Fault, count: int) -> str:
    if count == 1:
        return fault.value
    words = {"is": "are", "has": "have"}
    verb, _, rest = fault.value.partition(" ")
    return f"{words[verb]} {rest}"


def _about_extra(wrong: Iterable[Disagreement]) -> str | None:
    if all(one.fault is Fault.EXTRA for one in wrong):
        return "if these files do not belong to the backup, move them out of it, or restore them with it: --force"
    return None


def _check_identity(source: Backup, inventory: Inventory) -> None:
    listing, control = inventory.listing, inventory.control
    if listing is None or control is None or listing.system_identifier is None:
        return
    if listing.system_identifier != control.system_identifier:
        raise IntegrityError(
            f'the manifest of "{source.path}" is of another cluster: it names system identifier '
            f"{listing.system_identifier}, pg_control {control.system_identifier}",
            hint="find the manifest that was written with this backup, or use another backup",
        )
