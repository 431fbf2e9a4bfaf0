"""Backups that have to be put together first: a chain of incremental ones, or one tar from a pipe.

What comes of it lies in a directory of its own inside of the target, and is moved into place from there by the ordinary
restore: so it takes no more space, nothing in the target can be started before all is done, and an undo removes it.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import BinaryIO

from polarvault.backupset.backup import DeliveryStopped, Entry, LocalFile
from polarvault.backupset.listing import key_of
from polarvault.backupset.reading.tarstream import read_tar_stream
from polarvault.backupset.source import find_backup
from polarvault.errors import BackupUnusable, PolarvaultError
from polarvault.instance.account import working_as_account
from polarvault.instance.model import Account
from polarvault.instance.programs import run_program
from polarvault.pgfiles.tar import MemberBegins, MemberData, MemberEnds, MemberKind, is_safe_name
from polarvault.restore.model import STAGING_NAME, Link, RestorePlan
from polarvault.restore.write.content_checks import ContentChecks
from polarvault.storage.copying import read_through
from polarvault.storage.files import storage_failed, write_all
from polarvault.storage.waiting import wait_for

Progress = Callable[[int], None]


def staging_of(directory: str) -> str:
    """Return where something is put together for a target directory."""
    return os.path.join(directory, STAGING_NAME)


def remove_staging(plan: RestorePlan) -> None:
    """Remove what was moved out of; the caller works as the account."""
    for root in plan.layout.roots:
        shutil.rmtree(staging_of(root), ignore_errors=True)


def unpack_stream(stream: BinaryIO, directory: str, progress: Progress) -> None:
    """Unpack one tar from a pipe into a new directory; the caller works as the account.

    Raises IntegrityError for a tar that is cut or damaged. Nothing in it leads out of the directory.
    """
    descriptor, path = -1, directory
    try:
        os.mkdir(directory, 0o700)
        for event in read_tar_stream(stream):
            if isinstance(event, MemberBegins):
                member = event.member
                if not is_safe_name(member.name) or member.kind is MemberKind.SYMLINK:
                    continue
                path = os.path.join(directory, member.name)
                if member.kind is MemberKind.DIRECTORY:
                    os.makedirs(path, 0o700, exist_ok=True)
                    continue
                os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
                # The official PolarDB tool's tar holds some names twice, and the later one is right.
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
            elif isinstance(event, MemberData):
                if descriptor >= 0:
                    write_all(descriptor, event.views)
                progress(event.size)
            elif isinstance(event, MemberEnds) and descriptor >= 0:
                os.close(descriptor)
                descriptor = -1
    except OSError as problem:
        raise storage_failed(problem, "write", path) from problem
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def combine(plan: RestorePlan, account: Account) -> RestorePlan:
    """Combine a chain of incremental backups; return the plan with the combined backup as its source.

    The content of every link is compared with its manifest first. The caller has claimed the targets.
    """
    assert plan.combine_program is not None
    if plan.request.verify_checksums:
        for link in plan.chain:
            verify_link(plan, link, account)
    output = staging_of(plan.layout.local)
    words = [plan.combine_program, "-N", "--no-manifest", "-o", output]
    newest = plan.chain[-1]
    for space in newest.inventory.tablespaces:
        if space.copy is not None and space.oid in plan.layout.tablespaces:
            old = space.copy.replace("=", "\\=")
            words += ["-T", f"{old}={staging_of(plan.layout.tablespaces[space.oid])}"]
    words += [link.path for link in plan.chain]
    reader = _reader(plan, account)
    finished = run_program([*reader, *words], account, timeout_s=None, keeps_user=bool(reader))
    if finished.returncode != 0:
        raise _failed(plan, finished.stderr, account)
    with working_as_account(account):
        source = find_backup(output, force=True)
        inventory = source.look_through()
    # What is checked of it is checked: the links before, the rest by the program.
    request = replace(plan.request, verify_checksums=False)
    described = replace(source, path=plan.source.path, description=plan.source.description)
    found = replace(
        inventory, control=plan.inventory.control, listing=None, group_readable=plan.inventory.group_readable,
    )  # fmt: skip
    return replace(plan, request=request, source=described, inventory=found)


def _reader(plan: RestorePlan, account: Account) -> list[str]:
    """Return the words that let a program of the account read what only root may; none where it needs no help."""
    if os.geteuid() != 0:
        return []
    with working_as_account(account):
        files = [os.path.join(link.path, "PG_VERSION") for link in plan.chain]
        if all(os.access(path, os.R_OK, effective_ids=True) for path in files):
            return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        return []
    # It may read everything, and write as the account only. That no link leads out of the backups was looked at.
    who = [f"--reuid={account.uid}", f"--regid={account.gid}", "--clear-groups"]
    return [setpriv, *who, "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search", "--"]


def _failed(plan: RestorePlan, said: str, account: Account) -> BackupUnusable:
    words = said.strip() or "it said nothing"
    if "Permission denied" in words:
        return BackupUnusable(
            f"user {account.name}, who combines the backups, cannot read them",
            detail=words,
            hint=f"give them to this user, chown -R {account.name} BACKUP..., or name one that can: --owner USER",
        )
    return BackupUnusable(
        f'{plan.combine_program} could not combine the {len(plan.chain)} backups of "{plan.source.path}"',
        detail=words,
        hint="see what is wrong with each: polarvault verifybackup BACKUP",
    )


def verify_link(plan: RestorePlan, link: Link, account: Account) -> None:
    """Compare the content of a chain's backup with its manifest; raise IntegrityError for the first that differs."""
    own = replace(
        plan, source=link.source, inventory=link.inventory, disagreements=(),
        request=replace(plan.request, reports_damage=False),
    )  # fmt: skip
    checks = ContentChecks(own)
    jobs = plan.request.jobs or min(8, (os.cpu_count() or 1) + 1)
    stop = threading.Event()
    spaces = {space.oid for space in link.inventory.tablespaces}
    with (
        working_as_account(account),
        link.source.shares(link.inventory, _is_compared, tablespaces=spaces) as shares,
        ThreadPoolExecutor(jobs, thread_name_prefix="verify") as pool,
    ):
        futures = [pool.submit(share.deliver, _Comparing(checks, stop), stop) for share in shares]
        try:
            for done in wait_for(futures):
                done.result()
        except BaseException:
            # Workers look at it between steps.
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _is_compared(entry: Entry) -> bool:
    return entry.kind is MemberKind.FILE and not entry.name.startswith("pg_wal/")


