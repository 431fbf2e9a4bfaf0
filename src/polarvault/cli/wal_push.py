"""`polarvault wal push`, an archive_command: parses by hand, because click takes longer to import than a push.

Exit statuses are what the server understands (server: access/transam/pgarch.c): 0, it is archived; from 1 to 125, it is
not, and the server tries again; above that the archiver itself would end.
"""

from __future__ import annotations

import os

from polarvault.cli.messages import say_error
from polarvault.errors import PolarvaultError, UsageError

ARCHIVED, FAILED, INTERRUPTED = 0, 1, 100
# Option: metavar and help. The click command of the same name shows them.
OPTIONS: dict[str, tuple[str, str]] = {
    "--cluster": ("NAME", "The cluster's name in the repository; default: the only one of the configuration."),
    "--repo": ("NAME|ADDRESS", "The repository; default: those of the cluster in the configuration."),
    "--config": ("FILE", "The configuration file, instead of the user's own or the system's."),
    "--key-file": ("FILE", "A key file that opens the repository."),
    "--passphrase-file": ("FILE", "A file whose first line is the passphrase that opens it."),
    "--passphrase-command": ("COMMAND", "A shell command that prints the passphrase."),
}


def run(arguments: list[str]) -> int:
    """Archive one file and return the exit status; never raises."""
    try:
        _push(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED
    except PolarvaultError as problem:
        say_error(problem.message, hint=problem.hint)
        return FAILED
    except Exception as problem:
        say_error(f"{type(problem).__name__}: {problem}")
        return FAILED
    return ARCHIVED


def _push(arguments: list[str]) -> None:
    values, words = _parse(arguments)
    if len(words) != 1:
        raise UsageError(
            f"one path is expected, not {len(words)} words", hint="archive_command = 'polarvault wal push %p'"
        )
    from dataclasses import replace

    from polarvault.config.choice import choose_repositories
    from polarvault.config.load import load_configuration
    from polarvault.config.model import KeySource
    from polarvault.repository.catalogue.opening import open_repository
    from polarvault.repository.format.names import check_word
    from polarvault.walarchive.push import Pusher

    configuration = load_configuration(values.get("--config"), os.environ, check_connection=lambda text: None)
    cluster = values.get("--cluster")
    if cluster is None:
        if len(configuration.clusters) != 1:
            raise UsageError("which cluster this is is not said", hint="write --cluster NAME")
        cluster = next(iter(configuration.clusters))
    check_word(cluster, "a cluster")
    key = [values.get(option) for option in ("--passphrase-file", "--passphrase-command", "--key-file")]
    if sum(value is not None for value in key) > 1:
        raise UsageError("only one of --key-file, --passphrase-file and --passphrase-command can be meant")
    # Archived is what is durable in every repository of the cluster.
    for chosen in choose_repositories(configuration, cluster, values.get("--repo")):
        opened = open_repository(replace(chosen, key=KeySource(*key)) if any(key) else chosen, os.environ)
        try:
            Pusher(opened.repository, cluster).push(words[0])
        finally:
            opened.close()


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
            if option not in OPTIONS:
                raise UsageError(f"no such option: {option}", hint="try: polarvault wal push --help")
            value = value if equals else next(waiting, "")
            if not value:
                raise UsageError(f"option {option} needs a value", hint="try: polarvault wal push --help")
            values[option] = value
    return values, words
