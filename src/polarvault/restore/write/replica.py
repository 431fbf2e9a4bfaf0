"""Write a replica: files that a server could start from only when nothing can make it a second writer any more.

Without replica.signal the copy of a local half starts as a writer on live storage and destroys data; nothing locks it
(facts 5.1 and 6.3). Hence the order here: replica.signal is written before any other file, and postgresql.conf, without
which no server starts, is put in place last (PG_VERSION would not do: PolarDB starts without it). Nothing is ever
written to the storage.
"""

from __future__ import annotations

import os
from contextlib import suppress

from polarvault.errors import StartFailed
from polarvault.instance.account import working_as_account
from polarvault.instance.host import Host
from polarvault.instance.model import Account
from polarvault.instance.programs import ask_setting
from polarvault.pgconf.configuration import MAIN_FILE, Configuration, MemoryReader
from polarvault.polardb.settings import DATADIR, SHARED_STORAGE_MODE, is_true
from polarvault.restore.model import RestorePlan
from polarvault.restore.standby.live_storage import prove_storage
from polarvault.restore.write.finish import Completion
from polarvault.restore.write.mark import unmark_targets
from polarvault.storage.files import fsync_parent, fsync_tree, storage_failed, write_durably

_WAITING_SUFFIX = ".polarvault"


class ReplicaCompletion(Completion):
    """The steps of a replica; postgresql.conf makes it one that starts, last of all."""

    def __init__(self, host: Host) -> None:
        super().__init__()
        self._host = host

    def begin(self, plan: RestorePlan, account: Account, *, file_mode: int) -> None:
        """Prove whose storage it is; write replica.signal, before anything that a server could start from. Durable."""
        prove_storage(plan, self._host)
        try:
            with working_as_account(account):
                write_durably(plan.signal_path, b"", mode=file_mode, sync=plan.request.sync)
        except OSError as problem:
            raise storage_failed(problem, "write", plan.signal_path) from problem

    def finish(self, plan: RestorePlan, account: Account, *, file_mode: int, directory_mode: int) -> list[str]:
        """Make the laid-out local half a replica that starts; return warnings. On return everything is durable.

        Directories of databases that are newer than the backup are made by the server at every start of a replica.
        """
        local = plan.layout.local
        try:
            with working_as_account(account):
                for path, content in plan.files.items():
                    waiting = _WAITING_SUFFIX if path == _main_path(plan) else ""
                    # Not synced one by one: fsync_tree does all of them at the end.
                    write_durably(path + waiting, content, mode=file_mode, sync=False)
        except OSError as problem:
            raise storage_failed(problem, "complete", local) from problem
        warnings = _check_settings(plan, account)
        with working_as_account(account):
            if plan.request.sync:
                fsync_tree(local)
            unmark_targets(plan)
            _put_settings_in_place(plan)
        return warnings

    def undo(self, plan: RestorePlan) -> None:
        """Take postgresql.conf away, before an undo removes replica.signal in whatever order."""
        with suppress(OSError):
            os.unlink(_main_path(plan))


def _main_path(plan: RestorePlan) -> str:
    return os.path.join(plan.layout.local, MAIN_FILE)


def _check_settings(plan: RestorePlan, account: Account) -> list[str]:
    """Prove that a start would be a replica on the primary's storage, by our and the server's reading of the files."""
    local, datadir = plan.layout.local, plan.layout.live_datadir
    expected = {DATADIR: datadir, SHARED_STORAGE_MODE: "on", "archive_mode": "off"}
    main_path = _main_path(plan)
    reader = MemoryReader({main_path: plan.files[main_path]}, fallback=Host(), is_ours=lambda path: path == main_path)
    files = Configuration(local, reader)
    for name, value in expected.items():
        if files.value(name) != value and not (value == "on" and is_true(files.value(name))):
            raise _wrong_setting(name, files.value(name), value)
    if not os.path.exists(plan.signal_path):
        raise StartFailed(f'"{plan.signal_path}" is missing: a start would open the live storage as a second writer')
    if plan.binaries is None:
        return ["no fitting server programs were found, so `postgres -C` could not confirm the settings"]
    for name, value in {**expected, "restore_command": ""}.items():
        found = ask_setting(plan.binaries, local, name, account, config_file=main_path + _WAITING_SUFFIX)
        if found != value:
            raise _wrong_setting(name, found, value)
    return []


def _wrong_setting(name: str, found: str | None, expected: str | None) -> StartFailed:
    return StartFailed(
        f"the settings would not make a replica: {name} is {found!r} and must be {expected!r}; nothing is left",
        hint=f"look for {name} in the settings of the source and in --set",
    )


def _put_settings_in_place(plan: RestorePlan) -> None:
    final = _main_path(plan)
    waiting = final + _WAITING_SUFFIX
    try:
        os.rename(waiting, final)
    except OSError as problem:
        raise storage_failed(problem, "rename", waiting) from problem
    if plan.request.sync:
        fsync_parent(final)
