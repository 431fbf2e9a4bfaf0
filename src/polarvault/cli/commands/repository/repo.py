"""`polarvault repo`: make a repository, look at it, say who can open it."""

from __future__ import annotations

import os
import socket
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from polarvault.cli.json_output import current_output, json_option
from polarvault.cli.options.configuration import config_option, load
from polarvault.cli.options.repository import chosen_repository, key_source, repository_options
from polarvault.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from polarvault.config.model import RepositoryConfiguration
    from polarvault.repository.keys.wrapped import Secret

_HELP = {"help_option_names": ["-?", "--help"]}


@click.group("repo", context_settings=_HELP)
def command() -> None:
    """Repositories of backups, in a directory or in an object store."""


@command.command("init", context_settings=_HELP)
@click.argument("repository", metavar="[NAME|ADDRESS]", required=False)
@click.option("--encrypt", is_flag=True, help="Encrypt it, for a passphrase or a key file.")
@click.option("--new-key-file", metavar="FILE", help="Write a new key file, and encrypt for it.")
@click.option("--recipient", metavar="NAME", default="first", show_default=True, help="What its first key is called.")
@repository_options
@json_option
def init(
    repository: str | None, *, encrypt: bool, new_key_file: str | None, recipient: str, repo: str | None, **options: Any
) -> None:
    """Make a repository, in a directory (which is made if it is missing) or in a bucket.

    Nothing is replaced; a store that would replace objects is refused. The passphrase comes from a file, a command, or
    POLARVAULT_PASSPHRASE. Keep it, or the key file, where you will find it when this machine is gone: without it
    nothing in the repository can be read.
    """
    from polarvault.report.repository.places import made_json, made_text
    from polarvault.repository.catalogue.opening import make_repository

    chosen = chosen_repository(repo=_once(repository, repo), **options)
    secret = _secret_of_a_new_one(chosen, encrypt=encrypt, new_key_file=new_key_file)
    made = make_repository(chosen, os.environ, now=datetime.now(UTC), secret=secret, recipient=recipient)
    made.close()
    result = made_json(chosen, made.id, encrypted=secret is not None)
    _show(result, made_text(chosen, made.id, encrypted=secret is not None))


def _secret_of_a_new_one(chosen: RepositoryConfiguration, *, encrypt: bool, new_key_file: str | None) -> Secret | None:
    """Return what a new repository is encrypted for; None for a plain one."""
    from polarvault.config.model import KeySource
    from polarvault.repository.keys.secrets import read_secret

    if chosen.id is not None:
        raise UsageError(
            f'the configuration says that "{chosen.name}" has the id {chosen.id}, and a new one gets another',
            hint="take the line with the id out of the configuration if the repository is really new",
        )
    wanted = encrypt or new_key_file is not None or chosen.encrypted is True or chosen.key != KeySource()
    if wanted and chosen.encrypted is False:
        raise UsageError(f'the configuration says that "{chosen.name}" is not encrypted', hint="correct one of the two")
    if not wanted:
        return None
    if new_key_file is not None:
        return _new_key_file(new_key_file)
    return read_secret(chosen.key, os.environ, address=chosen.address)


def _new_key_file(path: str) -> Secret:
    from polarvault.repository.keys.secrets import write_key_file
    from polarvault.repository.keys.wrapped import Secret

    return Secret(file_key=write_key_file(os.path.abspath(path), random=os.urandom), origin=f'the key file "{path}"')


@command.command("info", context_settings=_HELP)
@click.argument("repository", metavar="[NAME|ADDRESS]", required=False)
@repository_options
@json_option
def info(repository: str | None, *, repo: str | None, **options: Any) -> None:
    """Show what a repository holds, and which commands use it now or were killed."""
    from polarvault.report.repository.places import summary_json, summary_text
    from polarvault.repository.catalogue.opening import open_repository
    from polarvault.repository.catalogue.summary import read_summary

    opened = open_repository(chosen_repository(repo=_once(repository, repo), **options), os.environ)
    try:
        summary = read_summary(opened.repository)
    finally:
        opened.close()
    _show(summary_json(summary), summary_text(summary))


