"""`polarvault wal fetch`, a restore_command: parses by hand, because click takes longer to import than the fetch.

Exit statuses are what the server understands (server: access/transam/xlogarchive.c): 0 here it is; 1 it is not there,
and nothing is said about it; above 125 the recovery must not go on (of these the server reads 126 and 127 as a program
that the shell cannot run). SIGTERM keeps its default action: the server knows a restore_command that dies of it as part
of its own shutdown.
"""

from __future__ import annotations

import sys

from polarvault.cli.messages import say_error, say_warning
from polarvault.errors import PolarvaultError, UsageError
from polarvault.wal.names import is_segment_name
from polarvault.walarchive.fetch import DEFAULT_GRACE_S, Fetcher
from polarvault.walfiles.directory import wal_sources

TYPE_CHECKING = False
if TYPE_CHECKING:
    from polarvault.wal.source import WalSource

SERVED, NOT_THERE, FAILED, INTERRUPTED = 0, 1, 200, 130
# Option: metavar and help; None: a flag. The click command of the same name shows them.
OPTIONS: dict[str, tuple[str | None, str]] = {
    "--wal": ("DIR", "A WAL directory; repeat it for more, which are searched in this order."),
    "--repo": ("NAME|ADDRESS", "A repository; it is searched after the directories."),
    "--cluster": ("NAME", "The cluster's name in the repository."),
    "--config": ("FILE", "The configuration file, instead of the user's own or the system's."),
    "--key-file": ("FILE", "A key file that opens the repository."),
    "--passphrase-file": ("FILE", "A file whose first line is the passphrase that opens it."),
    "--passphrase-command": ("COMMAND", "A shell command that prints the passphrase."),
    "--system-identifier": ("N", "Refuse WAL of any other cluster (pg_controldata shows a cluster's identifier)."),
    "--refuse-empty": (
        None,
        "Take a directory without WAL for one that is not mounted, not for an archive that is new.",
    ),
    "--last-segment": ("SEGMENT", "Let recovery end in this segment, whatever is wrong with it and whatever follows."),
    "--grace": (
        "SECONDS",
        f"How long to wait for a file that is too short and does not grow.  [default: {DEFAULT_GRACE_S:g}]",
    ),
}


def run(arguments: list[str]) -> int:
    """Serve one request and return the exit status; never raises."""
    try:
        return _fetch(arguments)
    except ModuleNotFoundError as problem:
        if sys.flags.no_site:
            # A restore_command starts without site-packages to be quick; lz4 and zstd are there.
            return _fetch_with_site_packages(arguments)
        return _failed(f"{problem}", hint="install Polarvault again for the interpreter that restore_command names")
    except KeyboardInterrupt:
        return INTERRUPTED
    except PolarvaultError as problem:
        return _failed(problem.message, hint=problem.hint)
    except Exception as problem:
        # Status 1, which Python uses for a traceback, would tell the server that the WAL has ended.
        return _failed(f"{type(problem).__name__}: {problem}")


def _fetch_with_site_packages(arguments: list[str]) -> int:
    import site

    site.main()
    try:
        return _fetch(arguments)
    except PolarvaultError as problem:
        return _failed(problem.message, hint=problem.hint)
    except Exception as problem:
        return _failed(f"{type(problem).__name__}: {problem}")


def _failed(message: str, *, hint: str | None = None) -> int:
    say_error(message, hint=hint)
    return FAILED


def _fetch(arguments: list[str]) -> int:
    directories, values, names = _parse(arguments)
    sources = [*wal_sources(directories), *_repository(values)]
    if not sources:
        raise UsageError("no WAL directory is named", hint="add --wal DIR, or --repo REPOSITORY --cluster NAME")
    if len(names) != 2:
        raise UsageError(
            f"a file name and a target path are expected, not {len(names)} words",
            hint="restore_command = 'polarvault wal fetch --wal DIR %f \"%p\"'",
        )
    fetcher = Fetcher(
        sources,
        system_identifier=_number("--system-identifier", values),
        refuse_empty="--refuse-empty" in values,
        grace_s=DEFAULT_GRACE_S if (grace := _number("--grace", values)) is None else grace,
        last_segment=_segment("--last-segment", values),
        warn=say_warning,
    )
    return SERVED if fetcher.fetch(*names) else NOT_THERE


def _repository(values: dict[str, str]) -> list[WalSource]:
    """Return the WAL in the repository that is named, if one is."""
    word, cluster = values.get("--repo"), values.get("--cluster")
    if word is None and cluster is None:
        return []
    if word is None or cluster is None:
        raise UsageError("--repo and --cluster are named together", hint="add --repo REPOSITORY --cluster NAME")
    import os

    from polarvault.config.load import load_configuration
    from polarvault.config.model import KeySource
    from polarvault.repository.wal.opened import open_wal

    named = [values.get(option) for option in ("--passphrase-file", "--passphrase-command", "--key-file")]
    if sum(value is not None for value in named) > 1:
        raise UsageError("only one of --key-file, --passphrase-file and --passphrase-command can be meant")
    configuration = load_configuration(values.get("--config"), os.environ, check_connection=lambda text: None)
    key = KeySource(*named) if any(named) else None
    number = _number("--system-identifier", values)
    return [open_wal(configuration, word, cluster, key, os.environ, system_identifier=number)]


def _parse(arguments: list[str]) -> tuple[list[str], dict[str, str], list[str]]:
    """Return the directories, the other options and the words that are no options."""
    directories: list[str] = []
    values: dict[str, str] = {}
    names: list[str] = []
    waiting = iter(arguments)
    for word in waiting:
        if word == "--":
            names += waiting
        elif not word.startswith("--"):
            names.append(word)
        else:
            option, equals, value = word.partition("=")
            if option not in OPTIONS:
                raise UsageError(f"no such option: {option}", hint="try: polarvault wal fetch --help")
            if OPTIONS[option][0] is not None and not equals:
                value = next(waiting, "")
            if OPTIONS[option][0] is not None and not value:
                raise UsageError(f"option {option} needs a value", hint="try: polarvault wal fetch --help")
            if option == "--wal":
                directories.append(value)
            else:
                values[option] = value
    return directories, values, names


def _segment(option: str, values: dict[str, str]) -> str | None:
    text = values.get(option)
    if text is not None and not is_segment_name(text):
        raise UsageError(f"option {option} needs a segment's name of 24 hexadecimal digits, not {text!r}")
    return text


def _number(option: str, values: dict[str, str]) -> int | None:
    text = values.get(option)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()):
        raise UsageError(f"option {option} needs a whole number, not {text!r}")
    return int(text)
