"""A server's whole configuration: several files, their includes, and who wins; edits by name.

Priority, lowest first (PolarDB facts 4.1): polar_settings.conf, postgresql.conf with its includes in order,
postgresql.auto.conf. Within one source the last line wins. This module does no I/O: a `ConfigReader` gives it bytes.

Only files inside the data directory are editable. A winner that lies elsewhere is overridden by a later line at the
end of postgresql.conf, so that no file of another server is ever touched; where postgresql.conf itself lies elsewhere,
as on Debian, by one at the end of postgresql.auto.conf, which the server reads whatever other file it is started with.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from polarvault.pgconf.document import ConfDocument
from polarvault.pgconf.grammar import fold_name, format_value

MAIN_FILE = "postgresql.conf"
AUTO_FILE = "postgresql.auto.conf"
POLAR_FILE = "polar_settings.conf"
# The server's own limit for nested includes (guc-file.l, CONF_FILE_MAX_DEPTH).
_MAX_DEPTH = 10
_INCLUDES = frozenset({"include", "include_if_exists", "include_dir"})


class ConfigReader(Protocol):
    """Where configuration files come from; paths are absolute."""

    def read(self, path: str) -> bytes | None:
        """Return the file's content, or None when there is no such readable file."""

    def list_names(self, directory: str) -> list[str] | None:
        """Return the names of the files in a directory, or None when it cannot be listed."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One line that sets something: where, and to what; `rank` orders lines by priority, the highest wins."""

    name: str
    value: str
    path: str
    line: int
    rank: int


@dataclass(frozen=True, slots=True)
class BadInclude:
    """An include directive whose file or directory cannot be read, or must not be."""

    path: str
    line: int
    target: str


@dataclass(slots=True)
class _Loaded:
    settings: list[Setting] = field(default_factory=list)
    bad_includes: list[BadInclude] = field(default_factory=list)
    included_directories: list[str] = field(default_factory=list)
    outside_includes: list[BadInclude] = field(default_factory=list)


