"""Look at a backup before anything is written: sizes, WAL, tablespaces, and the small files that decide the rest."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from polarvault.backupset.manifest_end import load_manifest_span
from polarvault.backupset.model import (
    CONTROL_NAME,
    FULL_PAGE_DIRECTORY,
    SHARED_LABEL_NAME,
    Area,
    BackupSource,
    Form,
    Inventory,
    Part,
    Tablespace,
    area_of,
)
from polarvault.backupset.tarstream import scan_tar
from polarvault.errors import BackupUnusable
from polarvault.pgfiles.backup_label import parse_tablespace_map
from polarvault.pgfiles.control import parse_control
from polarvault.pgfiles.tar import Member, MemberKind
from polarvault.storage.files import open_regular, storage_failed

# Configuration may include files of any name, so every small file outside of the database's own directories is kept.
_SMALL_BYTES = 1 << 20
_MANIFEST_BYTES = 1 << 30
# Our tar backups of PolarDB have a manifest for each half; the real tool's one lists both.
_MANIFEST_NAMES = ("backup_manifest", "backup_manifest.shared")
# The local half's own manifest names no WAL, because it holds none; what the server sent is kept beside it.
_SERVER_MANIFEST = "backup_manifest.server"
ManifestSizes = list[tuple[str, int]]
_DATABASE_DIRECTORIES = ("base", "global", "log")


@dataclass(slots=True)
class _Findings:
    files: dict[tuple[Area, str], bytes] = field(default_factory=dict)
    sizes: dict[Area, int] = field(default_factory=dict)
    tablespace_sizes: dict[int, int] = field(default_factory=dict)
    wal: dict[str, int] = field(default_factory=dict)
    names: set[tuple[Area, str]] = field(default_factory=set)
    links: dict[int, str] = field(default_factory=dict)
    modes: list[int] = field(default_factory=list)
    file_count: int = 0

    def add(self, area: Area, name: str, kind: MemberKind, size: int, *, oid: int = 0) -> None:
        """Count a member; its area is already resolved."""
        if name.startswith(FULL_PAGE_DIRECTORY + "/"):
            return
        if kind is MemberKind.FILE:
            self.file_count += 1
        if area is Area.TABLESPACE:
            self.tablespace_sizes[oid] = self.tablespace_sizes.get(oid, 0) + size
            return
        self.sizes[area] = self.sizes.get(area, 0) + size
        self.names.add((area, name))
        wal_name = name if area is Area.WAL else name.removeprefix("pg_wal/") if name.startswith("pg_wal/") else ""
        if wal_name and "/" not in wal_name and kind is MemberKind.FILE:
            self.wal[wal_name] = size


def is_wanted(area: Area, name: str, size: int) -> bool:
    """Tell whether the content of a file decides how the restore is done."""
    if name in (CONTROL_NAME, "global/polar_settings.conf") or (area is Area.SHARED and name == SHARED_LABEL_NAME):
        return True
    top, _, rest = name.partition("/")
    if name.endswith(".history"):
        # They tell which timelines the backup's WAL belongs to.
        return size <= _SMALL_BYTES and (area is Area.WAL or top == "pg_wal")
    if top == "backup_manifest" and not rest:
        return False
    if area is Area.SHARED or size > _SMALL_BYTES:
        return False
    return not rest or not (top in _DATABASE_DIRECTORIES or top.startswith(("pg_", "polar_")))


def take_inventory(source: BackupSource) -> Inventory:
    """Read what decides about a restore; large payload is skipped wherever the format allows it."""
    found = _Findings()
    manifest = load_manifest_sizes(source)
    if not source.parts_of(Area.WAL):
        # WAL that was fetched lies at the end of a tar and is in no manifest: the tars have to be read to their ends.
        manifest = None
    for part in source.parts:
        if not part.is_tar:
            _scan_tree(found, part, source.inside_local if part.area is Area.LOCAL else frozenset())
        elif part.area is Area.SHARED and part.compression is not None and manifest is not None:
            # Reading it twice would double the time of a restore. pg_control is looked at when it is unpacked.
            found.sizes[Area.SHARED] = sum(size for name, size in manifest if not name.startswith("pg_tblspc/"))
            found.file_count = len(manifest)
        else:
            _scan_tar_part(found, part, manifest)
    in_manifest = manifest is not None and any(name == CONTROL_NAME for name, _ in manifest)
    tablespaces = _tablespaces(found, source)
    control = next((found.files[key] for key in _control_keys() if key in found.files), None)
    return Inventory(
        files=found.files,
        sizes=found.sizes,
        tablespace_sizes=found.tablespace_sizes,
        wal=found.wal,
        names=frozenset(found.names),
        tablespaces=tablespaces,
        has_control=control is not None or in_manifest,
        control=parse_control(control) if control is not None else None,
        group_readable=bool(found.modes) and all(mode & 0o777 == 0o750 for mode in found.modes),
        file_count=found.file_count,
        spans=tuple(
            span
            for path in _manifest_paths(source, (*_MANIFEST_NAMES, _SERVER_MANIFEST))
            if (span := load_manifest_span(path)) is not None
        ),
    )


def _manifest_paths(source: BackupSource, names: tuple[str, ...] = _MANIFEST_NAMES) -> list[str]:
    if source.form is Form.TAR_FILE:
        return []
    directories = dict.fromkeys(os.path.dirname(part.path) if part.is_tar else part.path for part in source.parts)
    return [os.path.join(directory, name) for directory in directories for name in names]


def _control_keys() -> list[tuple[Area, str]]:
    return [(Area.SHARED, CONTROL_NAME), (Area.LOCAL, CONTROL_NAME)]


def _scan_tree(found: _Findings, part: Part, skip: frozenset[str]) -> None:
    found.sizes.setdefault(part.area, 0)
    found.modes.append(os.stat(part.path).st_mode)
    for name, entry_path, status, kind in walk_tree(part.path, skip=skip):
        # Holes stay holes, so what a file occupies is what its copy needs.
        size = min(status.st_size, status.st_blocks * 512) if kind is MemberKind.FILE else 0
        found.add(part.area, name, kind, size)
        if name.startswith("pg_wal/") and kind is MemberKind.FILE and "/" not in name[7:]:
            found.wal[name[7:]] = status.st_size
        if kind is MemberKind.SYMLINK and name.startswith("pg_tblspc/") and part.area is Area.LOCAL:
            found.links[int(name[10:])] = os.path.realpath(entry_path)
        if kind is MemberKind.FILE and is_wanted(part.area, name, status.st_size):
            found.files[part.area, name] = _read(entry_path)


def walk_tree(
    root: str, *, skip: frozenset[str] = frozenset()
) -> Iterator[tuple[str, str, os.stat_result, MemberKind]]:
    """Yield name, path, status and kind of everything below root, parents first; nothing of the names in skip.

    pg_wal may be a link to another disk, and files may be links: both are followed, because the restored copy must
    not share anything with the backup. Links in pg_tblspc are reported as links; other links to directories too.
    """
    pending = [""]
    while pending:
        prefix = pending.pop()
        try:
            entries = sorted(os.scandir(os.path.join(root, prefix)), key=lambda entry: entry.name)
        except OSError as problem:
            raise storage_failed(problem, "read directory", os.path.join(root, prefix)) from problem
        for entry in entries:
            name = prefix + entry.name
            if name in skip:
                continue
            try:
                is_link, is_directory, status = entry.is_symlink(), entry.is_dir(), entry.stat()
            except OSError as problem:
                raise storage_failed(problem, "read", entry.path) from problem
            if is_link and (prefix == "pg_tblspc/" or (is_directory and name != "pg_wal")):
                yield name, entry.path, status, MemberKind.SYMLINK
            elif is_directory:
                yield name, entry.path, status, MemberKind.DIRECTORY
                pending.append(name + "/")
            elif entry.is_file():
                yield name, entry.path, status, MemberKind.FILE


def _scan_tar_part(found: _Findings, part: Part, manifest: ManifestSizes | None) -> None:
    if part.area is not Area.TABLESPACE:
        found.sizes.setdefault(part.area, 0)

    def wants(member: Member) -> bool:
        return member.kind is MemberKind.FILE and is_wanted(*area_of(part.area, member.name), member.size)

    # A compressed tar has to be decompressed to be listed; the manifest, if there is one, says the rest.
    outstanding = _wanted_names(part, manifest) if part.compression is not None else None
    for member, content in scan_tar(part, wants):
        area, name = area_of(part.area, member.name)
        if not name:
            continue
        found.add(area, name, member.kind, member.size, oid=part.tablespace_oid)
        if content is not None:
            found.files[area, name] = content
        if member.kind is MemberKind.DIRECTORY and name == "base":
            found.modes.append(member.mode)
        if member.kind is MemberKind.SYMLINK and name.startswith("pg_tblspc/") and name[10:].isdigit():
            found.links[int(name[10:])] = member.link
        if outstanding is not None:
            outstanding.discard(name)
            if not outstanding and manifest is not None:
                _finish_from_manifest(found, area, manifest)
                return


def _wanted_names(part: Part, manifest: ManifestSizes | None) -> set[str] | None:
    """Return the names after which a compressed base.tar need not be read further, or None: read it all."""
    if manifest is None or part.area is not Area.LOCAL:
        return None
    names = {name for name, size in manifest if name != CONTROL_NAME and is_wanted(part.area, name, size)}
    # The tablespace map comes right after the label, before PG_VERSION, and is not always there.
    return names | {"backup_label", "PG_VERSION"} if "PG_VERSION" in names else None


def _finish_from_manifest(found: _Findings, area: Area, manifest: ManifestSizes) -> None:
    found.sizes[area] = sum(size for name, size in manifest if not name.startswith("pg_tblspc/"))
    found.names |= {(area, name) for name, _ in manifest}
    found.file_count = max(found.file_count, len(manifest))
    found.modes = found.modes or [0o700]


def load_manifest_sizes(source: BackupSource) -> ManifestSizes | None:
    """Return path and size of everything in the manifests beside the tar files; None when they do not help.

    A stock PolarDB manifest lists both halves, and some paths twice. Whether a manifest is right is verifybackup's
    question: here it saves reading compressed tars twice.
    """
    if source.form is not Form.TAR_DIRECTORY:
        return None
    entries: ManifestSizes = []
    for path in _manifest_paths(source):
        try:
            if os.path.getsize(path) <= _MANIFEST_BYTES:
                with open_regular(path) as stream:
                    files = json.loads(stream.read(_MANIFEST_BYTES))["Files"]
                named = [(entry["Path"], int(entry["Size"])) for entry in files if "Path" in entry]
                entries += [(name, size) for name, size in named if not name.startswith(FULL_PAGE_DIRECTORY + "/")]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            continue
    return entries if any(name == CONTROL_NAME for name, _ in entries) else None


def _tablespaces(found: _Findings, source: BackupSource) -> tuple[Tablespace, ...]:
    mapped = parse_tablespace_map(found.files.get((Area.LOCAL, "tablespace_map"), b""))
    if source.form is Form.PLAIN:
        for oid in mapped.keys() - found.links.keys():
            raise BackupUnusable(
                f'tablespace {oid} ("{mapped[oid]}") is named in tablespace_map, but pg_tblspc/{oid} is not there',
                hint=f"unpack {oid}.tar and make pg_tblspc/{oid} a link to it, or restore the tar files themselves",
            )
        spaces = []
        for oid, copy in sorted(found.links.items()):
            _scan_tablespace(found, oid, copy)
            spaces.append(Tablespace(oid, copy, copy))
        return tuple(spaces)
    located = found.links | mapped
    for oid in sorted({part.tablespace_oid for part in source.parts_of(Area.TABLESPACE)} ^ located.keys()):
        raise BackupUnusable(
            f"tablespace {oid} has no {oid}.tar" if oid in located else f"{oid}.tar is in no tablespace_map",
            hint="the backup is incomplete; restore another one",
        )
    return tuple(Tablespace(oid, location, None) for oid, location in sorted(located.items()))


def _scan_tablespace(found: _Findings, oid: int, copy: str) -> None:
    if not os.path.isdir(copy):
        raise BackupUnusable(
            f'tablespace {oid} is missing: pg_tblspc/{oid} points to "{copy}", which is no directory',
            hint="put the tablespace's copy back, or use another backup",
        )
    for name, _, status, kind in walk_tree(copy):
        size = min(status.st_size, status.st_blocks * 512) if kind is MemberKind.FILE else 0
        found.add(Area.TABLESPACE, name, kind, size, oid=oid)


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as stream:
            return stream.read()
    except OSError as problem:
        raise storage_failed(problem, "read", path) from problem
