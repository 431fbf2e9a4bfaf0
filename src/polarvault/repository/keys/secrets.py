"""Get passphrases and key files from where the user keeps them, and write new key files.

A passphrase comes from a file, from a command, or from POLARVAULT_PASSPHRASE; never from an option, because every user
of the machine can read command lines. Of a file, and of what a command prints, the first line counts.
"""

from __future__ import annotations

import base64
import binascii
import os
import stat
from collections.abc import Mapping

from polarvault.config.model import KeySource
from polarvault.config.schema import PASSPHRASE_VARIABLE
from polarvault.errors import KeyUnavailable
from polarvault.repository.keys.sealing import KEY_BYTES
from polarvault.repository.keys.wrapped import Random, Secret
from polarvault.storage import files

# A key file is one line: this, and 32 bytes in base64url (RFC 4648) without padding.
_PREFIX = b"polarvault-key-1:"
_MOST_BYTES = 4096


def read_secret(source: KeySource, environment: Mapping[str, str], *, address: str) -> Secret:
    """Return the passphrase or the key for a repository; raise KeyUnavailable if there is none."""
    if source.key_file is not None:
        return Secret(file_key=read_key_file(source.key_file), origin=f'the key file "{source.key_file}"')
    if source.passphrase_file is not None:
        content = _read(source.passphrase_file, "passphrase")
        return Secret(
            _first_line(content, source.passphrase_file), origin=f'the passphrase in "{source.passphrase_file}"'
        )
    if source.passphrase_command is not None:
        return Secret(_run(source.passphrase_command), origin="what passphrase_command prints")
    if environment.get(PASSPHRASE_VARIABLE):
        passphrase = os.fsencode(environment[PASSPHRASE_VARIABLE])
        return Secret(passphrase, origin=f"the passphrase in {PASSPHRASE_VARIABLE}")
    raise KeyUnavailable(
        f"{address} is encrypted, and no passphrase or key file is given",
        hint=f"set {PASSPHRASE_VARIABLE}, or write --passphrase-file or --key-file, or name one in the configuration",
    )


def read_key_file(path: str) -> bytes:
    """Return the key in a file; raise KeyUnavailable."""
    content = _read(path, "key")
    line = content.split(b"\n", 1)[0].strip()
    try:
        encoded = line.removeprefix(_PREFIX) + b"="
        key = base64.b64decode(encoded, altchars=b"-_", validate=True) if line.startswith(_PREFIX) else b""
    except binascii.Error:
        key = b""
    if len(key) != KEY_BYTES:
        raise KeyUnavailable(f'"{path}" is no key file', hint="key files are written by `polarvault repo key add`")
    return key


def write_key_file(path: str, *, random: Random) -> bytes:
    """Write a new key file, which only its owner may read, and return its key; what is there is never replaced.

    Durable on return: what is wrapped for a key that is lost is lost, too.
    """
    key = random(KEY_BYTES)
    content = _PREFIX + base64.urlsafe_b64encode(key).rstrip(b"=") + b"\n"
    try:
        descriptor = files.create_file(path, 0o600, os.O_WRONLY | os.O_EXCL)
        try:
            files.write_all(descriptor, [content])
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as problem:
        raise files.storage_failed(problem, "write the key file", path) from problem
    files.fsync_parent(path)
    return key


def _read(path: str, kind: str) -> bytes:
    try:
        with files.open_regular(path) as opened:
            mode = os.fstat(opened.fileno()).st_mode
            content = opened.read(_MOST_BYTES + 1)
    except OSError as problem:
        raise KeyUnavailable(
            f'could not read the {kind} in "{path}": {problem.strerror}', hint=f"ls -l {path}"
        ) from None
    # Of a group it may be: of those who run backups, say.
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        raise KeyUnavailable(f'everybody may read or write the {kind} in "{path}"', hint=f"chmod o-rwx {path}")
    if len(content) > _MOST_BYTES:
        raise KeyUnavailable(f'"{path}" is too long for a {kind}', hint="it has one line")
    return content


def _first_line(content: bytes, where: str) -> bytes:
    line = content.split(b"\n", 1)[0].removesuffix(b"\r")
    if not line:
        raise KeyUnavailable(f'the first line of "{where}" is empty', hint="the passphrase stands there")
    return line


def _run(command: str) -> bytes:
    import subprocess

    # Its own words go to the terminal, and so may a question; our standard input may be a backup.
    try:
        ran = subprocess.run(["/bin/sh", "-c", command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)
    except OSError as problem:
        raise KeyUnavailable(f"passphrase_command cannot be run: {problem.strerror}", hint="ls -l /bin/sh") from None
    if ran.returncode != 0:
        ended = f"with status {ran.returncode}" if ran.returncode > 0 else f"by signal {-ran.returncode}"
        raise KeyUnavailable(f"passphrase_command ended {ended}", hint="run it by hand; it prints the passphrase")
    return _first_line(ran.stdout[:_MOST_BYTES], "what passphrase_command prints")
