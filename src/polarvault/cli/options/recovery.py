"""The options of `polarvault restore` that say how far recovery goes; parsed into one value."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import click

from polarvault.errors import UsageError

if TYPE_CHECKING:
    from polarvault.recovery.target import RecoveryRequest, RecoveryTarget

Function = TypeVar("Function", bound=Callable[..., Any])


def recovery_options(function: Function) -> Function:
    """Add --target-..., --wal and --keep-archiving."""
    keep_archiving = click.option(
        "--keep-archiving",
        is_flag=True,
        help="Leave archive_mode and archive_command as they were: the copy replaces its source.",
    )
    action = click.option("--target-action", type=click.Choice(["pause", "promote", "shutdown"]),
                          help="What the server does at the target; default: pause.")  # fmt: skip
    return _with_options(keep_archiving(function), action)


def drill_recovery_options(function: Function) -> Function:
    """Add --target-... and --wal, as a drill understands them."""
    action = click.option("--target-action", type=click.Choice(["pause", "promote", "shutdown"]),
                          help="What the copy does at the target, then it is looked at; default: promote.")  # fmt: skip
    return _with_options(function, action)


def clone_recovery_options(function: Function) -> Function:
    """Add --target-... and --wal for a clone, whose role says what it does at the target."""
    return _with_options(function, lambda unchanged: unchanged)


def image_recovery_options(function: Function) -> Function:
    """Add --target-... and --wal for an image, which stays on its timeline unless it is told."""
    return _with_options(function, lambda unchanged: unchanged, timeline="current")


def _with_options(function: Function, target_action: Callable[[Any], Any], *, timeline: str = "latest") -> Function:
    options = [
        click.option("--target-time", metavar="TIME", help="Recover to a moment: '2026-11-22 14:03:00+01'."),
        click.option("--target-xid", metavar="XID", help="Recover to the end of a transaction."),
        click.option("--target-lsn", metavar="LSN", help="Recover to a position in the WAL."),
        click.option("--target-name", metavar="NAME", help="Recover to a restore point."),
        click.option("--target", "target_word", type=click.Choice(["immediate", "latest"]),
                     help="Recover to the end of the backup, or as far as the WAL goes."),
        click.option("--target-inclusive/--target-exclusive", " /--no-target-inclusive", default=None,
                     help="Stop after the target (default), or before it; for time, xid and LSN."),
        click.option("--target-timeline", default=timeline, show_default=True, metavar="TIMELINE",
                     help="Timeline to follow: latest, current (the backup's) or a number."),
        target_action,
        click.option("--accept-end", metavar="LSN",
                     help="Go to the end of the WAL although it is damaged, or more follows; LSN is where it ends."),
        click.option("--wal", "wal_directories", multiple=True, metavar="DIR",
                     help="Directory with archived or received WAL; can be given several times."),
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def recovery_request(
    *,
    target_time: str | None,
    target_xid: str | None,
    target_lsn: str | None,
    target_name: str | None,
    target_word: str | None,
    target_inclusive: bool | None,
    target_timeline: str,
    target_action: str | None,
    wal_directories: tuple[str, ...],
    keep_archiving: bool,
    archive_is_unknown: bool,
    accept_end: str | None = None,
) -> RecoveryRequest:
    """Turn the options into a request; raise UsageError for values and combinations that mean nothing.

    archive_is_unknown: a --set restore_command was given.
    """
    from polarvault.recovery.target import (
        RecoveryRequest,
        TargetAction,
        TargetKind,
        parse_accepted_end,
        parse_timeline,
    )

    target = _target(target_time, target_xid, target_lsn, target_name, target_word)
    if target_inclusive is not None:
        if target is None or target.kind not in (TargetKind.TIME, TargetKind.XID, TargetKind.LSN):
            word = "--target-inclusive" if target_inclusive else "--target-exclusive"
            raise UsageError(
                f"{word} goes with --target-time, --target-xid or --target-lsn",
                hint="recovery always stops after a restore point; leave the option out",
            )
        target = replace(target, inclusive=target_inclusive)
    if target_action is not None and (target is None or target.kind is TargetKind.LATEST):
        if target_action != TargetAction.PROMOTE.value:
            raise UsageError(
                f"--target-action {target_action} needs a target: at the end of the WAL the server is always promoted",
                hint="add --target-time, --target-xid, --target-lsn, --target-name or --target immediate; "
                "or stay in recovery: --as standby",
            )
        # It is what happens there anyway, and the server knows no action without a target.
        target_action = None
    if accept_end is not None and target is not None and target.kind is not TargetKind.LATEST:
        raise UsageError(
            "--accept-end is for a recovery to the end of the WAL",
            hint="leave it out: for another target the WAL has to be right only up to there",
        )
    if wal_directories and archive_is_unknown:
        raise UsageError("--wal and --set restore_command exclude one another", hint="give one of them")
    return RecoveryRequest(
        target=target,
        timeline=parse_timeline(target_timeline),
        action=None if target_action is None else TargetAction(target_action),
        wal_directories=tuple(_wal_directory(path) for path in wal_directories),
        keep_archiving=keep_archiving,
        accepted_end=None if accept_end is None else parse_accepted_end(accept_end),
        archive_is_unknown=archive_is_unknown,
    )


def _target(
    time: str | None, xid: str | None, lsn: str | None, name: str | None, word: str | None
) -> RecoveryTarget | None:
    from polarvault.recovery import target as targets

    parsers: list[tuple[str, str | None, Callable[[str], RecoveryTarget]]] = [
        ("--target-time", time, targets.parse_target_time),
        ("--target-xid", xid, targets.parse_target_xid),
        ("--target-lsn", lsn, targets.parse_target_lsn),
        ("--target-name", name, targets.parse_target_name),
        ("--target", word, lambda text: targets.RecoveryTarget(targets.TargetKind(text))),
    ]
    given = [(option, text, parse) for option, text, parse in parsers if text is not None]
    if len(given) > 1:
        raise UsageError(
            f"{' and '.join(option for option, _, _ in given)} exclude one another", hint="give one recovery target"
        )
    return given[0][2](given[0][1]) if given else None


def _wal_directory(path: str) -> str:
    if not os.path.isdir(path):
        raise UsageError(f'--wal: "{path}" is not a directory', hint="give the directory that holds the WAL segments")
    if not os.access(path, os.R_OK | os.X_OK):
        problem = f'--wal: "{path}" cannot be read by this user'
        raise UsageError(problem, hint=f"look at its owner and mode: ls -ld {shlex.quote(os.path.abspath(path))}")
    return os.path.abspath(path)
