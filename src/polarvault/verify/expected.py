"""What the manifests say must be there, by half. Pure.

The official polar_basebackup keeps the server's manifest, which lists both halves without saying which is which, some
paths twice (facts 1.7). Its order decides: the files of the local half come first. Where the two meet is found by
what is on disk, so that files which are missing or altered do not shift it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

from polarvault.model.finding import Finding, Severity
from polarvault.pgfiles.manifest import ManifestFile

# How badly an entry fits a half: the file is there with that size, with another one, or not at all.
_FITS, _OTHER_SIZE, _ABSENT = 0, 1, 2


def is_real_path(path: str) -> bool:
    """Tell whether an entry names a file: PolarDB also lists WAL status files as ``file-dio:///...`` (facts 1.6)."""
    return "://" not in path


def split_entries(
    entries: Sequence[ManifestFile],
    local: Mapping[str, int],
    shared: Mapping[str, int],
    is_local: Callable[[ManifestFile], bool],
) -> tuple[list[ManifestFile], list[ManifestFile]]:
    """Split one list into those of the local and of the shared half; local and shared hold the sizes of what is there.

    is_local: asked where paths and sizes do not decide, whether the local file has the entry's checksum.
    """
    real = [entry for entry in entries if is_real_path(entry.path)]
    as_local = accumulate((_misfit(entry, local) for entry in real), initial=0)
    as_shared = list(accumulate((_misfit(entry, shared) for entry in reversed(real)), initial=0))[::-1]
    costs = [before + after for before, after in zip(as_local, as_shared, strict=True)]
    boundary = costs.index(min(costs))
    while boundary < len(real) and costs[boundary + 1] == costs[boundary] and is_local(real[boundary]):
        boundary += 1
    return real[:boundary], real[boundary:]


def _misfit(entry: ManifestFile, found: Mapping[str, int]) -> int:
    size = found.get(entry.path)
    if size is None:
        return _ABSENT
    return _FITS if size == entry.size else _OTHER_SIZE


def without_duplicates(
    entries: Sequence[ManifestFile], name: Callable[[str], str]
) -> tuple[dict[str, ManifestFile], list[Finding]]:
    """Return the entries by path, and a finding for each path that is listed twice."""
    by_path: dict[str, ManifestFile] = {}
    findings = []
    for entry in entries:
        if entry.path in by_path:
            findings.append(
                Finding(
                    severity=Severity.PROBLEM,
                    check="manifest-duplicate",
                    subject=name(entry.path),
                    message=f'duplicate path name in backup manifest: "{name(entry.path)}"',
                    meaning="it is not certain which of the two entries describes the file",
                    advice="if this is a PolarDB backup, name its shared half: --polardata DIR",
                )
            )
        by_path[entry.path] = entry
    return by_path, findings
