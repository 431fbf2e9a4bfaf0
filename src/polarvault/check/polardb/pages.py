"""Torn pages on PolarDB, whose sample configuration switches full_page_writes off."""

from __future__ import annotations

from dataclasses import dataclass

from polarvault.check.session import CheckSession
from polarvault.check.verdict import setting_change
from polarvault.model.finding import Finding, ok, warning
from polarvault.polardb.settings import LOCALFS_MODE, is_true


@dataclass(frozen=True, slots=True, kw_only=True)
class TornPageFacts:
    """The settings; None is unknown. on_pfs: the storage writes 8 kB at once; an ordinary file system need not."""

    full_page_writes: str | None
    data_checksums: str | None
    has_partial_write: str | None
    on_pfs: bool


def check_torn_pages(session: CheckSession, *, shared: bool) -> list[Finding]:
    """Return the findings about torn pages; none on a standby, where the primary's setting counts."""
    if session.in_recovery:
        return []
    return judge_torn_pages(
        TornPageFacts(
            full_page_writes=session.setting("full_page_writes"),
            data_checksums=session.setting("data_checksums"),
            # Only adds to a message: not worth a complaint when it is not told to this role.
            has_partial_write=session.value("SELECT pg_catalog.current_setting('polar_has_partial_write', true)"),
            on_pfs=shared and not is_true(session.setting(LOCALFS_MODE)),
        )
    )


def judge_torn_pages(facts: TornPageFacts) -> list[Finding]:
    """Return the finding about torn pages.

    With full_page_writes off PolarDB does not force full pages during a backup either, as PostgreSQL would: safety
    rests on reads of 8 kB that never see half a write (facts 5.4).
    """
    check, subject = "polardb-torn-pages", "full_page_writes"
    if facts.full_page_writes is None:
        return []
    if facts.full_page_writes != "off":
        return [
            ok(check, subject, "full_page_writes is on: pages torn by a crash or by the backup are mended from WAL")
        ]
    partial = f", polar_has_partial_write is {facts.has_partial_write}" if facts.has_partial_write else ""
    advice = (
        f"{setting_change('full_page_writes', 'on', restart=False)}\n"
        "from then on a read-only node that was stopped with its slot kept holds backups up: see polardb-replicas"
    )
    if facts.data_checksums == "off":
        return [
            warning(
                check,
                subject,
                f"full_page_writes and data_checksums are both off{partial}",
                meaning="PolarDB does not force full pages during a backup: a torn page would go into it unnoticed",
                advice=f"{advice}\nand at the next stop of the server: pg_checksums --enable",
            )
        ]
    if facts.on_pfs:
        return [
            ok(check, subject, f"full_page_writes is off{partial}, on PFS; a backup checks every page as it passes")
        ]
    return [
        warning(
            check,
            subject,
            f"full_page_writes is off{partial}, on an ordinary file system, which can tear pages",
            meaning="a backup checks every page as it passes, so that a torn one is found; but a crash of the machine "
            "can leave torn pages that WAL does not mend, and standbys of this server refuse to be backed up; "
            "polarvault restore switches it on in what it restores",
            advice=advice,
        )
    ]
