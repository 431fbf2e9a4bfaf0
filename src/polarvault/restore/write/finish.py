"""After the files are laid out: links, settings, signal file, checks, durability, and pg_control last of all."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager

from polarvault.backupset.model import CONTROL_NAME
from polarvault.backupset.skeleton import missing_directories, missing_in_shared_half, missing_of_local_half
from polarvault.errors import BackupUnusable, IntegrityError, StartFailed
from polarvault.instance.account import working_as_account
from polarvault.instance.host import Host
from polarvault.instance.model import Account, Binaries
from polarvault.instance.programs import ProgramFailed, ask_setting
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.pgconf.configuration import ConfigReader, Configuration, MemoryReader
from polarvault.pgfiles.control import parse_known_control, system_identifier_of
from polarvault.polardb.settings import DATADIR, SHARED_STORAGE_MODE, is_true, names_directory
from polarvault.restore.model import RestorePlan
from polarvault.restore.write.mark import unmark_targets
from polarvault.restore.write.wal_check import check_own_wal, is_supplied_elsewhere
from polarvault.storage.files import fsync_tree, storage_failed, write_durably
from polarvault.storage.occupants import CONTROL_WAITING_NAME
from polarvault.storage.trees.local import LocalWritableTree
from polarvault.storage.trees.model import WritableTree
from polarvault.storage.trees.small_files import is_directory, make_directories, read_file
from polarvault.wal.segment_header import LONG_HEADER_BYTES, parse_segment_header

# Many databases of a PolarDB have a directory each; these tell enough.
_SHOWN_DIRECTORIES = 8
_CLUSTER_SETTINGS = "global/polar_settings.conf"
_SEGMENT = re.compile(r"[0-9A-F]{24}\Z")


class Completion:
    """What is done before and after files are laid out; pg_control makes the restore valid, last of all.

    data: where pg_control, relations and WAL are; None for a directory of this machine, which is then opened.
    """

    def __init__(self, data: WritableTree | None = None) -> None:
        self._data = data

    def begin(self, plan: RestorePlan, account: Account, *, file_mode: int) -> None:
        """Do nothing: without pg_control no server starts from what is laid out."""

    def finish(self, plan: RestorePlan, account: Account, *, file_mode: int, directory_mode: int) -> list[str]:
        """Make the laid-out files a cluster that starts; return warnings. On return everything is durable."""
        with ExitStack() as stack:
            with working_as_account(account):
                data = stack.enter_context(self._opened(plan))
                warnings = _complete(plan, data, file_mode=file_mode, directory_mode=directory_mode)
            warnings += check_own_wal(plan, data)
            warnings += check_settings(plan, plan.binaries, account, data=self._data)
            with working_as_account(account):
                _sync(plan)
                unmark_targets(plan, self._data)
                _put_control_in_place(plan, data)
        return warnings

    @contextmanager
    def _opened(self, plan: RestorePlan) -> Iterator[WritableTree]:
        """Have the tree of the data; the caller works as the account."""
        if self._data is not None:
            yield self._data
            return
        try:
            # A target that was there before may have a link for its pg_wal.
            tree = LocalWritableTree(plan.layout.data, links=lambda name: name == "pg_wal")
        except OSError as problem:
            raise storage_failed(problem, "open", plan.layout.data) from problem
        with closing(tree):
            yield tree

    def undo(self, plan: RestorePlan) -> None:
        """Do nothing before everything is removed, in whatever order."""


class LayingOnly(Completion):
    """Makes the laid-out files a plain backup again: links and pg_control, and no settings or signal files."""

    def finish(self, plan: RestorePlan, account: Account, *, file_mode: int, directory_mode: int) -> list[str]:
        """Complete them; on return everything is durable."""
        with working_as_account(account), self._opened(plan) as data:
            try:
                _check_control(plan, data)
                warnings = _complete_directories(plan, data, directory_mode)
                _link_tablespaces(plan, directory_mode)
            except OSError as problem:
                raise storage_failed(problem, "complete", plan.layout.local) from problem
            _sync(plan)
            unmark_targets(plan, self._data)
            _put_control_in_place(plan, data)
        return warnings


def _complete(plan: RestorePlan, data: WritableTree, *, file_mode: int, directory_mode: int) -> list[str]:
    try:
        wal_segment_size = _check_control(plan, data)
        warnings = _complete_directories(plan, data, directory_mode)
        _complete_wal_segments(plan, data, wal_segment_size)
        _link_tablespaces(plan, directory_mode)
        _make_directories_of_configuration(plan, directory_mode)
        _write_files({**plan.files, plan.signal_path: b""}, file_mode)
    except OSError as problem:
        raise storage_failed(problem, "complete", plan.layout.local) from problem
    return warnings


def _sync(plan: RestorePlan) -> None:
    """Make all that lies in directories of this machine durable; what lies in PFS is."""
    if not plan.request.sync:
        return
    for root in plan.layout.outer_roots:
        fsync_tree(root)
    wal_directory = os.path.join(plan.layout.data, "pg_wal")
    if os.path.islink(wal_directory):
        # Of a target that was there before: its files lie in no root.
        fsync_tree(os.path.realpath(wal_directory))


def _check_control(plan: RestorePlan, data: WritableTree) -> int | None:
    """Raise BackupUnusable for a pg_control that is not the backup's; return the WAL segment size that it names.

    None: it is of a newer server.
    """
    try:
        content = read_file(data, CONTROL_WAITING_NAME)
    except FileNotFoundError:
        raise BackupUnusable(
            f'"{plan.source.path}" holds no global/pg_control', hint="the backup is incomplete; restore another one"
        ) from None
    control = parse_known_control(content, plan.major_version)
    system_identifier = system_identifier_of(content)
    claimed = plan.source.description.get("system_identifier")
    if claimed is not None and str(claimed) != str(system_identifier):
        raise BackupUnusable(
            f"the halves do not belong together: the description names system identifier {claimed}, "
            f"pg_control {system_identifier}",
            hint="give the shared half of this very backup: --shared-from DIRECTORY",
        )
    return None if control is None else control.wal_segment_size


def _complete_directories(plan: RestorePlan, data: WritableTree, directory_mode: int) -> list[str]:
    """Make the empty directories that whatever copied the backup has dropped; return a warning that names them."""
    local, shared = plan.layout.local, plan.layout.shared
    in_pfs: list[str] = []
    if plan.layout.pfs is None:
        missing = missing_directories(local, shared)
    else:
        in_pfs = missing_in_shared_half(lambda name: is_directory(data, name))
        databases = [entry.name for entry in data.list("base")] if is_directory(data, "base") else []
        missing = missing_of_local_half(local, databases)
    for name in in_pfs:
        make_directories(data, name, directory_mode)
    for path in missing:
        os.makedirs(path, exist_ok=True)
        # A parent can be missing too, and no line of the list names it.
        while path not in plan.layout.roots:
            os.chmod(path, directory_mode)
            path = os.path.dirname(path)
    every = [*(os.path.relpath(path, local) for path in missing), *map(data.path, in_pfs)]
    if not every:
        return []
    shown = ", ".join(every[:_SHOWN_DIRECTORIES])
    more = f" and {len(every) - _SHOWN_DIRECTORIES} more" if len(every) > _SHOWN_DIRECTORIES else ""
    return [f"directories that a server needs are missing in the backup and were made, empty: {shown}{more}"]


def _complete_wal_segments(plan: RestorePlan, data: WritableTree, size: int | None) -> None:
    """Give every WAL segment its full length: the server refuses shorter ones, and a hole costs nothing.

    size None: each segment's own first page tells, as it does in every version.
    """
    for entry in data.list("pg_wal") if is_directory(data, "pg_wal") else []:
        if not _SEGMENT.match(entry.name):
            continue
        name = f"pg_wal/{entry.name}"
        whole = size or _size_of_segment(data, name)
        if whole is None or entry.size_bytes >= whole:
            continue
        _check_length(plan, WalSegment.parse(entry.name, whole), entry.size_bytes)
        data.set_length(name, whole)


def _check_length(plan: RestorePlan, segment: WalSegment, length: int) -> None:
    """Raise IntegrityError for a segment that ends before the WAL which the backup itself needs from it.

    Zeros in its place would look like the end of the WAL, and nobody would hear of it before the server refuses them.
    """
    label, request = plan.label, plan.request
    if label is None or is_supplied_elsewhere(request) or segment.timeline_id != label.timeline_id:
        return
    if request.force or request.reports_damage:
        return
    ends = [span.end_lsn for span in plan.inventory.spans if span.end_timeline_id == label.timeline_id]
    # Without a manifest only where recovery starts is known.
    end = min(segment.end, max(ends, default=Lsn(label.start_lsn + 1)))
    if segment.end > label.start_lsn and end > segment.start + length:
        raise IntegrityError(
            f'WAL segment {segment.file_name} of "{plan.source.path}" is damaged: it is {length} bytes long, and the '
            f"backup needs its WAL up to {end}; what was restored so far has been removed",
            hint="name a directory that holds a good copy: --wal DIR; or restore it as it is: --force",
        )


def _size_of_segment(data: WritableTree, name: str) -> int | None:
    file = data.open(name)
    try:
        head = bytearray(LONG_HEADER_BYTES)
        header = parse_segment_header(bytes(head[: file.read_into(0, memoryview(head))]))
    finally:
        file.close()
    return None if header is None else header.segment_size_bytes


def _link_tablespaces(plan: RestorePlan, directory_mode: int) -> None:
    directory = os.path.join(plan.layout.local, "pg_tblspc")
    if plan.layout.tablespaces and not os.path.isdir(directory):
        os.mkdir(directory, directory_mode)
    missing = {space.oid for space in plan.inventory.tablespaces if space.is_missing}
    for oid, location in plan.layout.tablespaces.items():
        link = os.path.join(directory, str(oid))
        # A target that was there before may have it.
        if not (os.path.islink(link) and os.readlink(link) == location):
            os.symlink(location, link)
        control = plan.inventory.control
        if oid in missing and control is not None:
            # The server makes directories of databases in it, and none above those (server: commands/tablespace.c).
            os.makedirs(os.path.join(location, f"PG_{plan.major_version}_{control.catalog_version}"), directory_mode)


def _make_directories_of_configuration(plan: RestorePlan, directory_mode: int) -> None:
    """Make what kept configuration needs in the data directory, such as conf.d; an empty one counts as well."""
    if plan.put_back is None or plan.put_back.cluster is not None:
        return
    wanted = {*plan.put_back.directories, *map(os.path.dirname, plan.put_back.files)}
    for path in sorted(wanted):
        os.makedirs(path, directory_mode, exist_ok=True)


def _write_files(files: Mapping[str, bytes], file_mode: int) -> None:
    for path, content in files.items():
        # Not synced one by one: fsync_tree does all of them at the end.
        write_durably(path, content, mode=file_mode, sync=False)


def _put_control_in_place(plan: RestorePlan, data: WritableTree) -> None:
    # The rename makes the restore valid, so everything before it must be durable, and it must be durable itself.
    try:
        data.rename(CONTROL_WAITING_NAME, CONTROL_NAME)
        if plan.request.sync:
            data.sync_directory(posixpath.dirname(CONTROL_NAME))
    except OSError as problem:
        raise storage_failed(problem, "rename", data.path(CONTROL_WAITING_NAME)) from problem


def check_settings(
    plan: RestorePlan, binaries: Binaries | None, account: Account, *, data: WritableTree | None = None
) -> list[str]:
    """Prove that a start would use the restored places and not the source's; return warnings.

    A restored local half that still names live storage starts as a second writer there and destroys data: PolarDB has
    no lock on it (facts 4.2). The server's own reading counts; our reading of the files is the fallback.
    """
    main_file = plan.debian.main_file if plan.debian else None
    reader, cluster_file = _reader(plan, data)
    files = Configuration(plan.layout.local, reader, cluster_file=cluster_file, main_file=main_file)
    _check_datadir(files.value(DATADIR), plan)
    if plan.layout.merged and is_true(files.value(SHARED_STORAGE_MODE)):
        raise _points_elsewhere(SHARED_STORAGE_MODE, "on", "off", plan)
    if binaries is None:
        return ["no fitting server programs were found, so `postgres -C` could not confirm the settings"]
    try:
        directory = ask_setting(binaries, plan.layout.local, "data_directory", account, config_file=main_file)
        if plan.layout.shared:
            _check_datadir(ask_setting(binaries, plan.layout.local, DATADIR, account, config_file=main_file), plan)
    except ProgramFailed as problem:
        if plan.is_polardb or plan.request.start:
            raise
        return [problem.message]
    if os.path.realpath(directory) != os.path.realpath(plan.layout.local):
        raise _points_elsewhere("data_directory", directory, plan.layout.local, plan)
    return []


def _reader(plan: RestorePlan, data: WritableTree | None) -> tuple[ConfigReader, str | None]:
    """Return what reads the configuration, and what it calls the settings of the whole cluster, if there are any."""
    path = os.path.join(plan.layout.data, _CLUSTER_SETTINGS)
    if data is None:
        return Host(), path if os.path.exists(path) else None
    try:
        content = read_file(data, _CLUSTER_SETTINGS)
    except FileNotFoundError:
        return Host(), None
    except OSError as problem:
        raise storage_failed(problem, "read", path) from problem
    return MemoryReader({path: content}, fallback=Host(), is_ours=lambda one: one == path), path


def _check_datadir(found: str | None, plan: RestorePlan) -> None:
    if plan.layout.shared and not names_directory(found, plan.layout.shared):
        raise _points_elsewhere(DATADIR, found, plan.layout.shared, plan)


def _points_elsewhere(name: str, found: str | None, expected: str, plan: RestorePlan) -> StartFailed:
    return StartFailed(
        f"the restored settings still point elsewhere: {name} is {found!r} and must be {expected!r}",
        hint=f"a start could damage the source; look for {name} in the settings and in --set; nothing is left in "
        f"{plan.layout.local}",
    )
