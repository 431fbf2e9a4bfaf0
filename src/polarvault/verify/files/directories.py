"""Look for the empty directories of a plain backup, which no manifest lists.

`missing-directory` is a warning: nothing is lost with them, and pg_verifybackup does not look for them either.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from polarvault.backupset.model import Area
from polarvault.backupset.skeleton import missing_directories
from polarvault.model.finding import Finding, warning
from polarvault.verify.layout import BackupLayout

_SHOWN = 8


def judge_directories(layout: BackupLayout) -> Iterator[Finding]:
    """Yield one warning that names what is missing."""
    places = {half.area: half.directory for half in layout.halves}
    if layout.is_tar or layout.missing_half is not None or Area.LOCAL not in places:
        return
    if not os.path.isfile(os.path.join(places[Area.LOCAL], "PG_VERSION")):
        # That this is no local half is said already.
        return
    missing = missing_directories(places[Area.LOCAL], places.get(Area.SHARED))
    if not missing:
        return
    shown = ", ".join(os.path.relpath(path, layout.path) for path in missing[:_SHOWN])
    more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
    count = "1 empty directory is" if len(missing) == 1 else f"{len(missing)} empty directories are"
    yield warning(
        "missing-directory",
        layout.path,
        f"{count} missing: {shown}{more}",
        "a server does not start without them; whatever copied the backup leaves empty directories out",
        "restore with: polarvault restore  (it makes them); or make them by hand: mkdir -p",
    )
