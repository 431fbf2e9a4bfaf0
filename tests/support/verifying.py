"""Damage a backup and undo it, and ask Polarvault and PostgreSQL's own pg_verifybackup what they say of it."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from polarvault.cli.main import run
from polarvault.instance.account import server_account
from polarvault.instance.model import Binaries
from support.program import program_environment

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verifier has said."""

    status: int
    output: str
    errors: str

    @property
    def is_good(self) -> bool:
        """Tell whether the backup passed."""
        return self.status == 0


def ours(*arguments: str | os.PathLike[str], ordinary_user: bool = False) -> Verdict:
    """Run `polarvault verifybackup` in this process, which saves its start; with the rights of the servers' user."""
    output, errors = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    account = server_account()
    drops = ordinary_user and account.switches
    if drops:
        os.seteuid(account.uid)
    try:
        with redirect_stdout(output), redirect_stderr(errors), _descriptor_of_output(output):
            status = run(["verifybackup", *map(os.fspath, arguments)])
    finally:
        if drops:
            os.seteuid(0)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return Verdict(status, output.getvalue(), errors.getvalue())


@contextmanager
def _descriptor_of_output(output: io.StringIO) -> Iterator[None]:
    """Add what is written to the descriptor of standard output itself, as the JSON object is."""
    kept = os.dup(1)
    try:
        with tempfile.TemporaryFile() as file:
            os.dup2(file.fileno(), 1)
            try:
                yield
            finally:
                os.dup2(kept, 1)
                file.seek(0)
                output.write(file.read().decode())
    finally:
        os.close(kept)


def findings(*arguments: str | os.PathLike[str], of_interest: bool = True) -> list[tuple[str, str, str]]:
    """Return severity, check and subject of everything found; unless told otherwise only of what is not OK."""
    verdict = ours("--json", *arguments)
    result = json.loads(verdict.output)
    assert result["good"] == verdict.is_good
    return [
        (found["severity"], found["check"], found["subject"])
        for found in result["findings"]
        if not of_interest or found["severity"] != "ok"
    ]


def theirs(installation: Binaries, *arguments: str | os.PathLike[str], ordinary_user: bool = False) -> Verdict:
    """Run the installation's own pg_verifybackup."""
    finished = subprocess.run(
        [installation.program("pg_verifybackup"), *map(os.fspath, arguments)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="surrogateescape", cwd="/", check=False,
        timeout=120, env=program_environment({"PATH": f"{installation.directory}:{os.environ['PATH']}"}),
        **(server_account().run_as if ordinary_user else {}),
    )  # fmt: skip
    return Verdict(finished.returncode, finished.stdout, finished.stderr)


# Damage


@contextmanager
def set_aside(path: Path, *, aside: Path) -> Iterator[Path]:
    """Put a copy of a file or tree in its place, free to be changed; the original comes back afterwards."""
    kept = aside / f"kept{len(list(aside.glob('kept*')))}"
    existed = os.path.lexists(path)
    if existed:
        path.rename(kept)
        copy(kept, path)
    try:
        yield path
    finally:
        remove(path)
        if existed:
            kept.rename(path)


def copy(source: Path, target: Path) -> None:
    """Copy a file or a tree as it is, links as links, owners too."""
    subprocess.run(["cp", "-a", "--reflink=auto", source, target], check=True)


def remove(path: Path) -> None:
    """Remove a file or a tree, whatever its permissions are."""
    if path.is_dir() and not path.is_symlink():
        path.chmod(0o700)
        for below in path.rglob("*"):
            if below.is_dir() and not below.is_symlink():
                below.chmod(0o700)
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flip(path: Path, position: int = -1, bit: int = 0) -> None:
    """Invert one bit; a negative position counts from the end."""
    with open(path, "r+b") as file:
        file.seek(position, os.SEEK_SET if position >= 0 else os.SEEK_END)
        (byte,) = file.read(1)
        file.seek(position, os.SEEK_SET if position >= 0 else os.SEEK_END)
        file.write(bytes([byte ^ 1 << bit]))


def cut(path: Path, length: int = -1) -> None:
    """Shorten a file to a length; a negative one is taken away from its end."""
    os.truncate(path, length if length >= 0 else path.stat().st_size + length)


def append(path: Path, content: bytes = b"\0") -> None:
    """Add bytes at the end of a file."""
    with open(path, "ab") as file:
        file.write(content)


def rewrite_manifest(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Edit a manifest and give it the checksum of its new content."""
    fields = json.loads(path.read_bytes())
    del fields["Manifest-Checksum"]
    edit(fields)
    files = ",\n".join(map(json.dumps, fields.pop("Files")))
    body = json.dumps(fields)[:-1].encode() + b',\n"Files": [\n' + files.encode() + b"\n],\n"
    path.write_bytes(body + b'"Manifest-Checksum": "%s"}\n' % sha256(body).hexdigest().encode())


def rewrite_tar(path: Path, changes: Mapping[str, bytes | None], *, added: Sequence[tuple[str, bytes]] = ()) -> None:
    """Write a tar anew with other contents for some members (None: without them) and with more at its end."""
    content = path.read_bytes()
    missing = set(changes)
    with tarfile.open(fileobj=io.BytesIO(content)) as old, open(path, "wb") as new:
        for member in old:
            end = member.offset_data + -(-member.size // 512) * 512
            if member.name not in changes:
                new.write(content[member.offset : end])
                continue
            missing.remove(member.name)
            changed = changes[member.name]
            if changed is not None:
                new.write(_member(member, changed))
        for name, more in added:
            new.write(_member(tarfile.TarInfo(name), more))
        new.write(bytes(1024))
    assert not missing, f"{path} has no member {missing}"


def read_member(path: Path, name: str) -> bytes:
    """Return the content of a tar's member."""
    with tarfile.open(path) as archive:
        member = archive.extractfile(name)
        assert member is not None
        return member.read()


def _member(info: tarfile.TarInfo, content: bytes) -> bytes:
    info.size = len(content)
    return info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512)
