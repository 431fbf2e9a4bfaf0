"""`polarvault wal push`, an archive_command: parses by hand, because click takes longer to import than a push.

Exit statuses are what the server understands (server: access/transam/pgarch.c): 0, it is archived; from 1 to 125, it is
not, and the server tries again; above that the archiver itself would end.
"""

from __future__ import annotations

import os
import sys

from polarvault.errors import PolarvaultError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from polarvault.model.pfs_address import PfsAddress
    from polarvault.walarchive.pushing.ahead import Ahead
    from polarvault.walarchive.pushing.destinations import Destinations
    from polarvault.walarchive.pushing.marks import Marks
    from polarvault.walarchive.pushing.spool import Spool

ARCHIVED, FAILED, INTERRUPTED = 0, 1, 100
# Option: metavar and help; None: a flag. The click command of the same name shows them.
OPTIONS: dict[str, tuple[str | None, str]] = {
    "--cluster": ("NAME", "The cluster's name in the repository; default: the only one of the configuration."),
    "--repo": ("NAME|ADDRESS", "The repository; default: those of the cluster in the configuration."),
    "--config": ("FILE", "The configuration file, instead of the user's own or the system's."),
    "--key-file": ("FILE", "A key file that opens the repository."),
    "--passphrase-file": ("FILE", "A file whose first line is the passphrase that opens it."),
    "--passphrase-command": ("COMMAND", "A shell command that prints the passphrase."),
    "--to": ("DIR", "A plain directory instead of a repository; it gets the files that receivewal would write."),
    "--spool": ("DIR", "Keep the file here while a repository is away; later pushes upload it."),
    "--spool-max": ("SIZE", "What the spool may take, as 20GB; when it is full, the push fails."),
    "--flush-spool": (None, "Upload what is in the spool, all of it, and push no other file: for a timer."),
    "--polar_storage_cluster_name": ("NAME", "PFS: what the storage of the disk in %p is called; default: disk."),
    "--one": (None, "Push this file only, not what else the server wants archived."),
}
_CLUSTER_NAME = "--polar_storage_cluster_name"
# What a push starts in the background; nobody else has a use for it.
AHEAD_OF = "--push-ahead-of"
_KEYS = ("--passphrase-file", "--passphrase-command", "--key-file")


