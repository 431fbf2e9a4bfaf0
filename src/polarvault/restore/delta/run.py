"""A delta restore from the plan to a target that starts: the counterpart of `run.write_files`, and its dry run."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from polarvault.backupset.model import CONTROL_NAME
from polarvault.errors import Interrupted, PolarvaultError, TargetNotEmpty
from polarvault.instance.account import working_as_account
from polarvault.repository.reading.as_backup import BackupInRepository
from polarvault.restore.delta.bring import Bringing, Progress
from polarvault.restore.delta.files import TargetFiles
from polarvault.restore.model import RestorePlan
from polarvault.restore.plan.routing import router_of
from polarvault.restore.write.configuration import PutConfiguration
from polarvault.restore.write.finish import Completion
from polarvault.restore.write.lay_out import LayOut
from polarvault.restore.write.mark import mark_targets
from polarvault.restore.write.targets import Targets
from polarvault.storage.files import storage_failed
from polarvault.storage.occupants import RESTORE_MARK_NAME

_AGAIN = "run the same command again: it goes on with what is there; or restore into another directory"


def compare(plan: RestorePlan, progress: Progress) -> RestorePlan:
    """Return the plan with what would be read, fetched, written and removed; nothing is changed."""
    laying = LayOut(plan, router_of(plan.layout, plan.inventory), progress)
    with working_as_account(plan.account), _files(plan, laying, changes=False) as files:
        return replace(plan, delta=Bringing(plan, files, progress).run(laying.jobs))


def bring_up(plan: RestorePlan, progress: Progress) -> tuple[RestorePlan, list[str]]:
    """Bring the target to the backup; return the plan with what it took, and warnings. On return it is durable.

    Nothing is undone on failure: the target stays marked as unfinished, without pg_control, for the next attempt.
    """
    existing, account = plan.facts.host.existing, plan.account
    assert existing is not None
    laying = LayOut(plan, router_of(plan.layout, plan.inventory), progress)
    targets = Targets(account, directory_mode=laying.directory_mode, sync=plan.request.sync)
    try:
        targets.claim([root for root in plan.layout.roots if root not in existing.occupied])
    except BaseException:
        targets.undo()
        raise
    put = PutConfiguration(plan.put_back, account, sync=plan.request.sync) if plan.put_back is not None else None
    try:
        with working_as_account(account):
            mark_targets(plan)
            with _only_one(plan), _files(plan, laying, changes=True) as files:
                files.set_control_aside(CONTROL_NAME)
                plan = _bring(plan, laying, files, progress)
        if put is not None and plan.debian is not None:
            put.write()
        warnings = Completion().finish(plan, account, file_mode=laying.file_mode, directory_mode=laying.directory_mode)
        with working_as_account(account), _files(plan, laying, changes=True) as files:
            files.forget_control_aside()
        return plan, warnings
    except KeyboardInterrupt:
        _take_back(put)
        raise Interrupted(
            f'interrupted; "{plan.layout.local}" is unfinished, and no server starts from it', hint=_AGAIN
        ) from None
    except PolarvaultError as problem:
        _take_back(put)
        raise _unfinished(plan, problem) from problem.__cause__
    except BaseException:
        _take_back(put)
        raise


def _bring(plan: RestorePlan, laying: LayOut, files: TargetFiles, progress: Progress) -> RestorePlan:
    source = plan.source
    assert isinstance(source, BackupInRepository)
    counts = Bringing(plan, files, progress).run(laying.jobs)
    # The target's own is gone with all that did not belong.
    laying.deliver(source.wal_shares(laying.is_wanted))
    return replace(plan, delta=counts)


def _files(plan: RestorePlan, laying: LayOut, *, changes: bool) -> TargetFiles:
    return TargetFiles(plan, file_mode=laying.file_mode, directory_mode=laying.directory_mode, changes=changes)


@contextmanager
def _only_one(plan: RestorePlan) -> Iterator[None]:
    """Hold a lock on the mark of the data directory: two restores into one target would make a mixture."""
    path = os.path.join(plan.layout.data, RESTORE_MARK_NAME)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as problem:
        raise storage_failed(problem, "open", path) from problem
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TargetNotEmpty(
                f'another restore works on "{plan.layout.data}" at this moment', hint="wait until it has ended"
            ) from None
        yield
    finally:
        os.close(descriptor)


def _take_back(put: PutConfiguration | None) -> None:
    if put is not None:
        put.undo()


def _unfinished(plan: RestorePlan, problem: PolarvaultError) -> PolarvaultError:
    if isinstance(problem, TargetNotEmpty):
        return problem
    said = problem.message.replace("; what was restored so far has been removed", "")
    problem.message = f'{said}; "{plan.layout.local}" is unfinished, and no server starts from it'
    problem.hint = f"{problem.hint}; then {_AGAIN}" if problem.hint else _AGAIN
    return problem
