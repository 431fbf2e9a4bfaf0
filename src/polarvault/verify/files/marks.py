"""Is the backup still being made, or was it never finished? Its own mark tells, also where a manifest is there."""

from __future__ import annotations

from collections.abc import Iterator

from polarvault.backupset.unfinished import MARKER_NAME, read_marker
from polarvault.model.finding import Finding, problem
from polarvault.verify.layout import BackupLayout


def judge_marks(layout: BackupLayout) -> Iterator[Finding]:
    """Yield a problem for each directory of the backup that holds the mark."""
    for directory in dict.fromkeys(half.directory for half in layout.halves):
        try:
            said = read_marker(directory)
        except OSError:
            continue  # That the directory cannot be read is said when it is listed.
        if said is not None:
            message = f"the backup is still being made, or was cut off: {said}" if said else "it is no finished backup"
            yield problem(
                "unfinished", f"{directory}/{MARKER_NAME}", message, "files may be missing, or be cut, without a word",
                "wait for that process to end; if it is gone, use another backup",
            )  # fmt: skip
