"""Look at a backup before anything is written: sizes, WAL, tablespaces, and the small files that decide the rest."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from polarvault.backupset.listing import (
    MANIFEST,
    SHARED_MANIFEST,
    Key,
    Listing,
    is_compared,
    key_of,
    listed_sizes,
    load_listing,
    parse_listing,
)
from polarvault.backupset.manifest_end import load_manifest_span, parse_manifest_span
from polarvault.backupset.model import (
    CONTROL_NAME,
    FULL_PAGE_DIRECTORY,
    SHARED_LABEL_NAME,
    Area,
    BackupSource,
    Form,
    Inventory,
    ManifestSpan,
    Part,
    Tablespace,
    area_of,
)
from polarvault.backupset.reading.plain_tree import PlainTree
from polarvault.backupset.reading.tarstream import scan_tar
from polarvault.errors import BackupUnusable
from polarvault.model import limits, versions
from polarvault.pgfiles.backup_label import parse_tablespace_map
from polarvault.pgfiles.control import parse_known_control
from polarvault.pgfiles.tar import Member, MemberKind
from polarvault.storage.identity import rights_to_read

# Configuration may include files of any name, so every small file outside of the database's own directories is kept.
_SMALL_BYTES = 1 << 20
# Our tar backups of PolarDB have a manifest for each half; the real tool's one lists both.
_MANIFEST_NAMES = (MANIFEST, SHARED_MANIFEST)
# The local half's own manifest names no WAL, because it holds none; what the server sent is kept beside it.
_SERVER_MANIFEST = "backup_manifest.server"
_DATABASE_DIRECTORIES = ("base", "global", "log")
ManifestSizes = list[tuple[str, int]]
_OF_TABLESPACE = re.compile(r"pg_tblspc/[0-9]+/")


@dataclass(slots=True)
class _Findings:
    files: dict[tuple[Area, str], bytes] = field(default_factory=dict)
    sizes: dict[Area, int] = field(default_factory=dict)
    tablespace_sizes: dict[int, int] = field(default_factory=dict)
    wal: dict[str, int] = field(default_factory=dict)
    names: set[tuple[Area, str]] = field(default_factory=set)
    links: dict[int, str] = field(default_factory=dict)
    dangling: dict[int, str] = field(default_factory=dict)
    lengths: dict[Key, int] = field(default_factory=dict)
    manifests: dict[Area, bytes] = field(default_factory=dict)
    is_whole: bool = True
    modes: list[int] = field(default_factory=list)
    file_count: int = 0

    def add(self, area: Area, name: str, kind: MemberKind, size: int, *, oid: int = 0, length: int) -> None:
        """Count a member; its area is already resolved. size: what it occupies; length: with its holes."""
        if kind is MemberKind.FILE:
            key = key_of(area, name, oid)
            if area is not Area.WAL and is_compared(key[1]):
                self.lengths[key] = length
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
    listing = load_listing(source)
    # WAL that was fetched lies at the end of a tar and is in no manifest: the tars have to be read to their ends.
    helps = source.form is Form.TAR_DIRECTORY and listing.is_known and bool(source.parts_of(Area.WAL))
    manifest = listed_sizes(listing) if helps else None
    in_manifest = manifest is not None and any(name == CONTROL_NAME for name, _ in manifest)
    if not in_manifest:
        manifest = None
    for part in source.parts:
        if not part.is_tar:
            _scan_tree(found, part, source.inside_local if part.area is Area.LOCAL else frozenset())
        elif part.area is Area.SHARED and part.compression is not None and manifest is not None:
            # Reading it twice would double the time of a restore. pg_control is looked at when it is unpacked.
            found.sizes[Area.SHARED] = sum(size for name, size in manifest if not name.startswith("pg_tblspc/"))
            found.file_count = len(manifest)
            found.is_whole = False
        else:
            _scan_tar_part(found, part, manifest, is_alone=source.form is Form.TAR_FILE)
    if source.form is Form.TAR_FILE:
        listing = parse_listing(found.manifests, frozenset(found.sizes) & {Area.LOCAL, Area.SHARED})
    elif source.form is Form.TAR_DIRECTORY:
        _add_files_beside(found, source, listing)
    tablespaces, unlisted = _tablespaces(found, source, listing)
    control = next((found.files[key] for key in _control_keys() if key in found.files), None)
    major = parse_major_version(found.files.get((Area.LOCAL, "PG_VERSION")))
    known = parse_known_control(control, major) if control is not None else None
    return Inventory(
        files=found.files,
        sizes=found.sizes,
        tablespace_sizes=found.tablespace_sizes,
        wal=found.wal,
        names=frozenset(found.names),
        tablespaces=tablespaces,
        has_control=control is not None or in_manifest,
        control=known,
        is_newer=(major is not None and versions.is_newer(major)) or (control is not None and known is None),
        group_readable=bool(found.modes) and all(mode & 0o777 == 0o750 for mode in found.modes),
        file_count=found.file_count,
        spans=tuple(_spans(source, found)),
        listing=listing,
        lengths=found.lengths,
        is_whole=found.is_whole,
        unlisted_tablespaces=unlisted,
    )


def _spans(source: BackupSource, found: _Findings) -> Iterator[ManifestSpan]:
    for path in _manifest_paths(source, (*_MANIFEST_NAMES, _SERVER_MANIFEST)):
        if (span := load_manifest_span(path)) is not None:
            yield span
    for content in found.manifests.values():
        if (span := parse_manifest_span(content, f"{source.path}:{MANIFEST}")) is not None:
            yield span


def parse_major_version(content: bytes | None) -> int | None:
    """Return what PG_VERSION says; None when it says nothing."""
    text = (content or b"").decode("ascii", "replace").strip()
    return int(text) if text.isdecimal() and len(text) < 5 else None


def _manifest_paths(source: BackupSource, names: tuple[str, ...] = _MANIFEST_NAMES) -> list[str]:
    if source.form is Form.TAR_FILE:
        return []
    directories = dict.fromkeys(os.path.dirname(part.path) if part.is_tar else part.path for part in source.parts)
    return [os.path.join(directory, name) for directory in directories for name in names]


def _add_files_beside(found: _Findings, source: BackupSource, listing: Listing) -> None:
    """Add the files beside the tars that the manifests list; others there are not restored, and nobody's business."""
    tars = {part.path for part in source.parts}
    for area, directory in {
        (Area.SHARED if part.area is Area.SHARED else Area.LOCAL, os.path.dirname(part.path)) for part in source.parts
    }:
        with rights_to_read():
            for entry in os.scandir(directory):
                key = (area, entry.name)
                if entry.path not in tars and listing.of(key) and entry.is_file(follow_symlinks=False):
                    found.lengths.setdefault(key, entry.stat().st_size)


