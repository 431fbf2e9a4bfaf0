"""What the drop-in commands share: PostgreSQL's habits on the command line, and its connection options."""

from __future__ import annotations

import getpass
import os
import sys
from collections import deque
from collections.abc import Callable, Mapping, MutableSequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from polarvault import __version__
from polarvault.errors import UsageError
from polarvault.model import versions
from polarvault.model.c_numbers import BLANKS, strtol

if TYPE_CHECKING:
    from polarvault.server.connection import ConnectionSettings

Function = TypeVar("Function", bound=Callable[..., Any])


# The long options of the programs that we stand in for, 13 to 19. An abbreviation that is unique among them means that
# option, whatever options we have besides (server: pg_basebackup.c, pg_receivewal.c, pg_verifybackup.c).
_CONNECTION = "dbname host port username no-password password help version"
_THEIRS = {
    "basebackup": f"""pgdata format checkpoint create-slot incremental max-rate write-recovery-conf slot target
        tablespace-mapping wal-method gzip compress label no-clean no-sync status-interval verbose progress waldir
        no-slot no-verify-checksums no-estimate-size no-manifest manifest-force-encode manifest-checksums sync-method
        {_CONNECTION}""",
    "receivewal": f"""directory endpos no-loop status-interval slot verbose compress create-slot drop-slot
        if-not-exists synchronous no-sync {_CONNECTION}""",
    "verifybackup": """exit-on-error ignore manifest-path format no-parse-wal progress quiet skip-checksums
        wal-directory wal-path help version""",
}
_ALONE = {"-?", "--help", "-V", "--version"}
# Oldest and newest server that is known.
SERVER_MAJORS = (versions.OLDEST.major, versions.NEWEST.major)


class DropInCommand(click.Command):
    """A command that accepts unambiguous abbreviations of long options, as getopt_long does."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Expand abbreviations, then parse."""
        if args and args[0] in _ALONE:
            # What follows is not looked at, as in PostgreSQL's own tools.
            return super().parse_args(ctx, args[:1])
        return super().parse_args(ctx, self._expanded(args))

    def _expanded(self, args: list[str]) -> list[str]:
        options: dict[str, click.Option] = {}
        # With our settings: the command keeps the first help option it is asked for, and -? is one of its names.
        for parameter in self.get_params(click.Context(self, **self.context_settings)):
            if isinstance(parameter, click.Option):
                options |= dict.fromkeys(parameter.opts + parameter.secondary_opts, parameter)
        takes_value = {name: not option.is_flag for name, option in options.items()}
        expanded: list[str] = []
        waiting = deque(args)
        while waiting:
            word = waiting.popleft()
            if word == "--":
                return [*expanded, word, *waiting]
            if word.startswith("--"):
                word = self.with_events(word, waiting)
                name, equals, value = word.partition("=")
                name = self._unambiguous(name, options)
                expanded.append(name + equals + value)
                follows = takes_value.get(name, False) and not equals
            else:
                name = word
                expanded.append(word)
                self._refuse_version_in_group(word, takes_value)
                follows = self._short_takes_next(word, takes_value)
            if name in _ALONE:
                # PostgreSQL's own programs know them as the first word only.
                raise click.UsageError(f"option '{name}' has to come first")
            if follows:
                # The next word is a value, whatever it looks like.
                expanded += [waiting.popleft()] if waiting else []
        return expanded

    def with_events(self, word: str, following: MutableSequence[str]) -> str:
        """Turn `--progress=json`, and `--progress json`, into an option of its own; takes the word that it needs.

        In PostgreSQL's own programs --progress takes no value, and what follows it may be the name of a backup.
        """
        takes_words = any(isinstance(parameter, click.Argument) and parameter.metavar for parameter in self.params)
        if "--progress-json" not in {name for parameter in self.params for name in parameter.opts}:
            return word
        if word == "--progress" and not takes_words and following and following[0] == "json":
            del following[0]
            return "--progress-json"
        return "--progress-json" if word == "--progress=json" else word

    def full_name(self, name: str, options: Mapping[str, click.Option]) -> str:
        """Return the option that an abbreviation means, and what means none, or several, as it is."""
        found = self._matches(name, options)
        return found[0] if len(found) == 1 else name

    def _unambiguous(self, name: str, options: Mapping[str, click.Option]) -> str:
        found = self._matches(name, options)
        if len(found) > 1:
            raise click.UsageError(f"option '{name}' is ambiguous; possibilities: {' '.join(found)}")
        return found[0] if found else name

    def _matches(self, name: str, options: Mapping[str, click.Option]) -> list[str]:
        """Return the options that an abbreviation may mean: those of the replaced program before ours."""
        if name in options:
            return [name]
        theirs = {f"--{known}" for known in _THEIRS.get(self.name or "", "").split()}
        for known in (theirs & options.keys(), options.keys()):
            matches = sorted(option for option in known if option.startswith(name))
            # Two spellings of one option are no choice.
            if len({id(options[match]) for match in matches}) == 1:
                return matches[:1]
            if matches:
                return matches
        return []

    @staticmethod
    def _refuse_version_in_group(word: str, takes_value: dict[str, bool]) -> None:
        """Refuse -V and -? in a group such as -qV: PostgreSQL's own programs know them as the first word only."""
        for letter in word[1:] if len(word) > 2 and word[0] == "-" else "":
            if takes_value.get("-" + letter, False):
                return  # The rest is its value.
            if "-" + letter in _ALONE:
                raise click.UsageError(f"option '-{letter}' has to come first, and alone")

    @staticmethod
    def _short_takes_next(word: str, takes_value: dict[str, bool]) -> bool:
        """Tell whether a group of short options such as -PD ends with one that takes the next word."""
        if len(word) < 2 or word[0] != "-":
            return False
        for position, letter in enumerate(word[1:], 1):
            if takes_value.get("-" + letter, False):
                return position == len(word) - 1
        return False