class _Comparing:
    """Compares the files of a directory with the manifest. Implements `backupset.backup.FileSink`."""

    def __init__(self, checks: ContentChecks, stop: threading.Event) -> None:
        self._checks = checks
        self._stop = stop

    def begin(self, entry: Entry, local: LocalFile | None) -> bool:
        """Read a file to its end."""
        key = key_of(entry.area, entry.name, entry.tablespace_oid)
        digest = self._checks.digest(key)
        if digest is not None and local is not None:
            try:
                size = read_through(local.descriptor, local.size, digest, self._advance)
            except OSError as problem:
                raise storage_failed(problem, "read", local.path) from problem
            self._checks.judge(key, size, digest)
        return False

    def data(self, views: Sequence[memoryview]) -> None:
        """Incremental backups are directories: every file is here."""

    def end(self) -> None:
        """See `data`."""

    def place(self, entry: Entry, offset: int, view: memoryview) -> None:
        """See `data`."""

    def close(self) -> None:
        """Nothing is open."""

    def _advance(self, size: int) -> None:
        if self._stop.is_set():
            raise DeliveryStopped


def named_standard_input(problem: PolarvaultError, staging: str) -> None:
    """Make an error about what was unpacked speak of where it came from; what was unpacked is gone by then."""
    problem.message = problem.message.replace(f'"{staging}"', "the tar on standard input").replace(staging, "")
    problem.detail = problem.detail and problem.detail.replace(staging, "")
    if problem.hint and staging in problem.hint:
        problem.hint = "send another backup; to see all that is wrong with this one: ... | polarvault verifybackup -"