def _control_keys() -> list[tuple[Area, str]]:
    return [(Area.SHARED, CONTROL_NAME), (Area.LOCAL, CONTROL_NAME)]


def _scan_tree(found: _Findings, part: Part, skip: frozenset[str]) -> None:
    found.sizes.setdefault(part.area, 0)
    with PlainTree(part.path, skip=skip) as tree:
        found.modes.append(tree.status().st_mode)
        for entry in tree.walk():
            name, status = entry.name, entry.status
            # Holes stay holes, so what a file occupies is what its copy needs.
            size = min(status.st_size, status.st_blocks * 512) if entry.kind is MemberKind.FILE else 0
            found.add(part.area, name, entry.kind, size, length=status.st_size)
            if name.startswith("pg_wal/") and entry.kind is MemberKind.FILE and "/" not in name[7:]:
                found.wal[name[7:]] = status.st_size
            if entry.kind is MemberKind.SYMLINK and name.startswith("pg_tblspc/") and part.area is Area.LOCAL:
                links = found.dangling if entry.leads_nowhere else found.links
                links[int(name[10:])] = entry.target
            if entry.kind is MemberKind.FILE and is_wanted(part.area, name, status.st_size):
                found.files[part.area, name] = tree.read(entry, limits.SMALL_FILE_BYTES)