def progress_json_option(function: Function) -> Function:
    """Add what --progress=json means, beside PostgreSQL's own -P and --progress."""
    return click.option("--progress-json", is_flag=True, hidden=True, expose_value=False)(function)


def version_option(function: Function) -> Function:
    """Add -V and --version.

    The first line has the shape of PostgreSQL's own: program, product whose servers it is for, version that it stands
    for, a number that callers compare with their server's. Ours follows; its last word is such a number as well, for
    callers that look at the last word of all.
    """

    def show(context: click.Context, _: click.Parameter, wanted: bool) -> None:
        if not wanted or context.resilient_parsing:
            return
        name = context.command.name
        oldest, newest = SERVER_MAJORS
        click.echo(f"polarvault-{name} (PostgreSQL) {newest}.0")
        click.echo(f"Polarvault {__version__}, for servers of PostgreSQL {oldest} to {newest}")
        context.exit()

    return click.option(
        "-V", "--version", is_flag=True, expose_value=False, is_eager=True, callback=show,
        help="Show the version and exit.",
    )(function)  # fmt: skip


def status_interval(text: str) -> float:
    """Read -s as PostgreSQL's programs do, with strtol; seconds."""
    number, rest = strtol(text)
    if rest.strip(BLANKS):
        raise UsageError(f'invalid value "{text}" for option -s/--status-interval')
    if number is not None and not 0 <= number <= 2**31 // 1000:
        raise UsageError("-s/--status-interval must be in range 0..2147483")
    return float(number or 0)


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
        application_name=application_name or APPLICATION_NAME,
        prompt=_ask_password if application_name else _insist_on_password,
    )  # fmt: skip


def _ask_password(text: str) -> str:
    """Ask on the terminal, or read standard input where there is none, as PostgreSQL's own clients do.

    The end of standard input is an empty password: what asks for one refuses it in its own words.
    """
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        os.write(2, text.encode())
        return sys.stdin.readline().rstrip("\r\n") if sys.stdin is not None else ""
    try:
        return getpass.getpass(text)
    except EOFError:
        return ""


def _insist_on_password(text: str) -> str:
    """Ask for a password, and say what to do where nobody can answer."""
    answer = _ask_password(text)
    if not answer:
        raise UsageError(
            "a password is needed, but there is no terminal to ask for it and nothing on standard input",
            hint="put it into ~/.pgpass (mode 0600) or PGPASSWORD, and leave -W out",
        )
    return answer