class Configuration:
    """The files of one data directory, resolved; see the module's text for priority and editing rules."""

    def __init__(
        self, directory: str, reader: ConfigReader, *, cluster_file: str | None = None, main_file: str | None = None
    ) -> None:
        """Load everything below `directory`; `cluster_file` is PolarDB's polar_settings.conf, if there is one.

        main_file: the postgresql.conf that the server is started with; None for the one in the directory.
        """
        self._directory = directory
        self._main_file = main_file or posixpath.join(directory, MAIN_FILE)
        self._reader = reader
        self._cluster_file = cluster_file
        self.documents: dict[str, ConfDocument] = {}
        self._edited: set[str] = set()
        self._block: list[str] = []
        self._loaded = _Loaded()
        self._reload()

    @property
    def main_path(self) -> str:
        """The path of postgresql.conf."""
        return self._main_file

    @property
    def auto_path(self) -> str:
        """The path of postgresql.auto.conf, which is always in the data directory."""
        return posixpath.join(self._directory, AUTO_FILE)

    @property
    def has_main_file(self) -> bool:
        """Tell whether there was a postgresql.conf (Debian keeps it outside of the data directory)."""
        return self.main_path in self.documents

    @property
    def bad_includes(self) -> Sequence[BadInclude]:
        """Include directives that would stop the server."""
        return self._loaded.bad_includes

    @property
    def included_directories(self) -> Sequence[str]:
        """The directories that include_dir names; the server does not start without them, though they be empty."""
        return self._loaded.included_directories

    @property
    def outside_includes(self) -> Sequence[BadInclude]:
        """Include directives that lead out of the data directory, whether something can be read there or not."""
        return self._loaded.outside_includes

    def outside_files(self) -> list[str]:
        """Return the included files that lie outside of the data directory, which no edit ever touches."""
        return [path for path in self.documents if not self._is_editable(path)]

    def winner(self, name: str) -> Setting | None:
        """Return the line that decides a setting, or None when no file sets it."""
        lines = self.lines(name)
        return lines[-1] if lines else None

    def value(self, name: str) -> str | None:
        """Return a setting's value in the files."""
        setting = self.winner(name)
        return setting.value if setting else None

    def lines(self, name: str) -> list[Setting]:
        """Return every line that sets the name, the deciding one last."""
        wanted = fold_name(name)
        return [setting for setting in self._loaded.settings if setting.name == wanted]

    def names(self) -> set[str]:
        """Return the names of everything that is set."""
        return {setting.name for setting in self._loaded.settings}

    def is_editable(self, setting: Setting) -> bool:
        """Tell whether a line stands in a file of this data directory."""
        return self._is_editable(setting.path)

    def set(self, name: str, value: str, note: str, *, everywhere: bool = False) -> str:
        """Make a value the effective one; return the path of the file that now decides.

        The winning line is edited in place. Every other editable line for the name is commented out, because
        `ALTER SYSTEM RESET` would otherwise bring the value of another server back. everywhere: the value has to hold
        whatever postgresql.conf the server is started with, and so stands in postgresql.auto.conf.
        """
        lines = self.lines(name)
        place = self.main_path if self._is_editable(self.main_path) and not everywhere else self.auto_path
        keep = lines[-1] if lines and self._may_decide(lines[-1].path) else None
        if everywhere and keep is not None and keep.path != self.auto_path:
            keep = None
        for setting in lines:
            if setting is not keep and self._is_editable(setting.path):
                self._document(setting.path).comment_out(setting.line, note)
        if keep is not None:
            self._document(keep.path).set_value(keep.line, value)
        else:
            self._block.append(f"{name} = {format_value(value)}")
            self._document(place).append(self._take_block(place, note))
        self._reload()
        return keep.path if keep else place

    def disable(self, name: str, note: str) -> list[Setting]:
        """Comment out every editable line for the name; return the lines, the one that decided last."""
        lines = self.lines(name)
        for setting in lines:
            if self._is_editable(setting.path):
                self._document(setting.path).comment_out(setting.line, note)
        if lines:
            self._reload()
        return lines

    def disable_include(self, include: BadInclude, note: str) -> None:
        """Comment an include directive out."""
        if self._is_editable(include.path):
            self._document(include.path).comment_out(include.line, note)
            self._reload()

    def edited(self) -> dict[str, bytes]:
        """Return path and content of every file that was changed."""
        return {path: self.documents[path].content for path in sorted(self._edited)}

    def _take_block(self, path: str, note: str) -> list[str]:
        lines, self._block = self._block, []
        marker = f"# {note}"
        present = self._document(path).content.decode("utf-8", "surrogateescape")
        return lines if marker in present.splitlines() else ["", marker, *lines]

    def _document(self, path: str) -> ConfDocument:
        self._edited.add(path)
        return self.documents.setdefault(path, ConfDocument(b""))

    def _is_editable(self, path: str) -> bool:
        inside = posixpath.normpath(path).startswith(posixpath.join(self._directory, ""))
        return inside or path == self._cluster_file

    def _may_decide(self, path: str) -> bool:
        # ALTER SYSTEM FOR CLUSTER is WAL-logged: replay can rewrite polar_settings.conf, so nothing is set there.
        return self._is_editable(path) and path not in (self._cluster_file, self._local_cluster_copy)

    @property
    def _local_cluster_copy(self) -> str:
        return posixpath.join(self._directory, POLAR_FILE)

    def _reload(self) -> None:
        self._loaded = _Loaded()
        for path in (self._cluster_file, self._local_cluster_copy):
            if path is not None:
                self._load(path, depth=0)
        for path in (self.main_path, self.auto_path):
            self._load(path, depth=0)

    def _load(self, path: str, *, depth: int) -> bool:
        path = posixpath.normpath(path)
        if depth > _MAX_DEPTH:
            return False
        document = self.documents.get(path)
        if document is None:
            content = self._reader.read(path)
            if content is None:
                return False
            document = self.documents[path] = ConfDocument(content)
        for entry in document.entries():
            if entry.name in _INCLUDES:
                self._include(path, entry.line, entry.name, entry.value, depth=depth + 1)
                continue
            rank = len(self._loaded.settings)
            self._loaded.settings.append(Setting(entry.name, entry.value, path, entry.line, rank))
        return True

    def _include(self, path: str, line: int, kind: str, value: str, *, depth: int) -> None:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), value))
        if kind == "include_dir":
            self._loaded.included_directories.append(target)
            names = self._reader.list_names(target)
            readable = names is not None
            for name in sorted(name for name in names or [] if is_included_name(name)):
                self._load(posixpath.join(target, name), depth=depth)
        else:
            readable = target != path and self._load(target, depth=depth)
        if not readable and kind != "include_if_exists":
            self._loaded.bad_includes.append(BadInclude(path, line, target))
        elif not self._is_editable(target):
            self._loaded.outside_includes.append(BadInclude(path, line, target))


def is_included_name(name: str) -> bool:
    """Tell whether include_dir takes a file of this name: ``*.conf``, not hidden (manual, 20.1.5)."""
    return name.endswith(".conf") and not name.startswith(".") and len(name) >= len("x.conf")


@dataclass(frozen=True, slots=True)
class MemoryReader:
    """A reader over files held in memory, with a fallback for paths outside of them."""

    files: dict[str, bytes]
    fallback: ConfigReader | None = None
    is_ours: Callable[[str], bool] = lambda path: True
    directories: frozenset[str] = frozenset()

    def read(self, path: str) -> bytes | None:
        """Return a file from memory; a path that is not ours is asked of the fallback."""
        if path in self.files or self.fallback is None or self.is_ours(path):
            return self.files.get(path)
        return self.fallback.read(path)

    def list_names(self, directory: str) -> list[str] | None:
        """Return the names in a directory of memory, or what the fallback says."""
        prefix = directory + "/"
        names = [path.removeprefix(prefix) for path in self.files if path.startswith(prefix)]
        if names or self.fallback is None or self.is_ours(directory):
            known = bool(names) or directory in self.directories
            return [name for name in names if "/" not in name] if known else None
        return self.fallback.list_names(directory)