def _scan_tar_part(found: _Findings, part: Part, manifest: ManifestSizes | None, *, is_alone: bool) -> None:
    if part.area is not Area.TABLESPACE:
        found.sizes.setdefault(part.area, 0)

    def wants(member: Member) -> bool:
        area, name = area_of(part.area, member.name)
        # One tar holds its manifests itself.
        is_manifest = is_alone and name == MANIFEST and member.size <= limits.MANIFEST_BYTES
        return member.kind is MemberKind.FILE and (is_wanted(area, name, member.size) or is_manifest)

    # A compressed tar has to be decompressed to be listed; the manifest, if there is one, says the rest.
    outstanding = _wanted_names(part, manifest) if part.compression is not None else None
    for member, content in scan_tar(part, wants):
        area, name = area_of(part.area, member.name)
        if not name:
            continue
        found.add(area, name, member.kind, member.size, oid=part.tablespace_oid, length=member.size)
        if content is not None and name == MANIFEST:
            found.manifests[area] = content
        elif content is not None:
            found.files[area, name] = content
        if member.kind is MemberKind.DIRECTORY and name == "base":
            found.modes.append(member.mode)
        if member.kind is MemberKind.SYMLINK and name.startswith("pg_tblspc/") and name[10:].isdecimal():
            found.links[int(name[10:])] = member.link
        if outstanding is not None:
            outstanding.discard(name)
            if not outstanding and manifest is not None:
                _finish_from_manifest(found, area, manifest)
                found.is_whole = False
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


def _tablespaces(
    found: _Findings, source: BackupSource, listing: Listing
) -> tuple[tuple[Tablespace, ...], dict[int, str]]:
    """Return the tablespaces of a backup, and those that appeared while it was taken: nothing of theirs is in it."""
    mapped = parse_tablespace_map(found.files.get((Area.LOCAL, "tablespace_map"), b""))
    if source.form is Form.PLAIN:
        return _tablespaces_of_plain(found, mapped, listing)
    located = found.links | mapped
    for oid in sorted({part.tablespace_oid for part in source.parts_of(Area.TABLESPACE)} ^ located.keys()):
        raise BackupUnusable(
            f"tablespace {oid} has no {oid}.tar" if oid in located else f"{oid}.tar is in no tablespace_map",
            hint="the backup is incomplete; restore another one",
        )
    return tuple(Tablespace(oid, location, None) for oid, location in sorted(located.items())), {}


def _tablespaces_of_plain(
    found: _Findings, mapped: dict[int, str], listing: Listing
) -> tuple[tuple[Tablespace, ...], dict[int, str]]:
    for oid in mapped.keys() - found.links.keys() - found.dangling.keys():
        raise BackupUnusable(
            f'tablespace {oid} ("{mapped[oid]}") is named in tablespace_map, but pg_tblspc/{oid} is not there',
            hint=f"unpack {oid}.tar and make pg_tblspc/{oid} a link to it, or restore the tar files themselves",
        )
    listed = {int(path.split("/")[1]) for _, path in listing.entries if _OF_TABLESPACE.match(path)}
    spaces: list[Tablespace] = []
    unlisted: dict[int, str] = {}
    for oid, copy in sorted((found.links | found.dangling).items()):
        if oid in found.dangling:
            spaces.append(Tablespace(oid, copy, None, is_missing=True))
        elif _scan_tablespace(found, oid, copy) and listing.is_known and oid not in listed and oid not in mapped:
            # Its link leads to the place of the live server: nothing there is part of the backup.
            unlisted[oid] = copy
            prefix = f"pg_tblspc/{oid}/"
            found.lengths = {key: size for key, size in found.lengths.items() if not key[1].startswith(prefix)}
        else:
            spaces.append(Tablespace(oid, copy, copy))
    return tuple(spaces), unlisted


def _scan_tablespace(found: _Findings, oid: int, copy: str) -> int:
    """Take in the files of a tablespace; return how many there are."""
    count = 0
    with PlainTree(copy, tablespace=True) as tree:
        for entry in tree.walk():
            status = entry.status
            is_file = entry.kind is MemberKind.FILE
            size = min(status.st_size, status.st_blocks * 512) if is_file else 0
            found.add(Area.TABLESPACE, entry.name, entry.kind, size, oid=oid, length=status.st_size)
            count += is_file
    found.tablespace_sizes.setdefault(oid, 0)
    return count
