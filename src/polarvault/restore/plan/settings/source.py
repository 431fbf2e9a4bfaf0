"""What came with the backup and points at its source: switched off, or turned to what is here. Pure."""

from __future__ import annotations

import posixpath

from polarvault.polardb.settings import is_true
from polarvault.restore.plan.outside import DEBIANS_SOCKETS, SSL_FILES, absolute, socket_directories
from polarvault.restore.plan.settings.archiving import archive_settings, archive_warnings
from polarvault.restore.plan.settings.book import NOTE, SettingsBook
from polarvault.restore.plan.settings.confined import (
    LIBRARY_LISTS,
    LIBRARY_PATH,
    without_brought_directories,
    without_brought_libraries,
)

_POINT_AT_SOURCE = (
    ("primary_conninfo", "would follow the source's primary"),
    ("primary_slot_name", "would use the source's slot"),
    ("restore_command", "the WAL archive of the source is used only when --wal names it"),
    ("archive_cleanup_command", "would delete from the source's WAL archive"),
    ("recovery_end_command", "was meant for another recovery"),
    ("promote_trigger_file", "was meant for another server"),
    ("recovery_target", "was meant for another recovery"),
    ("recovery_target_action", "was meant for another recovery"),
    ("recovery_target_inclusive", "was meant for another recovery"),
    ("recovery_target_lsn", "was meant for another recovery"),
    ("recovery_target_name", "was meant for another recovery"),
    ("recovery_target_time", "was meant for another recovery"),
    ("recovery_target_timeline", "was meant for another recovery"),
    ("recovery_target_xid", "was meant for another recovery"),
    ("recovery_min_apply_delay", "would hold recovery back"),
    ("data_directory", "names the source's data directory"),
    ("external_pid_file", "names a file of the source"),
)
_ARCHIVE_OF_SOURCE = (
    ("archive_command", "would write into the source's WAL archive"),
    ("archive_library", "would write into the source's WAL archive"),
)
_OUTSIDE_PATHS = (
    ("hba_file", "names a file outside of the restored directory"),
    ("ident_file", "names a file outside of the restored directory"),
    ("hosts_file", "names a file outside of the restored directory"),
    ("log_directory", "would mix this server's log with the source's"),
    ("stats_temp_directory", "would be shared with the source"),
    ("log_filename", "would mix this server's log with the source's"),
    ("krb_server_keyfile", "names a file outside of the restored directory"),
)
# Where a relative one begins, if that is not the data directory.
_RELATIVE_TO = {"log_filename": "log_directory"}


def cut_off_from_source(book: SettingsBook) -> None:
    """Take away what names the source's places, and switch its archive off."""
    if book.request.confined_to is not None:
        _leave_out_what_the_backup_brings(book)
    _check_includes(book)
    sources_archive_command = book.value("archive_command")
    for name, why in _POINT_AT_SOURCE:
        book.disable(name, why)
    for name, why in _OUTSIDE_PATHS:
        _disable_outside_path(book, name, why)
    _settle_ssl(book)
    _settle_sockets(book)
    if not book.request.recovery.keep_archiving:
        for name, why in _ARCHIVE_OF_SOURCE:
            book.disable(name, why)
        book.set_all(archive_settings(book.request))
    book.warnings += archive_warnings(book.request, sources_archive_command)
    if book.is_from_the_source("huge_pages") and is_true(book.value("huge_pages")):
        book.set("huge_pages", "try", "this machine may have none reserved")


def _leave_out_what_the_backup_brings(book: SettingsBook) -> None:
    """Keep a throw-away copy from files outside of it, and from libraries inside of the backup."""
    for include in list(book.configuration.outside_includes):
        book.warnings.append(
            f'{posixpath.basename(include.path)} line {include.line} includes "{include.target}", '
            "which is outside of the backup: the line is commented out"
        )
        book.configuration.disable_include(include, f"{NOTE}: outside of the copy")
    asked = {name.lower() for name, _ in book.request.settings}
    for name in (*LIBRARY_LISTS, LIBRARY_PATH):
        value = book.value(name)
        if value is None or name in asked:
            continue
        leave_out = without_brought_directories if name == LIBRARY_PATH else without_brought_libraries
        kept, dropped = leave_out(value, book.request.backup)
        if dropped:
            book.warnings.append(f"{name}: {', '.join(dropped)} lies in the backup, and is left out")
            book.set(name, kept, "libraries that a backup brings along are not loaded")


def _check_includes(book: SettingsBook) -> None:
    for include in list(book.configuration.bad_includes):
        book.warnings.append(
            f'{posixpath.basename(include.path)} line {include.line} includes "{include.target}", '
            "which is not here: the line is commented out"
        )
        book.configuration.disable_include(include, f"{NOTE}: the file is not here")
    cluster = book.facts.host.cluster
    own = cluster.directory + "/" if cluster else None
    for path in book.configuration.outside_files():
        if own and path.startswith(own):
            continue
        if not path.endswith("global/polar_settings.conf"):
            book.warnings.append(f'the settings include "{path}", outside of the restored directory')


def _disable_outside_path(book: SettingsBook, name: str, why: str) -> None:
    value = book.value(name)
    if not value or not book.is_from_the_source(name):
        return
    base = (book.value(_RELATIVE_TO[name]) or "log") if name in _RELATIVE_TO else ""
    if not _is_inside(book, absolute(book.layout, value, base=base)):
        book.disable(name, why)


def _is_inside(book: SettingsBook, path: str) -> bool:
    return path.startswith(book.layout.local + "/")


def _settle_ssl(book: SettingsBook) -> None:
    missing = []
    if book.facts.host.cluster is not None and not book.is_from_the_source("ssl"):
        return
    for name, default in SSL_FILES:
        value = book.value(name) or default
        if not value or book.exists(absolute(book.layout, value)):
            continue
        if default:
            missing.append(value)
        elif book.value(name):
            book.disable(name, f"{value} is not here")
    if missing and is_true(book.value("ssl")):
        book.warnings.append(f"ssl is switched off, because {', '.join(missing)} is not here")
        book.set("ssl", "off", f"{missing[0]} is not here")


def _settle_sockets(book: SettingsBook) -> None:
    name = "unix_socket_directories"
    directories, host = socket_directories(book.configuration), book.facts.host
    if directories is None:
        # What no file sets is decided by how the programs were built, and Debian's have a directory of one group.
        is_closed = book.exists(DEBIANS_SOCKETS) and DEBIANS_SOCKETS not in host.outside.sockets
        if host.cluster is None and is_closed:
            book.set(name, "/tmp", f"only group postgres may use {DEBIANS_SOCKETS}, the default of Debian's programs")
        return
    if not book.is_from_the_source(name):
        return
    usable = [part for part in directories if part.startswith("@") or _is_usable_socket_directory(book, part)]
    if usable != directories:
        book.set(name, ", ".join(usable) or "/tmp", "the source's directory cannot be used here")


def _is_usable_socket_directory(book: SettingsBook, directory: str) -> bool:
    path = absolute(book.layout, directory)
    if path != book.layout.local and not _is_inside(book, path):
        return path in book.facts.host.outside.sockets
    # What is not there yet, but lies in the backup, will be.
    return path == book.layout.local or book.exists(path)
