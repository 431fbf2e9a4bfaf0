"""Compare a backup that the server sent with one whose files were read from its directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# They tell of the backup itself, or are written anew by the checkpoint that it begins with.
OWN = frozenset({"backup_label", "global/pg_control"})
DATED = OWN | {"pg_logical/replorigin_checkpoint", "tablespace_map"}


def manifest_of(path: Path) -> dict[str, Any]:
    """Return a manifest's files by path, each time it is listed, without what differs between any two backups."""
    parsed = json.loads(path.read_bytes())
    files: dict[str, list[tuple[Any, ...]]] = {}
    for entry in parsed["Files"]:
        name = entry.get("Path") or bytes.fromhex(entry["Encoded-Path"]).decode("utf-8", "surrogateescape")
        own = name in OWN
        files.setdefault(name, []).append(
            (
                entry["Size"],
                None if name in DATED else entry["Last-Modified"],
                entry.get("Checksum-Algorithm"),
                None if own else entry.get("Checksum"),
                "Encoded-Path" in entry,
            )
        )
    rest = {name: value for name, value in parsed.items() if name not in ("Files", "WAL-Ranges", "Manifest-Checksum")}
    return {"files": files, "rest": rest, "ranges": [one["Timeline"] for one in parsed["WAL-Ranges"]]}


def differences(left: Path, right: Path, *, at_least: int = 500) -> dict[str, Any]:
    """Return what two manifests tell otherwise: by path, both entries."""
    one, other = manifest_of(left), manifest_of(right)
    names = sorted({*one["files"], *other["files"]})
    found = {
        name: (one["files"].get(name), other["files"].get(name))
        for name in names
        if one["files"].get(name) != other["files"].get(name)
    }
    assert len(one["files"]) >= at_least, "a cluster has more files"
    return found | {key: (one[key], other[key]) for key in ("rest", "ranges") if one[key] != other[key]}
