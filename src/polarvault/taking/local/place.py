"""Where the server's files are on this host, and whether they are this server's: else the reason why not.

A directory at the right path with the right system identifier may be a copy (restored there, or another container's).
It is this server's own only if its postmaster.pid tells the start that the server tells of itself, and if its
pg_control is what the server reads from its own (`pg_control_checkpoint()`), at one moment.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Callable
from dataclasses import dataclass

from polarvault.errors import IntegrityError, PolarvaultError, ServerError
from polarvault.instance.lock_file import LOCK_FILE_NAME
from polarvault.model import limits, versions
from polarvault.model.lsn import Lsn
from polarvault.pgfiles.control import ControlFile, parse_control
from polarvault.polardb.settings import CLUSTER_NAME, DATADIR, LOCALFS_MODE, SHARED_STORAGE_MODE, pfs_path_of
from polarvault.server.connection import Connection, Connector, is_on_this_machine
from polarvault.server.identity import ServerIdentity, show
from polarvault.storage.trees.local import LocalTree
from polarvault.storage.trees.model import Tree
from polarvault.storage.trees.pfs.mount import DEFAULT_CLUSTER, PfsMount
from polarvault.taking.local.rules import CONTROL_FILE
from polarvault.wire.messages import parse_lsn

# Between the start of the process, which postmaster.pid has, and the moment that the server calls its start lie reading
# the configuration and getting the memory: of a large one with huge pages, seconds.
_START_TAKES_S = 120
_START_LINE = 2
_LOOKS = 5
_LOCAL_SCHEME = re.compile(r"(?:file|file-dio)://")
_OTHER_SCHEME = re.compile(r"[a-z][a-z-]*://")
_CONTROL = """
SELECT s.system_identifier, c.checkpoint_lsn, c.redo_lsn, c.timeline_id
FROM pg_catalog.pg_control_checkpoint() c, pg_catalog.pg_control_system() s
"""
_FACTS = """
SELECT pg_catalog.current_setting('data_directory'), floor(extract(epoch FROM pg_catalog.pg_postmaster_start_time())),
pg_catalog.has_function_privilege('pg_catalog.{}', 'EXECUTE')
AND pg_catalog.has_function_privilege('pg_catalog.{}', 'EXECUTE')
"""


class NotHere(Exception):
    """The server's files cannot be read here; says why. is_plain: there is nothing strange about it."""

    def __init__(self, why: str, *, what_to_do: str, is_plain: bool = False) -> None:
        super().__init__(why)
        self.why, self.what_to_do, self.is_plain = why, what_to_do, is_plain


@dataclass(frozen=True, slots=True)
class LocalPlace:
    """The directories of a server, open for reading, and the session that they were compared with.

    shared: PolarDB's shared half, None elsewhere. open_location: opens the tree of a tablespace by its absolute path.
    """

    data: Tree
    shared: Tree | None
    sql: Connection
    control: ControlFile
    open_location: Callable[[str], Tree]

    @property
    def addresses(self) -> str:
        """What the trees are called, for people."""
        trees = [self.data] if self.shared is None else [self.data, self.shared]
        return " and ".join(tree.address for tree in trees)

    def close(self) -> None:
        """Close everything."""
        self.data.close()
        if self.shared is not None:
            self.shared.close()
        self.sql.close()


def find_place(connector: Connector, connection: Connection, identity: ServerIdentity) -> LocalPlace:
    """Return the server's directories on this host; raise NotHere.

    connection: a replication connection to the server, which tells where that is.
    """
    if not is_on_this_machine(connection):
        raise NotHere(
            "the server is on another machine", is_plain=True,
            what_to_do="run the command on the server's host, connected by its socket: -h DIRECTORY",
        )  # fmt: skip
    try:
        sql = connector.sql()
    except PolarvaultError as problem:
        raise NotHere(
            f"the role may not open an SQL session: {problem.message}",
            what_to_do="add a line for the role and the database postgres to pg_hba.conf",
        ) from None
    opened: list[Tree] = []
    try:
        return _open(sql, identity, opened)
    except BaseException:
        sql.close()
        for tree in opened:
            tree.close()
        raise


def _open(sql: Connection, identity: ServerIdentity, opened: list[Tree]) -> LocalPlace:
    directory, started = _ask_facts(sql, identity)
    data = _tree(directory)
    opened.append(data)
    shared = None
    if identity.shared_data_directory is not None:
        shared = open_shared_half(sql, identity.shared_data_directory, directory)
        opened.append(shared)
    _compare_start(data, started)
    control = _compare_control(sql, shared or data, identity)
    return LocalPlace(data, shared, sql, control, _tree)


