"""Whether pages can tear or rot unnoticed: full_page_writes and data checksums."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from polarvault.check.session import CheckSession
from polarvault.check.verdict import setting_change
from polarvault.model.finding import Finding, ok, warning


@dataclass(frozen=True, slots=True, kw_only=True)
class PageFacts:
    """Both settings; None is unknown. judges_torn_pages is false on PolarDB, which has findings of its own for that."""

    full_page_writes: str | None
    data_checksums: str | None
    data_directory: str | None
    judges_torn_pages: bool


def check_pages(session: CheckSession) -> list[Finding]:
    """Return the findings about pages."""
    checksums = session.setting("data_checksums")
    return judge_pages(
        PageFacts(
            full_page_writes=session.setting("full_page_writes"),
            data_checksums=checksums,
            data_directory=session.setting("data_directory") if checksums == "off" else None,
            # On a standby the setting is its own, which matters only after promotion: node.py asks for the primary's.
            judges_torn_pages=not session.is_polardb and not session.in_recovery,
        )
    )


def judge_pages(facts: PageFacts) -> list[Finding]:
    """Return the findings about pages."""
    findings = []
    if facts.judges_torn_pages and facts.full_page_writes == "off":
        findings.append(
            warning(
                "full-page-writes",
                "full_page_writes",
                "full_page_writes is off",
                meaning="PostgreSQL forces them on while a backup of the primary runs, so that one is whole; but a "
                "crash can leave torn pages, which the next backup copies, and standbys refuse to be backed up",
                advice=setting_change("full_page_writes", "on", restart=False),
            )
        )
    elif facts.judges_torn_pages and facts.full_page_writes:
        findings.append(ok("full-page-writes", "full_page_writes", f"full_page_writes is {facts.full_page_writes}"))
    if facts.data_checksums == "off":
        findings.append(
            warning(
                "data-checksums",
                "data_checksums",
                "data checksums are off",
                meaning="damage on the disk goes into every backup unnoticed: neither the backup nor verifybackup can "
                "tell a rotten page from a sound one",
                advice="at the next stop of the server (it takes as long as reading all data):\n"
                f"pg_checksums --enable -D {shlex.quote(facts.data_directory or 'DATA_DIRECTORY')}",
            )
        )
    elif facts.data_checksums:
        findings.append(ok("data-checksums", "data_checksums", f"data checksums are {facts.data_checksums}"))
    return findings
