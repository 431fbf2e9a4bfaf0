"""`polarvault wal fetch`, a restore_command: parses by hand, because click takes longer to import than the fetch.

Exit statuses are what the server understands (server: access/transam/xlogarchive.c): 0 here it is; 1 it is not there,
and nothing is said about it; above 125 the recovery must not go on (of these the server reads 126 and 127 as a program
that the shell cannot run). SIGTERM keeps its default action: the server knows a restore_command that dies of it as part
of its own shutdown.
"""

from __future__ import annotations

import os
import sys

from polarvault.cli.messages import say_error, say_warning
from polarvault.errors import PolarvaultError, UsageError
from polarvault.wal.names import is_segment_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from polarvault.model.pfs_address import PfsAddress
    from polarvault.wal.source import WalSource
    from polarvault.walarchive.fetch import Fetcher
    from polarvault.walarchive.fetching.ahead import Ahead

SERVED, NOT_THERE, FAILED, INTERRUPTED = 0, 1, 200, 130
# Option: metavar and help; None: a flag. The click command of the same name shows them.
OPTIONS: dict[str, tuple[str | None, str]] = {
    "--wal": ("DIR", "A WAL directory; repeat it for more, which are searched in this order."),
    "--from": ("DIR", "The same."),
    "--spool": ("DIR", "The spool of `wal push`; it is searched behind the directories."),
    "--repo": ("NAME|ADDRESS", "A repository; repeat it for more. They are searched behind the directories."),
    "--cluster": ("NAME", "The cluster's name in the repository."),
    "--config": ("FILE", "The configuration file, instead of the user's own or the system's."),
    "--key-file": ("FILE", "A key file that opens the repository."),
    "--passphrase-file": ("FILE", "A file whose first line is the passphrase that opens it."),
    "--passphrase-command": ("COMMAND", "A shell command that prints the passphrase."),
    "--no-prefetch": (None, "Fetch no segment from a repository before the server asks for it."),
    "--system-identifier": ("N", "Refuse WAL of any other cluster (pg_controldata shows a cluster's identifier)."),
    "--refuse-empty": (
        None,
        "Take a directory without WAL for one that is not mounted, not for an archive that is new.",
    ),
    "--last-segment": ("SEGMENT", "Let recovery end in this segment, whatever is wrong with it and whatever follows."),
    "--polar_storage_cluster_name": ("NAME", "PFS: what the storage of the disk in %p is called.  [default: disk]"),
    "--grace": (
        "SECONDS",
        "How long to wait for a file that is too short and does not grow.  [default: 10]",
    ),
}
_CLUSTER_NAME = "--polar_storage_cluster_name"
# Those that may be repeated.
PLACES = ("--wal", "--from", "--spool", "--repo")
_KEYS = ("--passphrase-file", "--passphrase-command", "--key-file")
# What a fetch starts in the background; nobody else has a use for it.
_PREFETCH = "--prefetch-into"


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
    places, values, names = _parse(arguments)
    _check(places, values)
    if _PREFETCH in values:
        _prefetch(places, values)
        return SERVED
    if len(names) != 2:
        raise UsageError(
            f"a file name and a target path are expected, not {len(names)} words",
            hint="restore_command = 'polarvault wal fetch --wal DIR %f \"%p\"'",
        )
    if (in_pfs := _place_in_pfs(names[1])) is not None:
        from polarvault.walarchive.in_pfs import fetch_into_pfs

        def fetch(target: str) -> bool:
            return _serve(places, values, [names[0], target])

        return SERVED if fetch_into_pfs(fetch, names[0], in_pfs, values.get(_CLUSTER_NAME, "disk")) else NOT_THERE
    return SERVED if _serve(places, values, names) else NOT_THERE


def _place_in_pfs(path: str) -> PfsAddress | None:
    # Nearly every path is one of this machine: what knows PFS is loaded only where the first directory is not here.
    if not path.startswith("pfsd:") and (path[:1] != "/" or os.path.isdir("/" + path.lstrip("/").partition("/")[0])):
        return None
    from polarvault.walarchive.in_pfs import wal_place

    return wal_place(path)


def _serve(places: list[tuple[str, str]], values: dict[str, str], names: list[str]) -> bool:
    ahead = _ahead(places, values, names, make=False)
    if ahead is not None and ahead.take(*names):
        return True
    if not _fetcher(_sources(places, values), values, say_warning).fetch(*names):
        return False
    ahead = _ahead(places, values, names, make=True)
    if ahead is not None:
        # It has its full size, whatever of it is filled.
        ahead.ask(names[0], os.stat(names[1]).st_size)
        ahead.start([option if value == "" else f"{option}={value}" for option, value in [*places, *values.items()]])
    return True


