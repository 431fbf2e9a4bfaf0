"""`polarvault clone`: copies of a cluster that run within seconds. Parses, calls the use cases, renders."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click

from polarvault.cli.json_output import current_output, json_option
from polarvault.cli.messages import say_warning
from polarvault.cli.options.backups import RepositoryChoice, shelved
from polarvault.cli.options.durations import seconds_of
from polarvault.cli.options.kept import directory_of
from polarvault.cli.options.recovery import clone_recovery_options, recovery_request
from polarvault.cli.options.repository import repository_options
from polarvault.cli.options.settings import assignment
from polarvault.cli.process import switch_threads_quickly
from polarvault.errors import PolarvaultError, UsageError

if TYPE_CHECKING:
    from polarvault.clones.area import Area, Place
    from polarvault.clones.create import Created
    from polarvault.clones.model import CloneRecord, CloneRequest
    from polarvault.recovery.target import RecoveryTarget

Function = TypeVar("Function", bound=Callable[..., Any])
_DEFAULT_TIMEOUT_S = 3600.0
_REPOSITORY = ("config", "repo", "key_file", "passphrase_file", "passphrase_command")
_SNAPSHOT, _IMAGE = "snapshot:", "image:"
_RECOVERY = (
    "target_time", "target_xid", "target_lsn", "target_name", "target_word", "target_inclusive", "target_timeline",
    "wal_directories", "accept_end",
)  # fmt: skip


def _at_option(function: Function) -> Function:
    return click.option(
        "--at", metavar="DIR",
        help="The directory of clones; default: `clones` in the directory for state. On XFS or btrfs, and on the file "
        "system of the backup, clones take no time and no room.",
    )(function)  # fmt: skip


@click.group("clone", context_settings={"help_option_names": ["-?", "--help"]})
def command() -> None:
    """Copies of a cluster that run within seconds, can be written, and leave what they come from alone."""


@command.command("create", context_settings={"help_option_names": ["-?", "--help"]})
@click.argument("source", metavar="SOURCE")
@clone_recovery_options
@click.option("--name", metavar="NAME", help="What the clone is called; default: its id.")
@click.option("--port", type=int, metavar="N",
              help="Listen on 127.0.0.1 with the source's pg_hba.conf; default: a private socket alone.")  # fmt: skip
@click.option("--read-only", is_flag=True, help="Leave it in recovery, as a standby that follows nobody.")
@click.option("--ttl", metavar="TIME", help="Remove it after 8h, 2d, ...")
@click.option("--max-size", metavar="SIZE", help="Stop it when it takes more of its own, as 20GB.")
@click.option("--min-free", metavar="SIZE",
              help="What has to stay free on its file system: else it is not made, or is stopped; default: 5 percent, "
              "at most 10GB.")  # fmt: skip
@click.option("--snapshots", metavar="DIR",
              help="The directory of snapshots, for snapshot:NAME, or for what is nearer than a backup.")  # fmt: skip
@click.option("--images", metavar="DIR",
              help="The directory of images, for image:NAME, or for what is nearer than a backup.")  # fmt: skip
@click.option("--shared-from", metavar="DIR", help="Where the backup's shared half is, if it cannot be found.")
@click.option("--merge", is_flag=True, help="PolarDB: put both halves into one, without shared storage.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Change a setting of the clone.")
@click.option("--timeout", type=float, default=_DEFAULT_TIMEOUT_S, show_default=True, metavar="SECONDS",
              help="How long recovery may take.")  # fmt: skip
@click.option("--bindir", metavar="DIR", help="Directory of postgres and pg_ctl; default: found by version.")
@click.option("-U", "--username", metavar="ROLE", help="A superuser of the source; default: the likely ones.")
@click.option("--owner", metavar="USER", help="When root: the user that owns the clone and runs its server.")
@click.option("--force", is_flag=True, help="Clone a backup that was never completed.")
@_at_option
@repository_options
@json_option
def create(**options: Any) -> None:
    """Make a clone of SOURCE, recover it, start it, and say how to connect.

    SOURCE is a backup (a path), a directory of backups, snapshot:NAME, image:NAME, or a cluster of a repository (the
    last backup from which the target is reached) or one of its backups (shop@20261125T22). Where SOURCE has several
    backups, an image or a snapshot of the same cluster is taken that is nearer to the target. Without a target it goes
    as far as the WAL leads, and is promoted.

    Where the file system shares extents (XFS, btrfs), files are cloned and not copied. Of a backup in tar files, in a
    repository, or on another file system, a base copy is made once.
    """
    for name in ("source", "at", "snapshots", "images", "shared_from", "bindir"):
        if options[name] is not None and (name != "source" or "/" in options[name]):
            options[name] = os.path.abspath(options[name])
    if options["source"].startswith(_SNAPSHOT):
        options["source"] = backup_of_snapshot(options["source"].removeprefix(_SNAPSHOT), options["snapshots"])
    options["wal_directories"] = [os.path.abspath(path) for path in options["wal_directories"]]
    options["settings"] = list(options["settings"])
    _tell(_create(options))


@command.command("list", context_settings={"help_option_names": ["-?", "--help"]})
@_at_option
@json_option
def list_clones(at: str | None) -> None:
    """List the clones: state, port, source, moment, age, room; remove those whose time is over.

    Those whose server has died, or whose host was started anew, are found.
    """
    from polarvault.clones.control import look_at, sweep
    from polarvault.report.clones import clone_json, list_text
    from polarvault.snapshots.model import Kind

    area, now = area_at(at), datetime.now(UTC)
    for done in sweep(area, now):
        say_warning(done)
    statuses = [look_at(place) for place in area.places(Kind.CLONE)]
    output = current_output()
    if output is not None:
        output.add(area=area.path, clones=[clone_json(one, now) for one in statuses])
        return
    for line in list_text(statuses, now, area.path):
        click.echo(line)


@command.command("start", context_settings={"help_option_names": ["-?", "--help"]})
@click.argument("name")
@_at_option
@json_option
def start_clone(name: str, at: str | None) -> None:
    """Start the server of a clone again, as confined as it was."""
    from polarvault.clones.control import start
    from polarvault.clones.watching import needs_watching, watch_beside

    place = area_at(at).find(name)
    status = start(place)
    if status.record is not None and needs_watching(status.record):
        watch_beside(place)
    _tell_status(place)


@command.command("stop", context_settings={"help_option_names": ["-?", "--help"]})
@click.argument("name")
@_at_option
@json_option
def stop_clone(name: str, at: str | None) -> None:
    """Stop the server of a clone; its files stay."""
    from polarvault.clones.control import stop
    from polarvault.report.clones import clone_json

    status = stop(area_at(at).find(name))
    output = current_output()
    if output is not None:
        output.add(clone=clone_json(status, datetime.now(UTC)))
        return
    click.echo(f"clone {name} is stopped; start it: polarvault clone start {name}")


@command.command("reset", context_settings={"help_option_names": ["-?", "--help"]})
@click.argument("name")
@_at_option
@json_option
def reset_clone(name: str, at: str | None) -> None:
    """Bring a clone back to the moment at which it was made; what was done in it is lost.

    It is made anew beside the old one, which is removed when the new one runs, and started again if that fails.
    """
    from polarvault.clones.control import remove, start, stop
    from polarvault.clones.errors import CloneRefused

    area = area_at(at)
    old = area.find(name)
    record = old.record()
    if record is None or not record.request:
        raise CloneRefused(f'"{name}" is unfinished', hint=f"take it away: polarvault clone remove {name}")
    options = _options_of_moment(record)
    was_stopped = record.stopped
    # Its port, and its name.
    stop(old)
    try:
        created = _create(options, replaces=old)
    except BaseException:
        if was_stopped is None:
            with suppress(PolarvaultError):
                start(old)
        raise
    remove(area, old)
    _tell(created)


@command.command("remove", context_settings={"help_option_names": ["-?", "--help"]})
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@_at_option
@json_option
def remove_clone(names: tuple[str, ...], at: str | None) -> None:
    """Stop clones and remove them, with everything that was done in them.

    The base copy that a clone was made of stays for the next one; when nothing comes from it any more, it goes by its
    id as well.
    """
    from polarvault.clones.control import remove

    area = area_at(at)
    for place in [area.find(name) for name in names]:
        record = place.record()
        remove(area, place)
        click.echo(f"removed {record.name if record else place.id}", err=True)
    output = current_output()
    if output is not None:
        output.add(removed=list(names))


def backup_of_snapshot(name: str, at: str | None) -> str:
    """Return the path of the backup that a snapshot is; raise SnapshotRefused for one that is not whole."""
    from polarvault.cli.commands.snapshot import shelf_at
    from polarvault.snapshots.errors import SnapshotRefused
    from polarvault.snapshotting.model import SnapshotState

    status = shelf_at(at).find(name).status()
    if status.state is not SnapshotState.WHOLE or status.record is None:
        raise SnapshotRefused(f'the snapshot "{name}" is {status.state.value}', hint="polarvault snapshot list")
    return status.record.backup


def _options_of_moment(record: CloneRecord) -> dict[str, Any]:
    """Return the command line that makes the same clone again, although WAL and backups may have come since."""
    options = dict(record.request)
    options |= {"source": record.source, "name": record.name}
    is_latest = not any(options.get(name) for name in ("target_time", "target_xid", "target_lsn", "target_name"))
    if is_latest and options.get("target_word") != "immediate" and record.lsn is not None:
        # Everything before this position, and nothing of what begins there.
        options |= {"target_word": None, "target_lsn": record.lsn, "target_inclusive": False}
    return options


def area_at(at: str | None) -> Area:
    """Return the directory of clones that --at names, or the one in the directory for state."""
    from polarvault.clones.area import Area

    return Area(directory_of(at, "clones"))


def _create(options: dict[str, Any], *, replaces: Place | None = None) -> Created:
    import secrets

    from polarvault.clones.create import check_request, create_clone
    from polarvault.clones.watching import needs_watching, watch_beside
    from polarvault.instance.host import Host

    switch_threads_quickly()
    with clone_request(options) as request:
        check_request(request)
        created = create_clone(
            request, Host(), _say, clock=lambda: datetime.now(UTC), draw=secrets.randbelow(1 << 30), options=options,
            replaces=replaces,
        )  # fmt: skip
    if needs_watching(created.record):
        watch_beside(created.place)
    return created


@contextmanager
def clone_request(options: dict[str, Any], *, target: RecoveryTarget | None = None) -> Iterator[CloneRequest]:
    """Yield the request that the options make; what is in a repository stays open as long.

    target: the end of recovery, for a command that has other options for it.
    """
    from dataclasses import replace

    from polarvault.clones.model import CloneRequest
    from polarvault.config.words import BackupWord

    choice = RepositoryChoice.of(**{name: options[name] for name in _REPOSITORY})
    recovery = recovery_request(
        **{name: options[name] for name in _RECOVERY}, target_action=None, keep_archiving=False,
        archive_is_unknown=False,
    )  # fmt: skip
    if target is not None:
        recovery = replace(recovery, target=target)
    request = CloneRequest(
        source=options["source"],
        area=area_at(options["at"]).path,
        name=options["name"],
        port=options["port"],
        read_only=options["read_only"],
        ttl_s=None if options["ttl"] is None else seconds_of("--ttl", options["ttl"]),
        max_bytes=_size("--max-size", options["max_size"]),
        least_free_bytes=_size("--min-free", options["min_free"]),
        shared_from=options["shared_from"],
        merge=options["merge"],
        recovery=recovery,
        settings=tuple(assignment(text) for text in options["settings"]),
        timeout_s=options["timeout"],
        bindir=options["bindir"],
        owner=options["owner"],
        superuser=options["username"],
        force=options["force"],
    )
    if options["source"].startswith(_IMAGE):
        from polarvault.images.area import ImageArea
        from polarvault.images.nearest import of_images

        name = options["source"].removeprefix(_IMAGE)
        shelf = of_images(ImageArea(directory_of(options.get("images"), "images")), name)
        yield replace(request, source=name, shelf=shelf)
        return
    word = choice.word(options["source"])
    if not isinstance(word, BackupWord):
        yield _with_nearer(replace(request, source=os.path.abspath(options["source"])), options)
        return
    if word.label is None and any(_there(options.get(name), name) for name in ("images", "snapshots")):
        # All of the cluster's backups are kept from being expired then: any of them may be the nearest.
        recovery = replace(recovery, target=recovery.effective_target)
    with shelved(choice, word, "clone", recovery, goes_on=True) as found:
        named = replace(request, source=found.backup, shelf=found.shelf, recovery=found.recovery)
        yield named if word.label is not None else _with_nearer(named, options, cluster=word.cluster)


def _with_nearer(request: CloneRequest, options: dict[str, Any], *, cluster: str | None = None) -> CloneRequest:
    """Return the request with images and snapshots beside several backups; cluster: of a repository."""
    from dataclasses import replace

    from polarvault.images.area import ImageArea
    from polarvault.images.nearest import Nearer, identifier_of, paths_of
    from polarvault.snapshotting.shelf import Shelf

    images, snapshots = (_there(options.get(name), name) for name in ("images", "snapshots"))
    word = cluster or request.source
    if (images is None and snapshots is None) or not request.shelf.several(word):
        return request
    known = identifier_of(request.shelf, word)
    if known is None:
        return request
    identifier, original = known
    paths = paths_of(
        None if images is None else ImageArea(images), None if snapshots is None else Shelf(snapshots), identifier
    )
    if not paths:
        return request
    archived = original if cluster is not None else None
    return replace(request, source=word, shelf=Nearer(request.shelf, word, paths, archived))


def _there(at: str | None, several: str) -> str | None:
    """Return a directory of images or snapshots that is there; one that was named has to be."""
    if at is None:
        with suppress(UsageError):
            path = directory_of(None, several)
            return path if os.path.isdir(path) else None
        return None
    if not os.path.isdir(at):
        raise UsageError(f'--{several}: "{at}" is not a directory', hint=f"ls -ld {at}")
    return at


def _size(option: str, text: str | None) -> int | None:
    from polarvault.config.values import size_bytes

    if text is None:
        return None
    try:
        return size_bytes(text)
    except ValueError as problem:
        raise UsageError(f"{option} {text}: {problem}", hint="write a number with kB, MB, GB or TB: 20GB") from None


def _tell(created: Created) -> None:
    output = current_output()
    for warning in created.warnings:
        say_warning(warning) if output is None else output.warn(warning)
    _tell_status(created.place)


def _tell_status(place: Place) -> None:
    from polarvault.clones.control import look_at
    from polarvault.report.clones import clone_json, clone_text

    status = look_at(place)
    output = current_output()
    if output is not None:
        output.add(clone=clone_json(status, datetime.now(UTC)))
        return
    for line in clone_text(status):
        click.echo(line)


def _say(line: str) -> None:
    click.echo(f"polarvault: {line}", err=True)
