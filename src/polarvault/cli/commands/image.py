"""`polarvault image`: restored copies that WAL is replayed into. Parses, calls the use cases, renders."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click

from polarvault.cli.json_output import current_output, json_option
from polarvault.cli.messages import say_warning
from polarvault.cli.options.backups import RepositoryChoice, shelved
from polarvault.cli.options.kept import directory_of
from polarvault.cli.options.recovery import image_recovery_options, recovery_request
from polarvault.cli.options.repository import repository_options
from polarvault.cli.process import switch_threads_quickly
from polarvault.errors import UsageError

if TYPE_CHECKING:
    from polarvault.images.area import ImageArea
    from polarvault.images.make import MadeImage, Making
    from polarvault.images.model import ImageRequest

Function = TypeVar("Function", bound=Callable[..., Any])
_KEEP = 3
_REPOSITORY = ("config", "repo", "key_file", "passphrase_file", "passphrase_command")
_RECOVERY = (
    "target_time", "target_xid", "target_lsn", "target_name", "target_word", "target_inclusive", "target_timeline",
    "wal_directories", "accept_end",
)  # fmt: skip


def _at_option(function: Function) -> Function:
    return click.option(
        "--at", metavar="DIR",
        help="The directory of images; default: `images` in the directory for state. On XFS or btrfs an image takes "
        "what its WAL has changed.",
    )(function)  # fmt: skip


@click.group("image", context_settings={"help_option_names": ["-?", "--help"]})
def command() -> None:
    """Images: a restored copy that WAL is replayed into, again and again; each is a full backup."""


@command.command("create", context_settings={"help_option_names": ["-?", "--help"]})
@click.argument("source", metavar="SOURCE")
@image_recovery_options
@click.option("--name", metavar="NAME", help="What the images are called; default: the cluster's or the backup's name.")
@click.option("--keep", type=click.IntRange(1, 10_000), default=_KEEP, show_default=True, metavar="N",
              help="How many images stay when the next one is made.")  # fmt: skip
@click.option("--shared-from", metavar="DIR", help="Where the backup's shared half is, if it cannot be found.")
@click.option("--merge", is_flag=True, help="PolarDB: put both halves into one, without shared storage.")
@click.option("--timeout", type=float, default=3600.0, show_default=True, metavar="SECONDS",
              help="How long recovery may take.")  # fmt: skip
@click.option("--bindir", metavar="DIR", help="Directory of postgres and pg_ctl; default: found by version.")
@click.option("-U", "--username", metavar="ROLE", help="A superuser of the source; default: the likely ones.")
@click.option("--owner", metavar="USER", help="When root: the user that owns the image and runs its server.")
@_at_option
@repository_options
@json_option
def create(**options: Any) -> None:
    """Restore SOURCE once, replay its WAL, and keep that as the first image.

    SOURCE is a backup (a path) and its WAL with --wal, or a cluster of a repository or one of its backups. Without a
    target it goes as far as the WAL leads. Its server is confined as a drill's, never promoted, and stopped.
    """
    from polarvault.images.make import create_image

    for name in ("source", "at", "shared_from", "bindir"):
        if options[name] is not None and (name != "source" or "/" in options[name]):
            options[name] = os.path.abspath(options[name])
    options["wal_directories"] = [os.path.abspath(path) for path in options["wal_directories"]]
    options["name"] = _series(options)
    with _request(options) as request:
        made = create_image(request, _making(), options={**options, **_no_target()})
    _tell(made)


@command.command("advance", context_settings={"help_option_names": ["-?", "--help"]})
@click.argument("name", metavar="NAME")
@image_recovery_options
@click.option("--keep", type=click.IntRange(1, 10_000), metavar="N", help="How many images stay; default: as before.")
@click.option("--timeout", type=float, metavar="SECONDS", help="How long recovery may take; default: as before.")
@_at_option
@json_option
def advance(name: str, *, at: str | None, keep: int | None, timeout: float | None, **options: Any) -> None:
    """Replay what WAL has come since into a copy of the newest image, and keep that as the next one.

    WAL comes from where it came when the first one was made, or from --wal. The image stays on its timeline unless
    --target-timeline asks for another one. On whatever failure the newest image is as it was.
    """
    from polarvault.images.make import advance_image

    area = _area(at)
    _, newest = area.newest(name)
    if options["wal_directories"]:
        options["wal_directories"] = [os.path.abspath(path) for path in options["wal_directories"]]
    else:
        del options["wal_directories"]
    given = {"keep": keep, "timeout": timeout, "at": area.path}
    merged = {
        **newest.request, "keep": newest.keep, **options, "name": name,
        **{word: value for word, value in given.items() if value is not None},
    }  # fmt: skip
    with _request(merged) as request:
        made = advance_image(request, _making())
    _tell(made)


@command.command("list", context_settings={"help_option_names": ["-?", "--help"]})
@_at_option
@json_option
def list_images(at: str | None) -> int:
    """List the images, the moments at which they are, and what they take.

    Exit status: 0; 1, one is gone, removed by somebody else.
    """
    from polarvault.images.model import ImageState
    from polarvault.report.images import image_json, list_text
    from polarvault.snapshots.model import Kind

    area, now = _area(at), datetime.now(UTC)
    for done in area.sweep():
        say_warning(done)
    statuses = [place.status() for place in area.places(Kind.IMAGE)]
    statuses.sort(key=lambda one: (one.record.series, one.record.number) if one.record else ("", 0))
    output = current_output()
    if output is not None:
        output.add(directory=area.path, images=[image_json(one, now) for one in statuses])
    else:
        for line in list_text(statuses, now, area.path):
            click.echo(line)
    return int(any(one.state is ImageState.GONE for one in statuses))


@command.command("remove", context_settings={"help_option_names": ["-?", "--help"]})
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@_at_option
@json_option
def remove(names: tuple[str, ...], at: str | None) -> None:
    """Remove images: all of a NAME, or one of them (NAME.3)."""
    from polarvault.clones.control import remove_place

    area = _area(at)
    removed = []
    for place in [place for name in names for place in area.named(name)]:
        record = place.record()
        with place.locked(wait=False):
            remove_place(place)
        removed.append(record.name if record else place.id)
        click.echo(f"removed {removed[-1]}", err=True)
    output = current_output()
    if output is not None:
        output.add(removed=removed)


def _series(options: dict[str, Any]) -> str:
    from polarvault.snapshots.names import is_good_name

    name: str = options["name"] or os.path.basename(options["source"].partition("@")[0])
    if not is_good_name(name) or "." in name:
        raise UsageError(
            f"{name!r} cannot be the name of images: letters, digits, _ and -, at most 63, a letter first",
            hint="choose one: --name NAME",
        )
    return name


def _no_target() -> dict[str, Any]:
    """Return the options that an advance does not take over: where the first one went is behind it."""
    words = ("target_time", "target_xid", "target_lsn", "target_name", "target_word", "target_inclusive", "accept_end")
    return {**dict.fromkeys(words), "target_timeline": "current"}


def _area(at: str | None) -> ImageArea:
    from polarvault.images.area import ImageArea

    return ImageArea(directory_of(at, "images"))


def _making() -> Making:
    import secrets

    from polarvault.images.make import Making
    from polarvault.instance.host import Host

    switch_threads_quickly()
    return Making(Host(), _say, lambda: datetime.now(UTC), secrets.randbelow(1 << 30))


@contextmanager
def _request(options: dict[str, Any]) -> Iterator[ImageRequest]:
    """Yield the request that the options make; what is in a repository stays open as long."""
    from dataclasses import replace

    from polarvault.config.words import BackupWord
    from polarvault.images.model import ImageRequest
    from polarvault.recovery.target import RecoveryRequest

    choice = RepositoryChoice.of(**{name: options[name] for name in _REPOSITORY})
    recovery = recovery_request(
        **{name: options[name] for name in _RECOVERY}, target_action=None, keep_archiving=False,
        archive_is_unknown=False,
    )  # fmt: skip
    request = ImageRequest(
        source=options["source"],
        area=_area(options["at"]).path,
        series=options["name"],
        keep=options["keep"],
        shared_from=options["shared_from"],
        merge=options["merge"],
        recovery=recovery,
        timeout_s=options["timeout"],
        bindir=options["bindir"],
        owner=options["owner"],
        superuser=options["username"],
    )
    word = choice.word(options["source"]) if "/" not in options["source"] else None
    if not isinstance(word, BackupWord):
        yield replace(request, source=os.path.abspath(options["source"]))
        return
    # The newest backup that is whole: an image goes on from there, whatever its target.
    with shelved(choice, word, "image", RecoveryRequest(), goes_on=True) as found:
        archived = replace(recovery, uses_archive=found.recovery.uses_archive)
        yield replace(request, source=found.backup, shelf=found.shelf, recovery=archived)


def _tell(made: MadeImage) -> None:
    from polarvault.report.images import image_json, image_text

    output, status = current_output(), made.place.status()
    for warning in made.warnings:
        say_warning(warning) if output is None else output.warn(warning)
    if output is not None:
        output.add(image=image_json(status, datetime.now(UTC)))
        return
    for line in image_text(status):
        click.echo(line)


def _say(line: str) -> None:
    click.echo(f"polarvault: {line}", err=True)
