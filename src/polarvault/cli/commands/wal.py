"""`polarvault wal`: commands about WAL directories. Running `fetch` belongs to `wal_fetch`; here is its help."""

from __future__ import annotations

import click

from polarvault.cli.wal_fetch import OPTIONS, run


class _FetchCommand(click.Command):
    """Shows help as every command does; everything else goes to the parser that the quick start uses as well."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if {"--help", "-?"} & set(args):
            return super().parse_args(ctx, ["--help"])
        raise click.exceptions.Exit(run(args))


@click.group("wal", context_settings={"help_option_names": ["-?", "--help"]})
def command() -> None:
    """WAL directories, as pg_receivewal, polarvault receivewal or an archive_command fill them."""


@command.command("fetch", cls=_FetchCommand, context_settings={"help_option_names": ["-?", "--help"]})
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
    click.Option([option], metavar=metavar, is_flag=metavar is None, multiple=option == "--wal", help=text)
    for option, (metavar, text) in OPTIONS.items()
]
