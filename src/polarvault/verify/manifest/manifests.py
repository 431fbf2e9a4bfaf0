"""Read the manifests of a backup, and find out which half each of their entries belongs to."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from polarvault.backupset.model import Area
from polarvault.model import limits
from polarvault.model.finding import Finding, problem
from polarvault.pgfiles.manifest import Manifest, ManifestFile, read_damaged_manifest
from polarvault.storage.below import Below
from polarvault.storage.files import open_regular
from polarvault.verify.facts.backup import WalRange
from polarvault.verify.files.contents import SETTINGS, Contents, Report
from polarvault.verify.files.reading import FileTask, read_in_this_thread
from polarvault.verify.layout import MANIFEST, SHARED_MANIFEST, BackupLayout, Half
from polarvault.verify.manifest.expected import split_entries, without_duplicates

_CONTROL = "global/pg_control"
_VERSION_BYTES = 16


@dataclass(frozen=True, slots=True)
class Expected:
    """What must be in a half, by path; is_known: False when there is no manifest to say so."""

    entries: Mapping[str, ManifestFile] = field(default_factory=dict)
    is_known: bool = False


@dataclass(frozen=True, slots=True)
class Manifests:
    """The manifests of the halves, in their order; None: there is none that can be read."""

    of_halves: Sequence[Manifest | None]
    lists_both: bool

    @property
    def wal_ranges(self) -> tuple[WalRange, ...]:
        """The WAL that the backup needs."""
        ranges = next((manifest.wal_ranges for manifest in self.of_halves if manifest and manifest.wal_ranges), [])
        return tuple(WalRange(entry.timeline_id, entry.start, entry.end) for entry in ranges)

    @property
    def system_identifier(self) -> int | None:
        """The cluster that the backup is of, since PostgreSQL 17."""
        named = (found.system_identifier for found in self.of_halves if found)
        return next((identifier for identifier in named if identifier is not None), None)

    @property
    def algorithm(self) -> str | None:
        """The algorithm of the checksums; a server uses one for all files."""
        files = (entry for found in self.of_halves if found for entry in found.files)
        return next((entry.algorithm for entry in files if entry.algorithm), None)

    def assign(self, contents: Sequence[Contents], report: Report) -> list[Expected]:
        """Return what must be in each half, and report paths that are listed twice."""
        if self.lists_both and self.of_halves[0] is not None:
            split = _split(self.of_halves[0].files, contents)
        else:
            split = [[] if found is None else found.files for found in self.of_halves]
        expected = []
        for found, entries, manifest in zip(contents, split, self.of_halves, strict=True):
            by_path, findings = without_duplicates(entries, found.half.name)
            for finding in findings:
                report(finding)
            expected.append(Expected(by_path, self.lists_both or manifest is not None))
        return expected


def _split(files: Sequence[ManifestFile], contents: Sequence[Contents]) -> list[list[ManifestFile]]:
    """Split the list of both halves; where the shared half is missing, return what belongs to the other one."""
    # Left out of what is listed, but of use here: it is in the local half, often as the last file.
    local = contents[0].sizes | {entry.path: entry.size for entry in files if entry.path == SETTINGS}
    shared = contents[1].sizes if len(contents) > 1 else {}
    halves = split_entries(
        files, local, shared, lambda entry: _is_in(contents[0], entry), lambda entry: _is_in(contents[-1], entry)
    )
    return list(halves[: len(contents)])


def read_manifests(layout: BackupLayout, report: Report) -> Manifests:
    """Read the manifest of each half; what is wrong with one is reported, and what can be read of it is used."""
    first = _read(layout.halves[0], _major(layout), report)
    lists_both = first is not None and any(entry.path == _CONTROL for entry in first.files)
    if len(layout.halves) == 1:
        return Manifests([first], lists_both=lists_both and layout.missing_half is not None)
    shared = layout.halves[1]
    if shared.manifest_path is not None:
        return Manifests([first, _read(shared, _major(layout), report)], lists_both=False)
    if first is not None and not lists_both:
        name = SHARED_MANIFEST if shared.directory == layout.halves[0].directory else MANIFEST
        report(
            _problem(
                shared.title + "backup_manifest",
                f'could not open file "{os.path.join(shared.directory, name)}": No such file or directory',
                "nothing says what the shared half must hold; its pages, pg_control and WAL are checked all the same",
                "find the manifest that was written with this half, or use another backup",
            )
        )
    return Manifests([first, None], lists_both=lists_both)


def manifests_of_tar(
    contents: Sequence[Contents], manifests: Mapping[Area, bytes], given: Half | None, report: Report
) -> Manifests:
    """Return the manifests that one tar holds itself; given: where -m says that the local half's is instead."""
    found: list[Manifest | None] = []
    for one in contents:
        half, content = one.half, manifests.get(one.half.area)
        if given is not None and half.area is Area.LOCAL:
            found.append(_read(given, None, report))
        elif content is None:
            meaning, advice = "nothing says which files the backup must hold", "name it, if it lies elsewhere: -m PATH"
            message = "the tar holds no backup_manifest"
            report(_problem(half.name(MANIFEST), message, meaning, advice))
            found.append(None)
        else:
            found.append(_parsed(content, half, None, report))
    return Manifests(found, lists_both=False)


