"""Judge the small files of a backup: whether a half is missing, and what `facts.judge` finds."""

from __future__ import annotations

from collections.abc import Sequence

from polarvault.backupset.model import Area
from polarvault.model.finding import Finding, problem
from polarvault.verify.facts.backup import BackupFacts
from polarvault.verify.facts.judge import judge_facts
from polarvault.verify.files.contents import Contents
from polarvault.verify.files.trees import IgnoreRules
from polarvault.verify.layout import BackupLayout
from polarvault.verify.manifest.manifests import Manifests
from polarvault.verify.small_files import SmallFiles

# Findings about a small file that is not there.
_NOT_THERE = ("version", "label-missing", "control-missing")


class FactChecks:
    """What is judged from names and small files alone."""

    def __init__(
        self,
        layout: BackupLayout,
        manifests: Manifests,
        contents: Sequence[Contents],
        ignored: IgnoreRules,
        small: SmallFiles,
    ) -> None:
        self._layout = layout
        self._manifests = manifests
        self._contents = contents
        self._ignored = ignored
        self._small = small

    def findings(self) -> list[Finding]:
        """Judge pg_control, backup_label and the tablespaces."""
        layout, local, data = self._layout, self._contents[0], self._contents[-1]
        findings = []
        if layout.missing_half is not None:
            findings.append(
                problem(
                    "shared-half-missing", layout.missing_half,
                    f'the shared half of the backup is not at "{layout.missing_half}"',
                    "this is the local half alone: it holds no data and does not start",
                    "name the place of the other half: --polardata DIR",
                )
            )  # fmt: skip
        if local.half.area is Area.SHARED:
            findings.append(
                problem(
                    "local-half-missing", layout.path,
                    "this is the shared half of a PolarDB backup, without the local one",
                    "it has no backup_label and no configuration, and does not start",
                    f"verify both: polarvault verifybackup LOCAL --polardata {layout.path}",
                )
            )  # fmt: skip
        tars = [part for half in layout.halves for part in half.tars if part.area is Area.TABLESPACE]
        facts = BackupFacts(
            control=self._small.control_bytes,
            control_path=data.half.name("global/pg_control"),
            label=self._small.label_bytes,
            label_path=local.half.name("backup_label"),
            version=self._small.version_bytes,
            manifest_system_identifier=self._manifests.system_identifier,
            wal_ranges=self._manifests.wal_ranges,
            tablespace_map=self._small.tablespace_map,
            tablespace_links=data.links,
            tablespace_tars=frozenset(part.tablespace_oid for part in tars),
            is_tar=layout.is_tar,
            is_polardb=layout.is_polardb,
            expects_label=local.half.area is Area.LOCAL,
        )
        without = ("version", "label-missing") if local.half.area is Area.SHARED else ()
        return findings + [
            finding
            for finding in judge_facts(facts)
            if finding.check not in without
            and not self._is_ignored(finding.subject)
            and not (finding.check in _NOT_THERE and self._could_not_be_read(finding.subject))
        ]

    def _could_not_be_read(self, subject: str) -> bool:
        """Tell whether it was said why a small file could not be read: then it is not one that is not there."""
        for found in self._contents:
            path = subject.removeprefix(found.half.title)
            if subject == found.half.name(path) and found.is_refused(path):
                return True
        return False

    def _is_ignored(self, subject: str) -> bool:
        """Tell whether a finding is about a file that the user wants to be left out."""
        for half in reversed(self._layout.halves):
            if subject.startswith(half.title):
                return self._ignored.covers(subject.removeprefix(half.title))
        return False
