"""What the drop-in commands share: PostgreSQL's habits on the command line, and its connection options."""

from __future__ import annotations

import getpass
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from polarvault.errors import UsageError

if TYPE_CHECKING:
    from polarvault.server.connection import ConnectionSettings

Function = TypeVar("Function", bound=Callable[..., Any])


# Options that the replaced tools do not have; they must not make an abbreviation of theirs ambiguous.
_OURS_ALONE = {
    "--checkpoint-timeout",
    "--jobs",
    "--json",
    "--keep-all",
    "--no-pages",
    "--pages",
    "--status",
    "--summary",
}

_ALONE = {"-?", "--help", "-V", "--version"}


class DropInCommand(click.Command):
    """A command that accepts unambiguous abbreviations of long options, as getopt_long does."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Expand abbreviations, then parse."""
        if args and args[0] in _ALONE:
            # What follows is not looked at, as in PostgreSQL's own tools.
            return super().parse_args(ctx, args[:1])
        return super().parse_args(ctx, self._expanded(args))

    def _expanded(self, args: list[str]) -> list[str]:
        takes_value: dict[str, bool] = {}
        # With our settings: the command keeps the first help option it is asked for, and -? is one of its names.
        for parameter in self.get_params(click.Context(self, **self.context_settings)):
            if isinstance(parameter, click.Option):
                for name in parameter.opts + parameter.secondary_opts:
                    takes_value[name] = not parameter.is_flag
        expanded: list[str] = []
        waiting = iter(args)
        for word in waiting:
            if word == "--":
                return [*expanded, word, *waiting]
            if word.startswith("--"):
                name, equals, value = word.partition("=")
                matches = [known for known in takes_value.keys() - _OURS_ALONE if known.startswith(name)]
                if name not in takes_value and len(matches) == 1:
                    name = matches[0]
                elif name not in takes_value and len(matches) > 1:
                    raise click.UsageError(f"option '{name}' is ambiguous; possibilities: {' '.join(sorted(matches))}")
                expanded.append(name + equals + value)
                follows = takes_value.get(name, False) and not equals
            else:
                expanded.append(word)
                follows = self._short_takes_next(word, takes_value)
            if follows:
                # The next word is a value, whatever it looks like.
                expanded.extend(value for value in [next(waiting, None)] if value is not None)
        return expanded

    @staticmethod
    def _short_takes_next(word: str, takes_value: dict[str, bool]) -> bool:
        """Tell whether a group of short options such as -PD ends with one that takes the next word."""
        if len(word) < 2 or word[0] != "-":
            return False
        for position, letter in enumerate(word[1:], 1):
            if takes_value.get("-" + letter, False):
                return position == len(word) - 1
        return False


def connection_options(function: Function) -> Function:
    """Add -d, -h, -p, -U, -w and -W."""
    options = [
        click.option("-d", "--dbname", metavar="CONNSTR", help="Connection string."),
        click.option("-h", "--host", metavar="HOSTNAME", help="Database server host or socket directory."),
        click.option("-p", "--port", metavar="PORT", help="Database server port number."),
        click.option("-U", "--username", metavar="NAME", help="Connect as specified database user."),
        click.option("-w", "--no-password", is_flag=True, help="Never prompt for password."),
        click.option("-W", "--password", is_flag=True, help="Force password prompt."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def connection_settings(
    *,
    dbname: str | None,
    host: str | None,
    port: str | None,
    username: str | None,
    no_password: bool,
    password: bool,
    application_name: str | None = None,
) -> ConnectionSettings:
    """Turn the options into settings; application_name is what the program that we stand in for calls itself.

    Like that program, a command with such a name takes no bare database name for a connection string.
    """
    # Here: it loads libpq, which not every drop-in command needs.
    from polarvault.server.connection import APPLICATION_NAME, ConnectionSettings, PasswordPolicy
    from polarvault.server.conninfo import from_locale, quote_conninfo_value

    policy = PasswordPolicy.WHEN_NEEDED
    if password:
        policy = PasswordPolicy.FORCE
    elif no_password:
        policy = PasswordPolicy.NEVER
    conninfo = from_locale(dbname)
    if conninfo and application_name is None and "=" not in conninfo and "://" not in conninfo:
        conninfo = f"dbname={quote_conninfo_value(conninfo)}"
    return ConnectionSettings(
        conninfo, from_locale(host), from_locale(port), from_locale(username), policy,
        application_name=application_name or APPLICATION_NAME, prompt=_ask_password,
    )  # fmt: skip


def _ask_password(text: str) -> str:
    """Ask on the terminal, or read standard input where there is none, as PostgreSQL's own clients do."""
    try:
        with warnings.catch_warnings():
            # Without a terminal nothing is echoed that a person has typed.
            warnings.simplefilter("ignore", getpass.GetPassWarning)
            return getpass.getpass(text)
    except EOFError:
        raise UsageError(
            "a password is needed, but there is no terminal to ask for it and nothing on standard input",
            hint="put it into ~/.pgpass (mode 0600) or PGPASSWORD, and leave -W out",
        ) from None
