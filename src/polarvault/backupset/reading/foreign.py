"""What a file is instead of a tar that we can read: encrypted, or compressed by something else. Told by its beginning.

An encrypted backup is nothing damaged: it needs a line to type. Sources: age-encryption.org/v1; RFC 9580, 4.2 and 5
(OpenPGP packets); openssl-enc(1) ("Salted__"); the magic numbers of xz, bzip2 and zip.
"""

from __future__ import annotations

import re
import shlex

from polarvault.errors import BackupUnusable

# As much of a file as is looked at.
HEAD_BYTES = 64
_OPENPGP_TAGS = {1: (3, 6), 3: (4, 5, 6)}
_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"age-encryption.org/v1", "encrypted with age", "age -d -i KEYFILE"),
    (b"-----BEGIN AGE ENCRYPTED FILE-----", "encrypted with age", "age -d -i KEYFILE"),
    (b"-----BEGIN PGP MESSAGE-----", "encrypted with OpenPGP (gpg)", "gpg -d"),
    (b"-----BEGIN PKCS7-----", "encrypted with S/MIME", "openssl smime -decrypt -inform PEM -inkey KEYFILE -in"),
    (b"-----BEGIN CMS-----", "encrypted with CMS", "openssl cms -decrypt -inform PEM -inkey KEYFILE -in"),
    (b"Salted__", "encrypted with openssl", "openssl enc -d -aes-256-cbc -pbkdf2 -in"),
    (b"\xfd7zXZ\0", "compressed with xz", "xz -dc"),
    (b"BZh", "compressed with bzip2", "bzip2 -dc"),
    (b"PK\x03\x04", "a zip archive", "unzip -p"),
)
_OPENPGP = ("encrypted with OpenPGP (gpg)", "gpg -d")
# What tools add to the name of a tar that they have encrypted or compressed.
_NAME = re.compile(r"base\.tar(?:\.(?:gz|lz4|zst))?\.(gpg|pgp|asc|age|enc|xz|bz2)\Z")
_BY_SUFFIX = {
    "gpg": _OPENPGP, "pgp": _OPENPGP, "asc": _OPENPGP, "age": ("encrypted with age", "age -d -i KEYFILE"),
    "enc": ("encrypted", "openssl enc -d -aes-256-cbc -pbkdf2 -in"), "xz": ("compressed with xz", "xz -dc"),
    "bz2": ("compressed with bzip2", "bzip2 -dc"),
}  # fmt: skip


def refuse_foreign(path: str, head: bytes) -> None:
    """Raise BackupUnusable, with the line to type, if a file that begins so is encrypted or compressed by another tool.

    path: "-" for standard input. head: the first HEAD_BYTES of the file, or all of it.
    """
    found = _what_it_is(head)
    if found is None:
        return
    what, command = found
    if path == "-":
        raise BackupUnusable(
            f"standard input is {what}, not a tar", hint=f"{command} FILE | polarvault restore - -D DIRECTORY"
        )
    raise BackupUnusable(
        f'"{path}" is {what}; that is not damage',
        hint=f"{command} {shlex.quote(path)} | polarvault restore - -D DIRECTORY  (or: | polarvault verifybackup -)",
    )


def refuse_foreign_names(path: str, names: frozenset[str]) -> None:
    """Raise BackupUnusable if the tar files in a directory are encrypted, or compressed by another tool."""
    for name in sorted(names):
        if match := _NAME.match(name):
            what, command = _BY_SUFFIX[match[1]]
            raise BackupUnusable(
                f'the tar files in "{path}" are {what}, by the name of {name}; that is not damage',
                hint=f"make a directory and undo it there for each file: {command} "
                f"{shlex.quote(f'{path}/{name}')} > DIRECTORY/{name.removesuffix('.' + match[1])}",
            )


def _what_it_is(head: bytes) -> tuple[str, str] | None:
    for magic, what, command in _MAGIC:
        if head.startswith(magic):
            return what, command
    return _OPENPGP if _is_openpgp(head) else None


def _is_openpgp(head: bytes) -> bool:
    """Tell whether a file begins with an encrypted session key (packet 1 or 3) of a version that there is."""
    if len(head) < 8 or not head[0] & 0x80:
        return False
    if head[0] & 0x40:
        tag = head[0] & 0x3F
        length_bytes = 1 if head[1] < 192 else 2 if head[1] < 224 else 5
    else:
        tag = head[0] >> 2 & 0x0F
        length_bytes = (1, 2, 4, 0)[head[0] & 3]
    return head[1 + length_bytes] in _OPENPGP_TAGS.get(tag, ())