def _major(layout: BackupLayout) -> int | None:
    """Return the version of a plain backup: which manifests are right depends on it. A tar's is not known yet."""
    if layout.is_tar:
        return None
    try:
        with Below(layout.halves[0].directory) as directory:
            text = directory.read("PG_VERSION", _VERSION_BYTES).strip()
    except OSError:
        return None  # What is wrong with it is said with the other small files.
    return int(text) if text.isdigit() else None


def _read(half: Half, major: int | None, report: Report) -> Manifest | None:
    assert half.manifest_path is not None
    path = half.manifest_path
    try:
        with open_regular(path) as source:
            if os.fstat(source.fileno()).st_size > limits.PARSED_MANIFEST_BYTES:
                raise OSError(errno.EFBIG, f"it is longer than {limits.PARSED_MANIFEST_BYTES} bytes")
            content = source.read()
    except OSError as problem:
        meaning, advice = "nothing says which files the backup must hold", "name it, if it lies elsewhere: -m PATH"
        if os.path.exists(path + ".tmp"):
            meaning = "there is only backup_manifest.tmp: the backup was interrupted, or bad pages were found"
            advice = "use another backup"
        message = f'could not open file "{path}": {problem.strerror}'
        report(_problem(half.name("backup_manifest"), message, meaning, advice))
        return None
    return _parsed(content, half, major, report)


def _parsed(content: bytes, half: Half, major: int | None, report: Report) -> Manifest | None:
    manifest, damage = read_damaged_manifest(content, major=major)
    if damage is not None:
        advice = "find an undamaged copy and name it: -m PATH; what is reported beside this may be due to the damage"
        meaning = "what the manifest says cannot be relied on"
        report(_problem(half.name("backup_manifest"), damage.message, meaning, advice))
    return manifest


def _is_in(found: Contents, entry: ManifestFile) -> bool:
    """Tell whether the file of that path in a half has the entry's checksum."""
    if entry.algorithm is None or found.sizes.get(entry.path) != entry.size:
        return False
    if entry.path in found.readings:
        return found.readings[entry.path].checksum == entry.checksum
    place = found.place_of(entry.path)
    if place is None:
        return False
    task = FileTask(entry.path, place.path, entry.size, place.offset, entry.algorithm, open_file=place.open)
    return read_in_this_thread(task).checksum == entry.checksum


def _problem(subject: str, message: str, meaning: str, advice: str) -> Finding:
    return problem("manifest", subject, message, meaning, advice)
