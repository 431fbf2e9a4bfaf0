"""The server's configuration files: which, where, and what is in them, as far as the server or this host tells.

They are postgresql.conf, pg_hba.conf and pg_ident.conf, and whatever these include or name (@file). A base backup holds
those that lie in the data directory, and no other. Contents come by SQL where the role may call pg_read_binary_file,
and from the file system where the server runs on this machine. Nothing else is ever read: no certificate, and no key.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from polarvault.errors import PolarvaultError, ServerError
from polarvault.model import versions
from polarvault.model.limits import CONFIGURATION_FILE_BYTES, CONFIGURATION_FILES
from polarvault.pgconf.configuration import AUTO_FILE, MAIN_FILE, Configuration, is_included_name
from polarvault.pgconf.hba import ReferenceKind, references
from polarvault.server.connection import Connection
from polarvault.storage.files import open_regular

_UNDEFINED_FILE = "58P01"
_KEY = b"PRIVATE KEY-----"
READ_GRANT = "EXECUTE ON FUNCTION pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean)"
LIST_GRANT = "EXECUTE ON FUNCTION pg_catalog.pg_ls_dir(text)"


@dataclass(slots=True)
class ServerFiles:
    """Reads files of the server, by SQL or here; remembers what it has read. A `ConfigReader`."""

    sql: Connection | None
    is_here: bool
    contents: dict[str, bytes | None] = field(default_factory=dict)
    absent: set[str] = field(default_factory=set)
    """Files and directories that are known not to be there, in contrast to those that may not be read."""

    def read(self, path: str) -> bytes | None:
        """Return a file's content; None when it is absent, may not be read, is too large, or is a key."""
        if path not in self.contents:
            if len(self.contents) >= CONFIGURATION_FILES:
                return None
            content = self._by_sql(path) if self.sql is not None else None
            if content is None and self.is_here and path not in self.absent:
                content = self._here(path)
            self.contents[path] = content if content is None or _KEY not in content else None
        return self.contents[path]

    def list_names(self, directory: str) -> list[str] | None:
        """Return the names in a directory; None when it cannot be listed."""
        try:
            if self.sql is not None:
                rows = self.sql.query(f"SELECT name FROM pg_catalog.pg_ls_dir({_literal(directory)}) AS name").rows
                return [row[0] or "" for row in rows]
        except ServerError as refused:
            if refused.sqlstate == _UNDEFINED_FILE:
                self.absent.add(directory)
                return None
        except PolarvaultError:
            pass  # A role that may only stream, or no connection any more: what this host tells is left.
        try:
            return os.listdir(directory) if self.is_here else None
        except FileNotFoundError:
            self.absent.add(directory)
            return None
        except OSError:
            return None

    def _by_sql(self, path: str) -> bytes | None:
        rows = _rows(
            self.sql,
            f"SELECT pg_catalog.encode(pg_catalog.pg_read_binary_file({_literal(path)}, 0,"
            f" {CONFIGURATION_FILE_BYTES}, true), 'base64')",
        )
        if rows and rows[0][0] is None:
            self.absent.add(path)
        return base64.b64decode(rows[0][0]) if rows and rows[0][0] is not None else None

    def _here(self, path: str) -> bytes | None:
        try:
            with open_regular(path) as stream:
                content = stream.read(CONFIGURATION_FILE_BYTES + 1)
                return content if len(content) <= CONFIGURATION_FILE_BYTES else None
        except FileNotFoundError:
            self.absent.add(path)
            return None
        except OSError:
            return None


