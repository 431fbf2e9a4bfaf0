"""Which file system a directory is on, as the kernel lists it (proc(5), /proc/PID/mountinfo)."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One mounted file system. device: what the kernel calls its source; for ZFS the dataset."""

    point: str
    kind: str
    device: str
    root: str


def mounts() -> list[Mount]:
    """Return what is mounted, later ones behind those that they hide."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as stream:
        return [found for line in stream if (found := _parse(line)) is not None]


def mount_of(path: str) -> Mount:
    """Return the mount that holds a path that exists; of several on one point the last, which is the one seen."""
    real = os.path.realpath(path)
    best = Mount("/", "", "", "/")
    for one in mounts():
        if (real == one.point or real.startswith(one.point.rstrip("/") + "/")) and len(one.point) >= len(best.point):
            best = one
    return best


def mounts_below(path: str) -> list[Mount]:
    """Return what is mounted below a directory, in whatever depth."""
    inside = os.path.realpath(path).rstrip("/") + "/"
    return [one for one in mounts() if one.point.startswith(inside)]


def _parse(line: str) -> Mount | None:
    # 36 35 98:0 /root /point options shared:1 - type device superoptions
    before, found, after = line.partition(" - ")
    fields, more = before.split(" "), after.split(" ")
    if not found or len(fields) < 5 or len(more) < 2:
        return None
    return Mount(_plain(fields[4]), more[0], _plain(more[1]), _plain(fields[3]))


def _plain(text: str) -> str:
    """Undo the kernel's escapes, which stand for single bytes."""
    raw = _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)
    if raw == text:
        return text
    # The kernel escapes blanks, tabs, newlines and backslashes only, all of them ASCII.
    return raw