def _once(argument: str | None, option: str | None) -> str | None:
    if argument is not None and option is not None:
        raise UsageError("the repository is named twice", hint="write its name or address once")
    return argument or option


@command.group("key", context_settings=_HELP)
def key() -> None:
    """Who can open an encrypted repository: passphrases and key files, each with a name."""


@key.command("list", context_settings=_HELP)
@repository_options
@json_option
def list_keys(**options: Any) -> None:
    """Show the names of all keys. It takes none of them, and the secrets themselves are not in the repository."""
    from polarvault.report.repository.places import keys_json, keys_text
    from polarvault.repository.catalogue.opening import read_keys

    keys = read_keys(chosen_repository(**options), os.environ)
    _show(keys_json(keys), keys_text(keys))


@key.command("add", context_settings=_HELP)
@click.argument("recipient", metavar="NAME")
@click.option("--new-key-file", metavar="FILE", help="Write a new key file for it.")
@click.option("--new-passphrase-file", metavar="FILE", help="The first line of FILE is its passphrase.")
@click.option("--new-passphrase-command", metavar="COMMAND", help="What COMMAND prints is its passphrase.")
@repository_options
@json_option
def add_key(
    recipient: str,
    *,
    new_key_file: str | None,
    new_passphrase_file: str | None,
    new_passphrase_command: str | None,
    **options: Any,
) -> None:
    """Let another passphrase or key file open the repository.

    The repository is opened with a key that it has already. For servers take key files, which cost no time to open.
    """
    from polarvault.report.repository.places import keys_json, keys_text
    from polarvault.repository.catalogue.opening import open_repository
    from polarvault.repository.keys.secrets import read_secret

    source = key_source(
        key_file=new_key_file, passphrase_file=new_passphrase_file, passphrase_command=new_passphrase_command,
        prefix="--new-",
    )  # fmt: skip
    if source is None:
        raise UsageError(
            "what the new key is made from is not said",
            hint="write --new-key-file, --new-passphrase-file or --new-passphrase-command",
        )
    opened = open_repository(chosen_repository(**options), os.environ)
    try:
        opened.keys.check_free(recipient)
        # Written only now: a key file for a repository that does not open would be taken for one that does.
        secret = (
            _new_key_file(new_key_file)
            if new_key_file is not None
            else read_secret(source, {}, address=opened.repository.store.address)
        )
        added = opened.keys.add(opened.data_keys, secret, recipient=recipient, random=os.urandom)
    finally:
        opened.close()
    _show(keys_json(added), keys_text(added))


@key.command("remove", context_settings=_HELP)
@click.argument("word", metavar="NAME|ID")
@repository_options
@json_option
def remove_key(word: str, **options: Any) -> None:
    """Take a key away. The last one is kept.

    Whoever has opened the repository with that key may have kept what it opens, and can go on reading; if a key has
    become known, make a new repository.
    """
    from polarvault.report.repository.places import keys_json, keys_text
    from polarvault.repository.catalogue.opening import open_repository

    opened = open_repository(chosen_repository(**options), os.environ)
    try:
        removed = opened.keys.remove(word)
    finally:
        opened.close()
    _show(keys_json(removed), keys_text(removed))


@command.command("sync", context_settings=_HELP)
@click.argument("source", metavar="SOURCE")
@click.argument("target", metavar="TARGET")
@click.option("--cluster", "clusters", multiple=True, metavar="NAME", help="Only this cluster; repeat it for more.")
@click.option(
    "-j", "--jobs", type=click.IntRange(1, 64), default=4, show_default=True, metavar="N", help="Copies at a time."
)
@config_option
@json_option
def sync(source: str, target: str, *, clusters: tuple[str, ...], jobs: int, config: str | None) -> int:
    """Copy what TARGET lacks of the repository SOURCE: backups, the WAL behind them, keys, pins and notes.

    Both are names of the configuration or addresses. No key is needed; every object is compared with the hash that it
    ends with. TARGET is an empty place, or an older copy of the same repository. What was cut off is gone on with. What
    TARGET has expired by its own policy is not copied again.
    """
    from polarvault.config.choice import choose_repository
    from polarvault.report.repository.places import copied_json, copied_text
    from polarvault.repository.copying import copy_repository
    from polarvault.storage.objects.opening import open_store

    configuration = load(config)
    here, there = choose_repository(configuration, source), choose_repository(configuration, target)
    stores = [open_store(here.address, here.store, environment=os.environ)]
    try:
        stores.append(open_store(there.address, there.store, create=True, environment=os.environ))
        tell = (lambda text: None) if current_output() is not None else (lambda text: click.echo(text, err=True))
        report = copy_repository(*stores, clusters=clusters or None, jobs=jobs, tell=tell)
    finally:
        for store in stores:
            store.close()
    _show(copied_json(report), copied_text(report, there.address))
    return 1 if report.problems else 0


