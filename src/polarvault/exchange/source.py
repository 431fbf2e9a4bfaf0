"""A backup in files, looked at before anything is written: what it is, where it ends, which WAL it comes with.

What cannot become a backup in a repository is refused here, with the next line to type.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from polarvault.backupset.inventory import parse_major_version
from polarvault.backupset.listing import MANIFEST, SHARED_MANIFEST, Fault, Key, Listing
from polarvault.backupset.model import CONTROL_NAME, Area, Inventory
from polarvault.backupset.on_disk import BackupOnDisk
from polarvault.backupset.reading.tarstream import scan_tar
from polarvault.backupset.source import find_backup
from polarvault.basebackup.halves import SERVER_MANIFEST
from polarvault.errors import BackupUnusable, IntegrityError, UsageError
from polarvault.exchange.barman import BarmanInfo, read_barman
from polarvault.exchange.times import times_of
from polarvault.model import limits
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.pgfiles.backup_label import BackupLabel, parse_backup_label
from polarvault.pgfiles.control import ControlFile, parse_known_control
from polarvault.repository.format.chunks import PAGE_BYTES
from polarvault.repository.index.root import Part, PartArea
from polarvault.storage.files import open_regular, storage_failed
from polarvault.walfiles.search_list import SearchList, wal_places

_MOST_NAMED = 3


@dataclass(frozen=True, slots=True)
class FilesBackup:
    """What was found. stop: where it becomes consistent; parts: as the repository has them."""

    path: str
    files: BackupOnDisk
    inventory: Inventory
    label: BackupLabel
    control: ControlFile
    server_version: int
    version: str
    stop_lsn: Lsn
    stop_timeline_id: int
    began: datetime
    ended: datetime
    parts: Sequence[Part]
    wal: SearchList

    @property
    def listing(self) -> Listing:
        """What the manifests say; nothing without one."""
        return self.inventory.listing or Listing()

    def segments(self) -> list[WalSegment]:
        """Return the segments from the first one that the backup needs to that in which it ends."""
        return _segments(self.control, self.label, self.stop_lsn, self.stop_timeline_id)


def look_at(path: str, *, shared_from: str | None, wal_directories: Sequence[str], stop_lsn: Lsn | None) -> FilesBackup:
    """Recognise and judge a backup; raise BackupUnusable, IntegrityError, StorageFailed."""
    info = read_barman(path)
    files = find_backup(info.data if info is not None else path, shared_from=shared_from)
    inventory = files.look_through()
    label, control = _label(files, inventory), _control(files, inventory)
    _refuse_disagreements(files, inventory)
    stop, timeline_id = _stop(files, inventory, info, label, stop_lsn)
    began, ended = times_of(files.description, info, label, control)
    names = [segment.file_name for segment in _segments(control, label, stop, timeline_id)]
    places = [*wal_directories, *(info.wal_directories(names) if info is not None else [])]
    number, version = _version(files, inventory, info, control)
    return FilesBackup(
        os.path.abspath(path), files, inventory, label, control,
        number,
        version,
        stop, timeline_id, began, ended, _parts(inventory, info),
        SearchList([files.wal(inventory), wal_places(places)]),
    )  # fmt: skip


def _version(
    files: BackupOnDisk, inventory: Inventory, info: BarmanInfo | None, control: ControlFile
) -> tuple[int, str]:
    """Return the server's version as a number and in words; the minor one only where something says it."""
    described = files.description.get("server_version")
    for number in (files.description.get("server_version_num"), info.server_version if info is not None else None):
        if type(number) is int and number // 10000 == control.major_version:
            words = f"{number // 10000}.{number % 10000}"
            return number, described if isinstance(described, str) else words
    major = (inventory.file("PG_VERSION") or b"").decode("ascii", "replace").strip()
    return (control.major_version or 0) * 10000, major


def _label(files: BackupOnDisk, inventory: Inventory) -> BackupLabel:
    content = inventory.file("backup_label")
    if content is None:
        raise BackupUnusable(
            f'"{files.path}" has no backup_label: it is no online backup, and nobody can say where its WAL begins',
            hint="import a backup of pg_basebackup, polar_basebackup or Barman",
        )
    label = parse_backup_label(content)
    if label.incremental_from_lsn is not None:
        raise BackupUnusable(
            f'"{files.path}" is an incremental backup of PostgreSQL, which is not complete by itself',
            hint="combine it first: pg_combinebackup -o DIRECTORY FULL INCREMENTAL..., and import DIRECTORY",
        )
    return label


def _control(files: BackupOnDisk, inventory: Inventory) -> ControlFile:
    control = inventory.control or _control_in_tars(files, inventory)
    if control is None or control.major_version is None:
        why = "of a newer server than this program knows" if inventory.is_newer else "not there"
        raise BackupUnusable(
            f'pg_control of "{files.path}" is {why}', hint="unpack the tar files, or use a newer program"
        )
    if control.block_size != PAGE_BYTES:
        raise BackupUnusable(
            f'"{files.path}" has pages of {control.block_size} bytes; a repository keeps those of {PAGE_BYTES}'
        )
    return control


