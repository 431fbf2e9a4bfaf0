"""Which archives a backup consists of, and what tree each of them is: tablespaces, halves, the data directory.

The data directory comes last, because the backup ends with it: its label is known only then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from polarvault.errors import ServerRefused
from polarvault.model.limits import TABLESPACES
from polarvault.model.pfs_address import is_pfs_address
from polarvault.pgfiles.tar import MemberKind
from polarvault.server.base_backup import Tablespace
from polarvault.server.identity import ServerIdentity
from polarvault.storage.trees.model import EntryKind, Tree
from polarvault.taking.local.place import LocalPlace
from polarvault.taking.local.rules import SourceRules
from polarvault.taking.local.walk import Found, Walk

_TABLESPACES = "pg_tblspc"
# Since 16 a directory in pg_tblspc is a tablespace to BASE_BACKUP; before, part of the data directory.
_KNOWS_IN_PLACE = 160000


@dataclass(frozen=True, slots=True)
class ArchiveWalk:
    """One archive. walk: None where nothing is there to send. begins: the directory in the tree that it begins with.

    prefix: of its paths in the manifest and to the page check. section: of the manifest.
    """

    tablespace: Tablespace
    walk: Walk | None
    begins: str = ""
    prefix: str = ""
    section: int = 0
    has_control: bool = False

    def members(self) -> Iterator[Found]:
        """Yield what is to be sent; OSError."""
        if self.walk is None:
            return
        if self.begins:
            try:
                entry = self.walk.tree.status(f"{self.walk.root}/{self.begins}".strip("/"))
            except FileNotFoundError:
                return  # A tablespace that is not there: what that means is judged by who looks for absences.
            yield Found(self.begins, MemberKind.DIRECTORY, entry)
        yield from self.walk.members(self.begins)


def find_archives(
    place: LocalPlace, identity: ServerIdentity, *, with_links: bool, skip_special: Callable[[str], None]
) -> list[ArchiveWalk]:
    """Return the archives in the order in which they are to be read; raise OSError, ServerRefused.

    with_links: the data directory's archive has the links to the tablespaces.
    """
    rules = SourceRules(identity.version_num, is_polardb=identity.polar_version is not None)
    mode = 0o750 if identity.group_access else 0o700
    spaces = _find_tablespaces(place, identity)
    if place.shared is not None:
        if spaces:
            raise ServerRefused(
                "this cluster has user tablespaces, which PolarDB cannot keep on shared storage: what of them belongs "
                "to it only the server can tell",
                hint="take the backup with --source stream",
            )
        # To the server such a path is not one of lstat(2)'s: it misses every init fork (facts 1.3).
        finds = "://" not in (identity.shared_data_directory or "") and not is_pfs_address(place.shared.address)
        shared_rules = replace(rules, finds_init_forks=finds)
        nested = _below(place.data.address, place.shared.address)
        return [
            ArchiveWalk(
                Tablespace(None, None, None, shared=True), Walk(place.shared, shared_rules, mode, skip_special),
                section=1, has_control=True,
            ),
            ArchiveWalk(
                Tablespace(None, None, None, shared=False),
                Walk(place.data, rules, mode, skip_special, left_out=[nested] if nested else []),
            ),
        ]  # fmt: skip
    version_directory = f"PG_{identity.version_num // 10000}_{place.control.catalog_version}"
    archives = []
    for space in spaces:
        assert space.location is not None
        walk = Walk(place.data, rules, mode, skip_special, root=space.location)
        if not space.is_in_place:
            tree = _open_location(place, space.location)
            walk_or_none = None if tree is None else Walk(tree, rules, mode, skip_special)
        else:
            walk_or_none = walk
        archives.append(ArchiveWalk(space, walk_or_none, begins=version_directory, prefix=f"pg_tblspc/{space.oid}/"))
    inside = [
        below
        for space in spaces
        if space.location and (below := _below(place.data.address, space.location)) is not None
    ]
    in_place = [space.location for space in spaces if space.is_in_place and space.location]
    data = Walk(place.data, rules, mode, skip_special, skipped={*inside, *in_place}, links_to_tablespaces=with_links)
    return [*archives, ArchiveWalk(Tablespace(None, None, None, shared=False), data, has_control=True)]


def size_kb(archive: ArchiveWalk, tick: Callable[[], None]) -> ArchiveWalk:
    """Return the archive with the size that it has now."""
    total = 0
    for number, found in enumerate(archive.members()):
        if found.kind is MemberKind.FILE:
            total += found.entry.size_bytes
        if number % 10_000 == 0:
            tick()
    return replace(archive, tablespace=replace(archive.tablespace, size_kb=total // 1024))


def _find_tablespaces(place: LocalPlace, identity: ServerIdentity) -> list[Tablespace]:
    tree = place.data
    found: list[Tablespace] = []
    for entry in tree.list(_TABLESPACES):
        name = f"{_TABLESPACES}/{entry.name}"
        if not entry.name.isascii() or not entry.name.isdigit() or len(found) > TABLESPACES:
            continue
        if entry.kind is EntryKind.LINK:
            found.append(Tablespace(entry.name, tree.link_target(name), None, shared=False))
        elif entry.kind is EntryKind.DIRECTORY and identity.version_num >= _KNOWS_IN_PLACE:
            found.append(Tablespace(entry.name, name, None, shared=False))
    return found


def _open_location(place: LocalPlace, location: str) -> Tree | None:
    try:
        return place.open_location(location)
    except FileNotFoundError:
        return None


def _below(directory: str, path: str) -> str | None:
    """Return a path relative to a directory that it is in; None if it is not."""
    directory = directory.rstrip("/") + "/"
    return path.rstrip("/")[len(directory) :] if path.startswith(directory) else None