def run(arguments: list[str]) -> int:
    """Archive one file and return the exit status; never raises."""
    try:
        _push(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED
    except PolarvaultError as problem:
        return _failed(problem.message, hint=problem.hint)
    except Exception as problem:
        return _failed(f"{type(problem).__name__}: {problem}")
    return ARCHIVED


def _failed(message: str, *, hint: str | None = None) -> int:
    # Most calls say nothing, and one module less is a fiftieth of what those take that a mark answers.
    from polarvault.cli.messages import say_error

    say_error(message, hint=hint)
    return FAILED


def _push(arguments: list[str]) -> None:
    values, words = _parse(arguments)
    if AHEAD_OF in values:
        _push_ahead(values)
        return
    if ("--spool" in values) != ("--spool-max" in values):
        raise UsageError("--spool and --spool-max are named together", hint="as --spool DIR --spool-max 20GB")
    if "--flush-spool" in values and not words:
        _flush(values)
        return
    if len(words) != 1:
        raise UsageError(
            f"one path is expected, not {len(words)} words", hint="archive_command = 'polarvault wal push %p'"
        )
    if "--flush-spool" in values:
        raise UsageError("--flush-spool pushes no other file", hint="leave out the path")
    if (in_pfs := _place_in_pfs(words[0])) is not None:
        from polarvault.walarchive.in_pfs import push_out_of_pfs

        cluster_name = values.pop(_CLUSTER_NAME, "disk")
        # What else waits is named in PFS, too: each file is pushed by the server's own call.
        push_out_of_pfs(lambda path: _push_file(values | {"--one": ""}, path), in_pfs, cluster_name)
        return
    values.pop(_CLUSTER_NAME, None)
    _push_file(values, words[0])


def _place_in_pfs(path: str) -> PfsAddress | None:
    # Nearly every path is one of this machine: what knows PFS is loaded only where the first directory is not here.
    if not path.startswith("pfsd:") and (path[:1] != "/" or os.path.isdir("/" + path.lstrip("/").partition("/")[0])):
        return None
    from polarvault.walarchive.in_pfs import wal_place

    return wal_place(path)


def _push_file(values: dict[str, str], path: str) -> None:
    if "--to" in values:
        if more := sorted(values.keys() - {"--to", "--one"}):
            raise UsageError(f"--to names a directory, for which {more[0]} means nothing")
        from polarvault.walarchive.pushing.directory import DirectoryPusher

        DirectoryPusher(values["--to"]).push(path)
        return
    _into_repositories(values, path)


def _add_site_packages() -> None:
    """Make importable what compresses, where the program was started without (-S), like a restore_command."""
    if sys.flags.no_site:
        import site

        site.main()


def _flush(values: dict[str, str]) -> None:
    _add_site_packages()
    destinations = _destinations(values)
    spool = _spool(values, destinations.cluster)
    if spool is None:
        raise UsageError("--flush-spool needs --spool DIR and --spool-max SIZE")
    try:
        spool.upload(destinations.push, within_s=None)
    finally:
        destinations.close()


def _spool(values: dict[str, str], cluster: str) -> Spool | None:
    if "--spool" not in values:
        return None
    from polarvault.config.values import size_bytes
    from polarvault.walarchive.pushing.spool import Spool

    try:
        most_bytes = size_bytes(values["--spool-max"])
    except ValueError as problem:
        raise UsageError(f"--spool-max {problem}") from None
    return Spool(values["--spool"], cluster, most_bytes)


def _into_repositories(values: dict[str, str], path: str) -> None:
    named = [values.get(option) for option in _KEYS]
    if sum(value is not None for value in named) > 1:
        raise UsageError("only one of --key-file, --passphrase-file and --passphrase-command can be meant")
    marks = None if "--one" in values else _marks(values, path)
    if marks is None:
        _with_destinations(values, path, None)
        return
    if marks.take(path):
        return
    from polarvault.walarchive.pushing.ahead import Ahead

    ahead = Ahead(marks, path)
    if not ahead.take():
        _with_destinations(values, path, ahead)


def _marks(values: dict[str, str], path: str) -> Marks | None:
    from polarvault.config.places import candidate_files
    from polarvault.storage.state_directory import data_directories
    from polarvault.walarchive.pushing.marks import open_marks

    # What the marks of this command line are bound to: relative paths mean what they mean in this directory.
    told = repr((sorted(values.items()), os.getcwd(), _first(candidate_files(values.get("--config"), os.environ))))
    return open_marks(os.environ, told, outside=data_directories(path))


def _with_destinations(values: dict[str, str], path: str, ahead: Ahead | None) -> None:
    """Push a file; ahead: what to begin with others that wait."""
    _add_site_packages()
    destinations = _destinations(values)
    spool = _spool(values, destinations.cluster)
    try:
        # What has waited longest goes first.
        is_free = spool is None or not (spool.was_away() or spool.waiting())
        if ahead is not None and is_free and _is_open(destinations):
            words = [f"{option}={value}" if value else option for option, value in values.items()]
            ahead.start([*words, f"{AHEAD_OF}={os.path.abspath(path)}"])
        if spool is None:
            destinations.push(path)
        else:
            _push_or_keep(path, destinations, spool)
    finally:
        destinations.close()


def _is_open(destinations: Destinations) -> bool:
    try:
        destinations.open()
    except PolarvaultError:
        return False  # Pushing the file says so.
    return True


def _push_ahead(values: dict[str, str]) -> None:
    """Be the process that a call has left behind: push what waits beside its file."""
    directory, own = os.path.split(os.path.abspath(values.pop(AHEAD_OF)))
    marks = _marks(values, os.path.join(directory, own))
    if marks is None:
        return
    from polarvault.walarchive.detached import hold, say_work, server_runs
    from polarvault.walarchive.pushing.ahead import work_of
    from polarvault.walarchive.pushing.forerunner import Forerunner
    from polarvault.walarchive.pushing.marks import place_identity

    # Held until the process ends: whatever it ends of, the kernel frees it.
    if (lock := hold(marks.directory)) is None:
        return
    say_work(lock, work_of(marks, directory))
    runs = server_runs()
    _add_site_packages()
    destinations = _destinations(values)
    spool = _spool(values, destinations.cluster)
    # Before they are opened: what is moved or unmounted afterwards stays open here, and is not what the server means.
    places = [place_identity(path) for path in destinations.places()]
    destinations.open()
    # The data directory may be moved, and its file system unmounted, when the server is gone.
    os.chdir("/")
    Forerunner(
        marks, directory, destinations.push, places, own=own,
        # What is in the spool goes first, and the calls see to that.
        is_wanted=lambda: runs() and (spool is None or not spool.waiting()),
        give_up=lambda: say_work(lock, b""),
    ).run()  # fmt: skip


def _push_or_keep(path: str, destinations: Destinations, spool: Spool) -> None:
    from polarvault.cli.messages import say_warning
    from polarvault.walarchive.pushing.spool import push_or_keep

    is_kept, why = push_or_keep(path, destinations.push, spool)
    if is_kept and why is not None:
        say_warning(f'{why.message}; "{path}" is kept in "{spool.path}"')
    elif why is not None:
        say_warning(f"what is in the spool is refused: {why.message}")


def _destinations(values: dict[str, str]) -> Destinations:
    """Return the cluster's repositories, not yet opened."""
    from polarvault.config.choice import choose_repositories
    from polarvault.config.load import load_configuration
    from polarvault.config.model import KeySource
    from polarvault.model.dataclass import replace
    from polarvault.repository.format.names import check_word
    from polarvault.walarchive.pushing.destinations import Destinations

    configuration = load_configuration(values.get("--config"), os.environ, with_origins=False)
    cluster = values.get("--cluster")
    if cluster is None:
        if len(configuration.clusters) != 1:
            raise UsageError("which cluster this is is not said", hint="write --cluster NAME")
        cluster = next(iter(configuration.clusters))
    check_word(cluster, "a cluster")
    key = KeySource(*(values.get(option) for option in _KEYS))
    chosen = [
        one if key == KeySource() else replace(one, key=key)
        for one in choose_repositories(configuration, cluster, values.get("--repo"))
    ]
    return Destinations(chosen, cluster, os.environ, configuration=configuration.path)


def _first(candidates: list[str]) -> str | None:
    return next((path for path in candidates if os.path.lexists(path)), None)


def _parse(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    values: dict[str, str] = {}
    words: list[str] = []
    waiting = iter(arguments)
    for word in waiting:
        if word == "--":
            words += waiting
        elif not word.startswith("--"):
            words.append(word)
        else:
            option, equals, value = word.partition("=")
            if option not in OPTIONS and option != AHEAD_OF:
                raise UsageError(f"no such option: {option}", hint="try: polarvault wal push --help")
            if option != AHEAD_OF and OPTIONS[option][0] is None:
                values[option] = ""
                continue
            value = value if equals else next(waiting, "")
            if not value:
                raise UsageError(f"option {option} needs a value", hint="try: polarvault wal push --help")
            values[option] = value
    return values, words