def _control_in_tars(files: BackupOnDisk, inventory: Inventory) -> ControlFile | None:
    """Return pg_control from compressed tars, which are not read to their ends to be listed."""
    for part in files.parts:
        if not part.is_tar or part.area not in (Area.LOCAL, Area.SHARED) or inventory.is_newer:
            continue
        for _, content in scan_tar(part, lambda member: member.name == CONTROL_NAME):
            if content is not None:
                return parse_known_control(content, parse_major_version(inventory.file("PG_VERSION")))
    return None


def _refuse_disagreements(files: BackupOnDisk, inventory: Inventory) -> None:
    listing = inventory.listing
    if listing is None:
        return
    if listing.damage is not None:
        raise IntegrityError(f'the manifest of "{files.path}" is damaged: {listing.damage}', hint="use another backup")
    if inventory.is_whole:
        refuse_other_names(files.path, listing, inventory.lengths, has_shared_half=inventory.has_shared_half)


def refuse_other_names(path: str, listing: Listing, sizes: Mapping[Key, int], *, has_shared_half: bool) -> None:
    """Raise IntegrityError if the names and sizes of files are not those of the manifest."""
    if not listing.is_known:
        return
    halves = frozenset({Area.LOCAL, Area.SHARED}) if has_shared_half else frozenset({Area.LOCAL})
    wrong = [one for one in listing.compare(sizes, halves=halves) if not one.is_setting]
    # What somebody has put beside the backup does no harm there, and would not be accepted with it again.
    if wrong:
        named = "; ".join(map(str, wrong[:_MOST_NAMED]))
        extra = all(one.fault is Fault.EXTRA for one in wrong)
        raise IntegrityError(
            f'"{path}" is not what its manifest says: {named}{"; ..." * (len(wrong) > _MOST_NAMED)}',
            hint="take away what was added to it" if extra else f"polarvault verifybackup {shlex.quote(path)}",
        )


def _stop(
    files: BackupOnDisk, inventory: Inventory, info: BarmanInfo | None, label: BackupLabel, given: Lsn | None
) -> tuple[Lsn, int]:
    spans = [span for span in inventory.spans if span.end_lsn > label.start_lsn]
    if spans:
        last = max(spans, key=lambda span: (span.end_timeline_id, span.end_lsn))
        return last.end_lsn, last.end_timeline_id
    if info is not None and info.stop_lsn is not None:
        return info.stop_lsn, info.timeline_id or label.timeline_id
    described = files.description.get("stop_lsn")
    try:
        stop = given or (Lsn.parse(described) if isinstance(described, str) else None)
    except ValueError:
        stop = None
    if stop is None or stop <= label.start_lsn:
        raise UsageError(
            f'nothing in "{files.path}" says where the backup ends: it has no manifest',
            hint="--stop-lsn LSN: what pg_backup_stop has returned, or the end in the backup history file in the WAL",
        )
    return stop, label.timeline_id


def _segments(control: ControlFile, label: BackupLabel, stop: Lsn, timeline_id: int) -> list[WalSegment]:
    size = control.wal_segment_size
    segment = WalSegment.holding(label.start_lsn, timeline_id, size)
    last = WalSegment.holding(Lsn(stop - 1), timeline_id, size)
    if last.number - segment.number > limits.WAL_SEGMENTS:
        raise BackupUnusable(f"the backup would need {last.number - segment.number} segments of WAL")
    found = [segment]
    while found[-1].number < last.number:
        found.append(found[-1].next())
    return found


def _parts(inventory: Inventory, info: BarmanInfo | None) -> list[Part]:
    locations = info.locations if info is not None else {}
    spaces = [
        Part(PartArea.TABLESPACE, space.oid, locations.get(space.oid, space.location))
        for space in inventory.tablespaces
        if not space.is_missing
    ]
    lost = [space for space in inventory.tablespaces if space.is_missing]
    if lost:
        raise BackupUnusable(
            f"the copy of tablespace {lost[0].oid} is not where its link leads: {lost[0].location}",
            hint="put it back there, or correct the link in pg_tblspc",
        )
    shared = [Part(PartArea.SHARED)] if inventory.has_shared_half else []
    return [*spaces, Part(PartArea.LOCAL), *shared]


def manifests_beside(files: BackupOnDisk) -> dict[tuple[Area, str], bytes]:
    """Return the manifests that lie in the directories of a backup, by half and name; one tar has its own inside."""
    found: dict[tuple[Area, str], bytes] = {}
    for part in files.parts:
        if part.area not in (Area.LOCAL, Area.SHARED):
            continue
        directory = os.path.dirname(part.path) if part.is_tar else part.path
        for name in (MANIFEST, SHARED_MANIFEST, SERVER_MANIFEST):
            path = os.path.join(directory, name)
            try:
                with open_regular(path) as stream:
                    content = stream.read(limits.PARSED_MANIFEST_BYTES + 1)
            except FileNotFoundError:
                continue
            except OSError as problem:
                raise storage_failed(problem, "read", path) from problem
            if len(content) > limits.PARSED_MANIFEST_BYTES:
                raise BackupUnusable(f'"{path}" is longer than {limits.PARSED_MANIFEST_BYTES} bytes')
            found[part.area, name] = content
    return found