@dataclass(frozen=True, slots=True)
class ConfigurationFiles:
    """Where the server's configuration lies. Paths are absolute and normal.

    places: config_file, hba_file, ident_file by name. files: every file that belongs to it, with its content, None when
    it could not be read. directories: what include_dir names, which must be there though they be empty.
    """

    data_directory: str
    places: Mapping[str, str]
    files: Mapping[str, bytes | None]
    directories: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    """Those of the files and directories that are not there, although a line that has to be followed names them."""

    @property
    def outside(self) -> list[str]:
        """The files that lie outside of the data directory by their paths."""
        inside = self.data_directory.rstrip("/") + "/"
        return [path for path in self.files if not path.startswith(inside)]

    @property
    def unreadable(self) -> list[str]:
        """The files whose contents could not be had."""
        return [path for path, content in self.files.items() if content is None]


def find_configuration(sql: Connection, files: ServerFiles) -> ConfigurationFiles | None:
    """Ask where the files are and follow what they name; None when the role may not know where."""
    own = versions.of_server(sql.server_version_num).configuration_files
    names = ", ".join(f"'{name}'" for name in ("data_directory", "config_file", *own))
    rows = _rows(sql, f"SELECT name, setting FROM pg_catalog.pg_settings WHERE name IN ({names})") or []
    places = {name: os.path.normpath(value) for name, value in rows if name is not None and value}
    data_directory = places.pop("data_directory", None)
    if data_directory is None or "config_file" not in places:
        return None
    return follow_configuration(data_directory, places, files)


def follow_configuration(data_directory: str, places: Mapping[str, str], files: ServerFiles) -> ConfigurationFiles:
    """Read the files at their places and everything that they include or name."""
    main = places["config_file"]
    found: dict[str, bytes | None] = {}
    directories: list[str] = []
    configuration = Configuration(data_directory, files, main_file=main)
    for path in (main, *configuration.documents):
        if os.path.basename(path) != AUTO_FILE:
            found[path] = files.read(path)
    for include in configuration.bad_includes:
        found.setdefault(include.target, None)
    directories += configuration.included_directories
    for name in places:
        if name != "config_file":
            for path, content, is_directory in _follow_words(places[name], files):
                if is_directory:
                    directories.append(path)
                else:
                    found[path] = content
    # A server starts without the files of the others.
    optional = {path for name, path in places.items() if name not in ("config_file", "hba_file")}
    gone = files.absent - optional
    found = {path: content for path, content in found.items() if path not in files.absent & optional}
    wanted = [*(path for path, content in found.items() if content is None), *directories]
    absent = tuple(dict.fromkeys(path for path in wanted if path in gone))
    return ConfigurationFiles(data_directory, dict(places), found, tuple(dict.fromkeys(directories)), absent)


def _follow_words(path: str, files: ServerFiles) -> Iterator[tuple[str, bytes | None, bool]]:
    """Yield pg_hba.conf or pg_ident.conf and what they name: path, content, whether it is a directory."""
    waiting, seen = [path], set[str]()
    while waiting and len(seen) < CONFIGURATION_FILES:
        path = waiting.pop(0)
        if path in seen:
            continue
        seen.add(path)
        content = files.read(path)
        yield path, content, False
        for reference in references(content or b""):
            target = reference.path_from(path)
            if reference.kind is ReferenceKind.INCLUDE_DIR:
                names = files.list_names(target)
                yield target, None, True
                waiting += [os.path.join(target, name) for name in sorted(names or []) if is_included_name(name)]
            elif reference.kind is not ReferenceKind.INCLUDE_IF_EXISTS or files.read(target) is not None:
                waiting.append(target)


def _rows(sql: Connection | None, query: str) -> list[tuple[str | None, ...]] | None:
    if sql is None:
        return None
    try:
        return sql.query(query).rows
    except PolarvaultError:
        return None


def _literal(text: str) -> str:
    # standard_conforming_strings is on in every session of ours.
    return "'" + text.replace("'", "''") + "'"


def default_places(directory: str) -> dict[str, str]:
    """Return where the files are when all of them are in one directory."""
    names = {"config_file": MAIN_FILE, "hba_file": "pg_hba.conf", "ident_file": "pg_ident.conf"}
    return {setting: os.path.join(directory, name) for setting, name in names.items()}
