"""Compare what is laid out with the manifest while it passes: every content once, and what a tar holds by name."""

from __future__ import annotations

import threading

from polarvault.backupset.listing import Disagreement, Key, is_compared
from polarvault.backupset.model import Area
from polarvault.pgfiles.digest import Digest, new_digest
from polarvault.restore.model import RestorePlan
from polarvault.restore.plan.integrity import disagrees


class ContentChecks:
    """What the manifest says of the plan's backup; used by several threads.

    The first content that is wrong raises IntegrityError, or is kept if the request accepts it: see `disagreements`.
    """

    def __init__(self, plan: RestorePlan) -> None:
        self._plan = plan
        self._request = plan.request
        listing = plan.inventory.listing
        self._listing = listing if listing is not None and listing.is_known else None
        self._lock = threading.Lock()
        self._seen: dict[Key, int] = {}
        self.disagreements: list[Disagreement] = list(plan.disagreements)

    def digest(self, key: Key) -> Digest | None:
        """Return what has to see the content of a file; None: it is not compared."""
        if self._listing is None or not self._request.verify_checksums or not is_compared(key[1]):
            return None
        entries = self._listing.of(key)
        return new_digest(entries[0].algorithm) if entries else None

    def note_member(self, key: Key, size: int) -> None:
        """Take down what a tar holds; the last of one name counts."""
        if is_compared(key[1]):
            with self._lock:
                self._seen[key] = size

    def judge(self, key: Key, size: int, digest: Digest) -> None:
        """Compare a file that was read to its end; raise IntegrityError if it is wrong."""
        if self._listing is not None:
            self._take(self._listing.judge_content(key, size, digest.hexdigest()))

    def finish(self) -> None:
        """Compare the names and sizes of tars that could not be listed before; raise IntegrityError if one is wrong."""
        inventory = self._plan.inventory
        if self._listing is None or inventory.is_whole:
            return
        halves = frozenset({Area.LOCAL} | ({Area.SHARED} if Area.SHARED in inventory.sizes else set()))
        found = list(self._listing.compare({**inventory.lengths, **self._seen}, halves=halves))
        wrong = [one for one in found if not one.is_setting]
        if wrong and not self._accepts_all:
            raise disagrees(self._plan.source, wrong, undone=True)
        self.disagreements += found

    @property
    def _accepts_all(self) -> bool:
        return self._request.force or self._request.reports_damage

    def _take(self, found: Disagreement | None) -> None:
        if found is None:
            return
        if not (self._accepts_all or found.is_setting):
            raise disagrees(self._plan.source, [found], undone=True)
        with self._lock:
            # Its size was found to be wrong before anything was written.
            if all((one.area, one.path) != (found.area, found.path) for one in self.disagreements):
                self.disagreements.append(found)