def _fetcher(sources: list[WalSource], values: dict[str, str], warn: Callable[[str], None]) -> Fetcher:
    from polarvault.walarchive.fetch import DEFAULT_GRACE_S, Fetcher

    return Fetcher(
        sources,
        system_identifier=_number("--system-identifier", values),
        refuse_empty="--refuse-empty" in values,
        grace_s=DEFAULT_GRACE_S if (grace := _number("--grace", values)) is None else grace,
        last_segment=_segment("--last-segment", values),
        warn=warn,
    )


def _ahead(places: list[tuple[str, str]], values: dict[str, str], names: list[str], *, make: bool) -> Ahead | None:
    """Return where segments are found that were fetched ahead; only a repository is worth that."""
    is_repository = any(option == "--repo" for option, _ in places)
    if not is_repository or "--no-prefetch" in values or not is_segment_name(names[0]):
        return None
    from polarvault.walarchive.fetching.ahead import open_ahead

    told = repr((places, sorted(values.items()), os.getcwd()))
    number = _number("--system-identifier", values)
    return open_ahead(os.environ, told, names[1], system_identifier=number, make=make)


def _prefetch(places: list[tuple[str, str]], values: dict[str, str]) -> None:
    from polarvault.walarchive.detached import server_runs
    from polarvault.walarchive.fetching.prefetcher import Prefetcher, refuse_to_warn

    # What takes long to arrive is left to the fetch that needs it.
    sources = _sources(places, values)
    fetcher = _fetcher(sources, values | {"--grace": "0"}, refuse_to_warn)
    Prefetcher(values[_PREFETCH], sources, fetcher, is_wanted=server_runs()).run()


def _check(places: list[tuple[str, str]], values: dict[str, str]) -> None:
    if not places:
        raise UsageError("no WAL directory is named", hint="add --wal DIR, or --repo REPOSITORY --cluster NAME")
    cluster = values.get("--cluster")
    are_of_cluster = any(option in ("--spool", "--repo") for option, _ in places)
    if cluster is None and are_of_cluster:
        raise UsageError("--repo and --spool need --cluster", hint="add --cluster NAME")
    if cluster is not None and not are_of_cluster:
        raise UsageError("--cluster needs --repo or --spool", hint="add --repo REPOSITORY")
    named = [values.get(option) for option in _KEYS]
    if sum(value is not None for value in named) > 1:
        raise UsageError("only one of --key-file, --passphrase-file and --passphrase-command can be meant")
    if cluster is not None and ("/" in cluster or cluster.startswith(".")):
        raise UsageError(f"{cluster!r} is not a cluster's name")


def _sources(places: list[tuple[str, str]], values: dict[str, str]) -> list[WalSource]:
    """Return the places in the order in which they are searched: directories, spools, repositories."""
    from polarvault.walarchive.fetching.places import OpenedLater
    from polarvault.walfiles.directory import wal_sources

    directories = [word for option, word in places if option in ("--wal", "--from")]
    spools = [word for option, word in places if option == "--spool"]
    repositories = [word for option, word in places if option == "--repo"]
    cluster = values.get("--cluster", "")
    spooled = wal_sources([os.path.join(word, cluster) for word in spools])
    later: list[WalSource] = [
        OpenedLater(f"the WAL of {cluster} in {word}", _opener(word, cluster, values)) for word in repositories
    ]
    return [*wal_sources(directories), *spooled, *later]


def _opener(word: str, cluster: str, values: dict[str, str]) -> Callable[[], WalSource]:
    # functools takes longer to import than this to write.
    return lambda: _open_repository(word, cluster, values)


def _open_repository(word: str, cluster: str, values: dict[str, str]) -> WalSource:
    from polarvault.config.load import load_configuration
    from polarvault.config.model import KeySource
    from polarvault.repository.wal.opened import open_wal

    configuration = load_configuration(values.get("--config"), os.environ, with_origins=False)
    named = [values.get(option) for option in _KEYS]
    key = KeySource(*named) if any(named) else None
    number = _number("--system-identifier", values)
    return open_wal(configuration, word, cluster, key, os.environ, system_identifier=number)


def _parse(arguments: list[str]) -> tuple[list[tuple[str, str]], dict[str, str], list[str]]:
    """Return the places, each with its option; the other options; and the words that are no options."""
    places: list[tuple[str, str]] = []
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
            if option not in OPTIONS and option != _PREFETCH:
                raise UsageError(f"no such option: {option}", hint="try: polarvault wal fetch --help")
            has_value = option == _PREFETCH or OPTIONS[option][0] is not None
            if has_value and not equals:
                value = next(waiting, "")
            if has_value and not value:
                raise UsageError(f"option {option} needs a value", hint="try: polarvault wal fetch --help")
            if option in PLACES:
                places.append((option, value))
            else:
                values[option] = value
    return places, values, names


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