def _ask_facts(sql: Connection, identity: ServerIdentity) -> tuple[str, int]:
    """Return the data directory and the start of the server, in seconds since 1970."""
    functions = versions.of_server(identity.version_num).backup_functions
    role = "the role"
    try:
        row = sql.query(_FACTS.format(*functions)).rows[0]
    except ServerError as problem:
        raise NotHere(
            f"{role} is not told where the data directory is: {problem.message}",
            what_to_do="as a superuser: GRANT pg_read_all_settings TO the role",
        ) from None
    except PolarvaultError as problem:
        raise NotHere(problem.message, what_to_do="see the server's log") from None
    if row[2] != "t":
        names = " and ".join(functions)
        raise NotHere(
            f"{role} may not call {names}",
            what_to_do="as a superuser: "
            + "; ".join(f"GRANT EXECUTE ON FUNCTION {name} TO the role" for name in functions),
        )
    if row[0] is None or row[1] is None or not os.path.isabs(row[0]):
        raise NotHere("the server does not tell where its data directory is", what_to_do="see SHOW data_directory")
    return row[0], int(row[1])


def open_shared_half(sql: Connection, setting: str, data_directory: str) -> Tree:
    """Open PolarDB's shared half, a directory of this machine or one in PFS; raise NotHere."""
    settings = {name: show(sql, name) for name in (SHARED_STORAGE_MODE, LOCALFS_MODE, CLUSTER_NAME)}
    address = pfs_path_of({**settings, DATADIR: setting}.get)
    if address is not None:
        return _open_pfs(PfsMount(address, cluster=settings[CLUSTER_NAME] or DEFAULT_CLUSTER))
    path = _LOCAL_SCHEME.sub("", setting)
    if _OTHER_SCHEME.match(path):
        raise NotHere(f"the shared half is at {setting}, no local directory", what_to_do="--source stream")
    return _tree(os.path.normpath(os.path.join(data_directory, path)))


def _open_pfs(mount: PfsMount) -> Tree:
    """Mount for reading, as a host that nobody is: the server goes on undisturbed."""
    # Loaded here: ordinary servers do without.
    from polarvault.storage.trees.pfs.tree import PfsTree

    try:
        return PfsTree(mount)
    except OSError as problem:
        hint = getattr(problem, "hint", None)
        raise NotHere(
            f'"{mount.address}" cannot be read here: {problem.strerror}', what_to_do=hint or "--source stream"
        ) from None


def _tree(directory: str) -> LocalTree:
    try:
        return LocalTree(directory, links=lambda name: name == "pg_wal")
    except OSError as problem:
        raise _unreadable(directory, problem) from None


def _unreadable(path: str, problem: OSError) -> NotHere:
    try:
        account = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        account = str(os.geteuid())
    return NotHere(
        f'"{path}" cannot be read as {account}: {problem.strerror}',
        what_to_do="run the command as the account of the server, on its host",
    )


def _compare_start(data: Tree, started: int) -> None:
    """Compare postmaster.pid with what the server says of its start; raise NotHere."""
    content = _read(data, LOCK_FILE_NAME, "no server runs there")
    lines = content.decode("utf-8", "replace").splitlines()
    text = lines[_START_LINE].strip() if len(lines) > _START_LINE else ""
    if re.fullmatch(r"[0-9]{1,12}", text) is None or not int(text) - 1 <= started <= int(text) + _START_TAKES_S:
        raise NotHere(
            f"{data.path(LOCK_FILE_NAME)} is another server's: the start that it has is not this server's",
            what_to_do="see what runs there, and where this server's data directory is (a container's path?)",
        )


def _compare_control(sql: Connection, tree: Tree, identity: ServerIdentity) -> ControlFile:
    """Compare pg_control with what the server reads of it; raise NotHere."""
    for _ in range(_LOOKS):
        control = read_control(tree)[1]
        row = sql.query(_CONTROL).rows[0]
        # The function gives the identifier as a signed number.
        told = int(row[0] or 0) & (1 << 64) - 1, row[1], row[2], row[3]
        found = control.system_identifier, control.checkpoint_lsn, control.redo_lsn, control.timeline_id
        if (told[0], *map(_lsn, told[1:3]), int(told[3] or 0)) == found and str(found[0]) == identity.system_identifier:
            return control
    raise NotHere(
        f"{tree.path(CONTROL_FILE)} is not this server's: it has {control.checkpoint_lsn}, the server {row[1]}",
        what_to_do="see whether the directory is a copy, and where this server's own is",
    )


def read_control(tree: Tree) -> tuple[bytes, ControlFile]:
    """Return pg_control and what it says; it is read again while the server is writing it. Raise NotHere."""
    for attempt in range(_LOOKS):
        content = _read(tree, CONTROL_FILE, "this is no data directory")
        try:
            return content, parse_control(content, tree.path(CONTROL_FILE))
        except IntegrityError as problem:
            if attempt == _LOOKS - 1:
                raise NotHere(problem.message, what_to_do="--source stream") from None
    raise AssertionError("unreachable")


def _read(tree: Tree, name: str, without: str) -> bytes:
    try:
        file = tree.open(name)
        try:
            buffer = bytearray(min(file.size(), limits.SMALL_FILE_BYTES))
            return bytes(buffer[: file.read_into(0, memoryview(buffer))])
        finally:
            file.close()
    except FileNotFoundError:
        raise NotHere(
            f"{tree.path(name)} is not there: {without}",
            what_to_do="see where this server's data directory is (a container's path?)",
        ) from None
    except OSError as problem:
        raise _unreadable(tree.path(name), problem) from None


def _lsn(text: str | None) -> Lsn:
    return parse_lsn(text or "", "a position in its pg_control")
