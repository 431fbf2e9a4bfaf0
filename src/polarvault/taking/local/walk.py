"""Walk the trees of a cluster as BASE_BACKUP does: what it would send, with the names that it would give."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from polarvault.pgfiles.tar import MemberKind
from polarvault.storage.trees.model import Entry, EntryKind, Tree
from polarvault.taking.local.rules import SourceRules


@dataclass(frozen=True, slots=True)
class Found:
    """One member: its name in the archive, what it is. place: its name in the tree, if it is a file."""

    name: str
    kind: MemberKind
    entry: Entry
    place: str = ""
    link: str = ""


@dataclass(frozen=True, slots=True)
class Walk:
    """What to walk: a tree from a directory on, "" for its root, as one archive.

    skipped: directories of which only the name is sent; left_out: those that are not sent at all.
    links_to_tablespaces: the links in pg_tblspc are sent. directory_mode: of directories that are made up.
    """

    tree: Tree
    rules: SourceRules
    directory_mode: int
    skip_special: Callable[[str], None]
    root: str = ""
    skipped: Collection[str] = ()
    left_out: Collection[str] = ()
    links_to_tablespaces: bool = True

    def members(self, directory: str = "") -> Iterator[Found]:
        """Yield everything below a directory; OSError where it cannot be read, not for what goes meanwhile."""
        try:
            entries = self.tree.list(self._place(directory))
        except FileNotFoundError:
            if not directory:
                raise
            return  # A database that was dropped since its directory was listed.
        names = {entry.name for entry in entries}
        for entry in entries:
            name = f"{directory}/{entry.name}" if directory else entry.name
            if name not in self.left_out and not self.rules.leaves_out(directory, entry.name, names):
                yield from self._member(name, entry)

    def _member(self, name: str, entry: Entry) -> Iterator[Found]:
        if self.rules.empties(name):
            yield self._made_up(name, entry)
        elif name == "pg_wal":
            for made_up in self.rules.wal_directories:
                yield self._made_up(made_up, entry)
        elif entry.kind is EntryKind.DIRECTORY:
            yield Found(name, MemberKind.DIRECTORY, entry)
            if name not in self.skipped:
                yield from self.members(name)
        elif entry.kind is EntryKind.FILE:
            yield Found(name, MemberKind.FILE, entry, self._place(name))
        elif entry.kind is EntryKind.LINK and name.rpartition("/")[0] == "pg_tblspc":
            if self.links_to_tablespaces:
                yield Found(name, MemberKind.SYMLINK, entry, link=self.tree.link_target(self._place(name)))
        else:
            self.skip_special(name)

    def _made_up(self, name: str, entry: Entry) -> Found:
        """A directory without what is in it; a link becomes one (server: convert_link_to_directory)."""
        if entry.kind is not EntryKind.DIRECTORY:
            entry = Entry(entry.name, EntryKind.DIRECTORY, 0, entry.modified, self.directory_mode)
        return Found(name, MemberKind.DIRECTORY, entry)

    def _place(self, name: str) -> str:
        return f"{self.root}/{name}".strip("/")
