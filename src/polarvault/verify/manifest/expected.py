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
    is_shared: Callable[[ManifestFile], bool],
) -> tuple[list[ManifestFile], list[ManifestFile]]:
    """Split one list into those of the local and of the shared half; local and shared hold the sizes of what is there.

    is_local, is_shared: asked where paths and sizes do not decide, whether the half's file has the entry's checksum.
    """
    real = [entry for entry in entries if is_real_path(entry.path)]
    misfits = [(_misfit(entry, local), _misfit(entry, shared)) for entry in real]
    places = _possible_places([entry.path for entry in real])
    costs = _costs(misfits)
    least = min(costs[place] for place in places)
    tied = [place for place in places if costs[place] == least]
    boundary = tied[0]
    if len(tied) > 1:
        fits_both = [
            (not is_local(real[number]), not is_shared(real[number]))
            if misfits[number] == (_FITS, _FITS)
            else (_FITS, _FITS)
            for number in range(tied[0], tied[-1])
        ]
        by_content = _costs(fits_both)
        boundary = min(tied, key=lambda place: by_content[place - tied[0]])
    return real[:boundary], real[boundary:]


def _possible_places(paths: Sequence[str]) -> range:
    """Return where the halves may meet: a path that is listed twice is once in each of them."""
    first: dict[str, int] = {}
    low, high = 0, len(paths)
    for number, path in enumerate(paths):
        if path in first:
            low, high = max(low, first[path] + 1), min(high, number)
        else:
            first[path] = number
    # Otherwise a path is listed twice in one half, which is damage and reported as that.
    return range(low, high + 1) if low <= high else range(len(paths) + 1)


def _costs(misfits: Sequence[tuple[int, int]]) -> list[int]:
    """Return for each place where the halves could meet how badly all entries would fit."""
    as_local = accumulate((local for local, _ in misfits), initial=0)
    as_shared = list(accumulate((shared for _, shared in reversed(misfits)), initial=0))[::-1]
    return [before + after for before, after in zip(as_local, as_shared, strict=True)]


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
