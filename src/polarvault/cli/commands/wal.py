"""`polarvault wal`: status, map, stream, gap; and the help of fetch and push, which `wal_fetch` and `wal_push` run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from polarvault.cli import wal_fetch, wal_gap, wal_push, wal_stream
from polarvault.cli.json_output import current_output, json_option
from polarvault.cli.options.backups import RepositoryChoice
from polarvault.cli.options.configuration import configured_connection
from polarvault.cli.options.repository import repository_options
from polarvault.errors import PolarvaultError, RepositoryNotFound

if TYPE_CHECKING:
    from polarvault.config.model import ClusterConfiguration
    from polarvault.repository.catalogue.wal_windows import ServerWal


class _QuickCommand(click.Command):
    """Shows help as every command does; everything else goes to the parser that the quick start uses as well."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if {"--help", "-?"} & set(args):
            return super().parse_args(ctx, ["--help"])
        run = wal_push.run if self.name == "push" else wal_fetch.run
        raise click.exceptions.Exit(run(args))


@click.group("wal", context_settings={"help_option_names": ["-?", "--help"]})
def command() -> None:
    """WAL: archive it into a repository, see what is there, and give it to a recovery."""


@command.command("fetch", cls=_QuickCommand, context_settings={"help_option_names": ["-?", "--help"]})
@click.argument("file", metavar="%f")
@click.argument("target", metavar="%p")
def fetch(**_: object) -> None:
    """Give a recovery the WAL file that it asks for: a restore_command.

    \b
    restore_command = 'polarvault wal fetch --wal DIR %f "%p"'

    Serves whole, compressed and partial segments, and history files. Whole wins over partial, and of partial ones
    the longest valid content. A segment gets its full size; what is missing is a hole.

    Exit status: 0, the file is there; 1, it is in no directory, and nothing is said; 200, something is wrong
    (a directory cannot be read, a file is damaged or of another cluster, the disk is full): the server ends the
    recovery instead of taking it for the end of the WAL.
    """
    raise AssertionError("the command's own parser has run it")


fetch.params += [
    click.Option([option], metavar=metavar, is_flag=metavar is None, multiple=option in wal_fetch.PLACES, help=text)
    for option, (metavar, text) in wal_fetch.OPTIONS.items()
]


@command.command("push", cls=_QuickCommand, context_settings={"help_option_names": ["-?", "--help"]})
@click.argument("path", metavar="%p", required=False)
def push(**_: object) -> None:
    """Archive a WAL file into the repositories of a cluster, or a directory: an archive_command.

    \b
    archive_command = 'polarvault wal push %p --cluster shop --repo /srv/backups'

    Takes segments, partial ones, timeline histories and backup history files. Success means that the file is durable in
    every repository. The same bytes again are a success, so that several nodes may push (a standby with archive_mode =
    always); other bytes under the same name are refused, and nothing is overwritten.

    One call pushes what else waits in archive_status as well, in parallel, and leaves marks in the directory for state,
    so that the next calls answer at once. With --spool it is kept locally while a repository is away.

    Exit status: 0, it is archived; 1, it is not, for the reason that is said: the server tries again.
    """
    raise AssertionError("the command's own parser has run it")


push.params += [
    click.Option([option], metavar=metavar, is_flag=metavar is None, help=text)
    for option, (metavar, text) in wal_push.OPTIONS.items()
]


@command.command("map", context_settings={"help_option_names": ["-?", "--help"]})
@click.argument("cluster")
@repository_options
@json_option
def make_maps(cluster: str, **options: Any) -> int:
    """Make the block maps that are missing: what the WAL of each segment changes.

    Every segment whose WAL is in the repository as a whole gets one, of all timelines; those that are there stay. A map
    with a gap says that something in its WAL is not known. Exit status: 0; 1, the WAL of a segment cannot be read.
    """
    from polarvault.report.repository.maps import maps_json, maps_text
    from polarvault.repository.maps.making import make_maps as make
    from polarvault.repository.maps.stored import maps_beside

    choice = RepositoryChoice.of(**options)
    with choice.opened(cluster) as (opened, chosen):
        repository = opened.repository
        identifiers = repository.generations(cluster)
        if not identifiers:
            raise RepositoryNotFound(
                f"{chosen.address} holds nothing of a cluster {cluster}", hint="polarvault list shows what is there"
            )
        all_wal = [repository.wal_of(cluster, identifier) for identifier in identifiers]
        found = [one for wal in all_wal for one in make(wal, maps_beside(wal, repository, cluster))]
    output = current_output()
    if output is not None:
        output.add(**maps_json(cluster, chosen.address, found))
    else:
        for line in maps_text(cluster, chosen.address, found):
            click.echo(line)
    return int(any(one.problems for one in found))


@command.command("status", context_settings={"help_option_names": ["-?", "--help"]})
@click.argument("cluster", metavar="[CLUSTER]", required=False)
@repository_options
@json_option
def status(cluster: str | None, **options: Any) -> int:
    """Show what WAL of a cluster, or of all clusters, is in the repository, and which moments it reaches.

    By timeline: stretches and gaps, where it branched off, and the windows in which every moment can be restored, with
    the backups that lead into them, and the times at their ends: of backups, and of the last commits. Where the
    configuration says how to reach the server, it is asked how far the WAL here is behind.

    Exit status: 0; 1, WAL is missing behind a backup, and `wal gap acknowledge` has not said that this is known.
    """
    from polarvault.report.repository.wal import wal_json, wal_text
    from polarvault.repository.catalogue.wal_windows import look_at_wal

    choice = RepositoryChoice.of(**options)
    with choice.opened(cluster or "") as (opened, chosen):
        names = [cluster] if cluster is not None else opened.repository.clusters()
        found = {name: look_at_wal(opened.repository, name) for name in names}
        for name, generations in found.items():
            if not generations:
                raise RepositoryNotFound(
                    f"{chosen.address} holds nothing of a cluster {name}", hint="polarvault list shows what is there"
                )
    servers = {name: _server(choice.configuration.clusters.get(name)) for name in found}
    output = current_output()
    if output is not None:
        output.add(
            clusters=[wal_json(name, chosen.address, wal, servers[name]) for name, wal in found.items()]
        )  # fmt: skip
    else:
        for name, generations in found.items():
            for line in wal_text(name, chosen.address, generations, servers[name]):
                click.echo(line)
    return int(any(one.lost_gaps for generations in found.values() for one in generations))


def _server(configured: ClusterConfiguration | None) -> ServerWal | None:
    """Ask the server of a cluster where it stands; None where the configuration does not say how to reach it."""
    conninfo = None if configured is None else configured_connection(configured)
    if conninfo is None:
        return None
    from polarvault.cli.options.hasty import hasty
    from polarvault.model.lsn import Lsn
    from polarvault.repository.catalogue.wal_windows import ServerWal
    from polarvault.server.connection import ConnectionSettings, Connector, PasswordPolicy
    from polarvault.server.identity import read_identity

    try:
        settings = hasty(ConnectionSettings(conninfo, password_policy=PasswordPolicy.NEVER))
        connection = Connector(settings).replication()
        try:
            identity = read_identity(connection)
        finally:
            connection.close()
    except PolarvaultError as problem:
        # What is in the repository is shown all the same.
        return ServerWal(problem=problem.message)
    return ServerWal(int(identity.system_identifier), identity.timeline_id, Lsn(identity.flush_lsn))


command.add_command(wal_stream.command)
command.add_command(wal_gap.command)