@command.command("check", context_settings=_HELP)
@click.argument("repository", metavar="[NAME|ADDRESS]", required=False)
@click.option("--read-data", is_flag=True, help="Read packs and WAL as well: every byte of the repository.")
@repository_options
@json_option
def check(repository: str | None, *, read_data: bool, repo: str | None, **options: Any) -> int:
    """Check that everything is there and readable that a repository says it has.

    Without --read-data packs and WAL are only looked for; with it every byte is read and compared with the hash that
    each object ends with. Exit status 0: nothing is wrong.
    """
    from polarvault.report.repository.stored import checked_json, checked_text
    from polarvault.repository.catalogue.opening import open_repository
    from polarvault.verify.stored.check import check_repository

    opened = open_repository(chosen_repository(repo=_once(repository, repo), **options), os.environ)
    try:
        found = check_repository(opened.repository, read_data=read_data)
    finally:
        opened.close()
    _show(checked_json(found), checked_text(found, read_data=read_data))
    return 1 if found.problems else 0


@command.command("rebuild", context_settings=_HELP)
@click.argument("repository", metavar="[NAME|ADDRESS]", required=False)
@repository_options
@json_option
def rebuild(repository: str | None, *, repo: str | None, **options: Any) -> int:
    """Make again what can be made from what is there: `refs` and `generations` objects that are missing or damaged.

    The first say which packs a backup uses: without them nothing expires and nothing can be copied to another place.
    The second say what a cluster is: without them its WAL cannot be read. Damaged block maps are made again as well;
    `wal map` makes missing ones. Records, roots, packs and WAL cannot be made again; `repo check` names them and the
    backups that need them. Exit status 1: something could not be made again.
    """
    from polarvault.report.repository.stored import rebuilt_json, rebuilt_text
    from polarvault.repository.catalogue.opening import open_repository
    from polarvault.repository.catalogue.rebuild import rebuild

    opened = open_repository(chosen_repository(repo=_once(repository, repo), **options), os.environ)
    try:
        made = list(rebuild(opened.repository))
    finally:
        opened.close()
    _show(rebuilt_json(made), rebuilt_text(made))
    return 1 if any(one.problem for one in made) else 0


@command.command("abort", context_settings=_HELP)
@click.argument("intent", metavar="ID")
@repository_options
@json_option
def abort(intent: str, **options: Any) -> None:
    """Say that a command that was killed is over: what it used may expire, what it wrote is gone on with.

    `repo info` lists the intents with their ids. One of a process that runs on this host is refused.
    """
    from polarvault.repository.catalogue.intents import process_mark
    from polarvault.repository.catalogue.opening import open_repository

    opened = open_repository(chosen_repository(**options), os.environ)
    try:
        found = opened.repository.intents.read(intent)
        if found.host == socket.gethostname() and not found.is_over() and process_mark(found.pid) is not None:
            raise UsageError(
                f"`{found.command}`, process {found.pid}, runs on this host", hint=f"stop it first: kill {found.pid}"
            )
        opened.repository.intents.end(intent)
    finally:
        opened.close()
    _show({"ended": found.id}, [f"ended: {found.command} {found.cluster} {found.label} of {found.host}".rstrip()])


def _show(result: Mapping[str, Any], text: Iterable[str]) -> None:
    output = current_output()
    if output is not None:
        output.add(**result)
        return
    for line in text:
        click.echo(line)
