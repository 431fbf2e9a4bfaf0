"""--copy-configuration: keep configuration that no base backup holds, in DIR.configuration beside the backup."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping

from polarvault.backupset.saved_configuration import SavedConfiguration, saved_beside, write_configuration
from polarvault.basebackup.destination import Destination, Output
from polarvault.errors import ServerRefused
from polarvault.pgconf.configuration import Configuration, MemoryReader
from polarvault.pgconf.hba import references
from polarvault.server.connection import Connection, Connector, is_on_this_machine
from polarvault.taking.configuration.files import LIST_GRANT, READ_GRANT
from polarvault.taking.configuration.server import read_server_configuration
from polarvault.taking.facts import ReceivedBackup, StoredBackup
from polarvault.wire.commands import quote_identifier

# What the data directory is called where its real path is not known: .. in a name leads out of it.
_DATA = "/the/data/directory"


class WithConfiguration:
    """A target of files with what --copy-configuration keeps: read before the backup, written when all of it is there.

    Without the option it says which configuration the backup lacks.
    """

    def __init__(self, output: Output, destination: Destination, connector: Connector, connection: Connection) -> None:
        self._output = output
        self._destination = destination
        self._connector = connector
        self._port = connection.pgconn.port.decode("utf-8", "replace")
        self._is_here = is_on_this_machine(connection)
        self._saved: SavedConfiguration | None = None
        self.spool_directory = output.spool_directory
        self.begin = output.begin
        self.wal = output.wal
        self.archive = output.archive
        self.abort = output.abort

    @property
    def directory(self) -> str:
        """Where the copy goes."""
        assert self._destination.request.directory is not None
        return saved_beside(self._destination.request.directory)

    def claim(self) -> None:
        """Take the place, read everything; raise ServerRefused when not even postgresql.conf can be had."""
        self._output.claim()
        if self._destination.request.copy_configuration:
            self._read()

    def commit(self, received: ReceivedBackup) -> StoredBackup:
        """Write what was read, or say what is missing, then commit the backup."""
        destination, reporter = self._destination, self._destination.reporter
        if self._saved is not None:
            write_configuration(self.directory, self._saved, sync=destination.request.sync)
            reporter.step(f'{len(self._saved.files)} configuration files are kept in "{self.directory}"')
        else:
            for path in received.linked_configuration:
                reporter.warning(
                    f'"{path}" is a link, or no regular file, in the data directory: it is not in the backup; keep a '
                    "copy of it with the backup: --copy-configuration"
                )
            if not received.linked_configuration:
                self._say_outside(received)
        return self._output.commit(received)

    def _read(self) -> None:
        found = read_server_configuration(self._connector, port=self._port, is_here=self._is_here)
        role = quote_identifier(self._connector.user or "ROLE")
        if found is None or found.files.get(found.places["config_file"]) is None:
            what = "know where the configuration files are"
            if found is not None:
                what = f"read {found.places['config_file']}"
            raise ServerRefused(
                f"--copy-configuration: the role may not {what}",
                hint=f"as a superuser: GRANT pg_read_all_settings, pg_read_server_files TO {role}; "
                f"GRANT {READ_GRANT} TO {role}; GRANT {LIST_GRANT} TO {role}; or run the backup on the server's host, "
                "as a user who can read the files",
            )
        missing = tuple(found.unreadable)
        self._destination.created.claim(self.directory)
        self._saved = SavedConfiguration(
            data_directory=found.data_directory,
            places=found.places,
            files={path: content for path, content in found.files.items() if content is not None},
            directories=found.directories,
            missing=missing,
        )
        if missing:
            self._destination.reporter.warning(
                f"these configuration files cannot be read and are not in the copy: {', '.join(missing)}"
            )

    def _say_outside(self, received: ReceivedBackup) -> None:
        """Say that the backup lacks configuration, and where that is, if anybody tells; nothing where it has all."""
        lines = named_outside(received.configuration)
        if not received.lacks_configuration and not lines:
            return
        found = read_server_configuration(self._connector, port=self._port, is_here=self._is_here)
        outside = found.outside if found is not None else []
        if received.lacks_configuration:
            what = "the server's configuration files lie outside of its data directory and are not in the backup"
            where = f": {', '.join(outside)}" if outside else ""
        elif outside:
            what = (
                "configuration files that the server reads lie outside of its data directory and are not in the backup"
            )
            where = f": {', '.join(outside)}"
        elif found is None:
            # Who may only stream is not told where the data directory is: a full path may lead into it.
            what = "configuration files that are named by their paths are not in the backup unless they lie in the data"
            where = f" directory: {', '.join(lines)}"
        else:
            return
        self._destination.reporter.note(f"{what}{where}; add --copy-configuration to keep them beside it")


def named_outside(files: Mapping[str, bytes]) -> list[str]:
    """Return the lines of a data directory's configuration that lead, or may lead, out of it, each with its target.

    files: contents by name, relative to the data directory, of postgresql.conf, pg_hba.conf, pg_ident.conf and of what
    they include by a relative name.
    """
    known = {posixpath.join(_DATA, name): content for name, content in files.items()}
    configuration = Configuration(_DATA, MemoryReader(known))
    found = {(bad.path, bad.line): bad.target for bad in (*configuration.outside_includes, *configuration.bad_includes)}
    for name in ("hba_file", "ident_file", "hosts_file"):
        winner = configuration.winner(name)
        if winner is not None and winner.value:
            found[winner.path, winner.line] = posixpath.normpath(posixpath.join(_DATA, winner.value))
    for name in ("pg_hba.conf", "pg_ident.conf"):
        path = posixpath.join(_DATA, name)
        for reference in references(known.get(path, b"")):
            found[path, reference.first_line] = reference.path_from(path)
    return [
        f"{target} ({posixpath.relpath(path, _DATA)} line {line})"
        for (path, line), target in found.items()
        if not target.startswith(_DATA + "/")
    ]
