"""An encrypted backup, or one compressed by another tool, is called that, with the line to type; it is not damaged."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
from pathlib import Path

import lz4.frame
import pytest
import zstandard

from polarvault.backupset.inventory import take_inventory
from polarvault.backupset.reading.tarstream import read_tar_stream
from polarvault.backupset.source import find_backup
from polarvault.backupset.unfinished import MARKER_NAME
from polarvault.errors import BackupUnusable, IntegrityError
from polarvault.pgfiles.tar import MemberBegins, MemberData, encode_member

OPENSSL = b"Salted__" + bytes(range(200, 248)) * 20
AGE = b"age-encryption.org/v1\n-> X25519 abc\n" + bytes(500)
# A session key encrypted to a public key (version 3), and to a passphrase (version 4), old and new packet format.
GPG_KEY = b"\x85\x01\x0c\x03" + bytes(range(1, 250))
GPG_PASSPHRASE = b"\x8c\x0d\x04\x09\x03\x02" + bytes(range(1, 250))
GPG_NEW = b"\xc3\x0d\x04\x09\x03\x08" + bytes(range(1, 250))
ARMOURED = b"-----BEGIN PGP MESSAGE-----\n\nhQEMA\n-----END PGP MESSAGE-----\n"
FOREIGN = [
    (OPENSSL, "encrypted with openssl", "openssl enc -d"),
    (AGE, "encrypted with age", "age -d"),
    (GPG_KEY, "OpenPGP", "gpg -d"),
    (GPG_PASSPHRASE, "OpenPGP", "gpg -d"),
    (GPG_NEW, "OpenPGP", "gpg -d"),
    (ARMOURED, "OpenPGP", "gpg -d"),
    (lzma.compress(b"x" * 999), "compressed with xz", "xz -dc"),
    (bz2.compress(b"x" * 999), "compressed with bzip2", "bzip2 -dc"),
]


@pytest.mark.parametrize(("content", "what", "command"), FOREIGN)
def test_a_file_is_called_what_it_is(tmp_path: Path, content: bytes, what: str, command: str) -> None:
    path = tmp_path / "backup.tar.gpg"
    path.write_bytes(content)
    with pytest.raises(BackupUnusable, match=what) as caught:
        find_backup(str(path))
    assert str(caught.value.hint).startswith(f"{command}")
    assert f"{path} | polarvault restore - -D DIRECTORY" in str(caught.value.hint)


@pytest.mark.parametrize(("content", "what", "command"), FOREIGN)
def test_so_is_standard_input(content: bytes, what: str, command: str) -> None:
    with pytest.raises(BackupUnusable, match=f"standard input is .*{what}"):
        list(read_tar_stream(io.BytesIO(content)))


@pytest.mark.parametrize("name", ["base.tar", "base.tar.gz", "base.tar.zst", "base.tar.lz4"])
def test_a_tar_of_a_directory_that_was_encrypted_under_its_old_name_is_not_called_damaged(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_bytes(OPENSSL)
    with pytest.raises(BackupUnusable, match="encrypted with openssl"):
        take_inventory(find_backup(str(tmp_path)))


@pytest.mark.parametrize("name", ["base.tar.gpg", "base.tar.gz.age", "base.tar.zst.enc", "base.tar.asc"])
def test_a_directory_of_encrypted_tars_is_called_that(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(OPENSSL)
    with pytest.raises(BackupUnusable, match="encrypted"):
        find_backup(str(tmp_path))


def test_random_bytes_are_damaged_and_not_encrypted(tmp_path: Path) -> None:
    (tmp_path / "base.tar.gz").write_bytes(struct.pack("64I", *range(7, 71)))
    with pytest.raises(IntegrityError, match="damaged"):
        take_inventory(find_backup(str(tmp_path)))


class Pipe(io.RawIOBase):
    """Gives a few bytes at a time and cannot be rewound."""

    def __init__(self, content: bytes) -> None:
        self._rest = content

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        step = self._rest[: min(len(buffer), 7)]
        self._rest = self._rest[len(step) :]
        buffer[: len(step)] = step
        return len(step)


PACKERS = {"plain": bytes, "gzip": gzip.compress, "zstd": zstandard.compress, "lz4": lz4.frame.compress}


@pytest.mark.parametrize("packer", list(PACKERS))
def test_one_tar_is_read_from_a_pipe_whatever_it_is_compressed_with(packer: str) -> None:
    tar = encode_member("PG_VERSION", b"15\n") + encode_member("base/1/2", b"page" * 300) + bytes(1024)
    events = list(read_tar_stream(Pipe(PACKERS[packer](tar))))  # type: ignore[arg-type]
    assert [event.member.name for event in events if isinstance(event, MemberBegins)] == ["PG_VERSION", "base/1/2"]
    assert sum(event.size for event in events if isinstance(event, MemberData)) == 3 + 1200


@pytest.mark.parametrize("packer", list(PACKERS))
def test_a_pipe_that_ends_too_early_is_an_error(packer: str) -> None:
    tar = encode_member("PG_VERSION", b"15\n") + encode_member("base/1/2", bytes(range(256)) * 300)
    packed = PACKERS[packer](tar)
    with pytest.raises(IntegrityError, match="on standard input"):
        list(read_tar_stream(Pipe(packed[: len(packed) // 2])))  # type: ignore[arg-type]
    with pytest.raises(IntegrityError, match="it is empty"):
        list(read_tar_stream(Pipe(b"")))  # type: ignore[arg-type]


def test_a_backup_that_was_cut_off_is_refused_unless_forced(tmp_path: Path) -> None:
    (tmp_path / "PG_VERSION").write_bytes(b"15\n")
    (tmp_path / MARKER_NAME).write_bytes(b"")
    with pytest.raises(BackupUnusable, match="cut off"):
        find_backup(str(tmp_path))
    assert find_backup(str(tmp_path), force=True).parts
