"""Keys of an encrypted repository: derived, wrapped, kept in files, and refused."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from polarvault.config.model import KeySource
from polarvault.errors import IntegrityError, KeyUnavailable, StorageFailed, UsageError, WrongKey
from polarvault.repository.keys import wrapped as wrapping
from polarvault.repository.keys.ring import KeyRing
from polarvault.repository.keys.sealing import DataKey, ObjectSealer, derive_key, mac_key
from polarvault.repository.keys.secrets import read_key_file, read_secret, write_key_file
from polarvault.repository.keys.wrapped import (
    Scrypt,
    Secret,
    WrappedKey,
    parse_wrapped,
    unlock,
    wrap_for_file,
    wrap_for_passphrase,
)

REPOSITORY = bytes(range(16))
SALT_ID = bytes(range(16, 32))
DATA_KEY = DataKey(1, bytes(range(32, 64)))
FILE_KEY = bytes(range(64, 96))
NAME = "clusters/shop/packs/20261125T224401Z-k3f9/000000"


def _counted() -> Iterator[bytes]:
    number = 0
    while True:
        yield bytes([number])
        number = (number + 1) % 256


def _random() -> wrapping.Random:
    """Return what looks like randomness, and is the same each time."""
    stream = _counted()
    return lambda length: b"".join(next(stream) for _ in range(length))


@pytest.fixture
def quick_scrypt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the least scrypt that is allowed: a hundred of the usual ones would take a minute."""
    monkeypatch.setattr(wrapping, "Scrypt", lambda salt, n=1 << 15, r=8, p=1: Scrypt(salt, n, r, p))


def _sealer(data_key: DataKey = DATA_KEY, *, name: str = NAME, salt_id: bytes = SALT_ID) -> ObjectSealer:
    return ObjectSealer(data_key, repository_id=REPOSITORY, salt_id=salt_id, name=name)


# Sealing


def test_what_is_sealed_is_what_the_format_says() -> None:
    key = HKDF(SHA256(), 32, SALT_ID, b"polarvault 1 object").derive(DATA_KEY.secret)
    nonce = (258).to_bytes(8, "little") + bytes(4)
    bound = REPOSITORY + (258).to_bytes(8, "little") + NAME.encode()
    assert _sealer().seal(258, b"content") == AESGCM(key).encrypt(nonce, b"content", bound)


def test_derived_keys_are_those_of_the_standard() -> None:
    expected = HKDF(SHA256(), 32, REPOSITORY, b"polarvault 1 mac").derive(DATA_KEY.secret)
    assert mac_key(DATA_KEY, repository_id=REPOSITORY) == expected
    assert derive_key(DATA_KEY, salt=SALT_ID, info=b"x") == HKDF(SHA256(), 32, SALT_ID, b"x").derive(DATA_KEY.secret)


def test_the_format_never_changes() -> None:
    assert _sealer().seal(0, b"polarvault").hex() == "3a17c202e6c2707ee137bfab4883f994d7ae531af6ae845f84ef"
    assert mac_key(DATA_KEY, repository_id=REPOSITORY).hex()[:16] == "2b7c735a14bc1cfd"


def test_what_was_sealed_opens_and_takes_sixteen_bytes_more() -> None:
    for content in (b"", b"x", bytes(1 << 20)):
        stored = _sealer().seal(7, content)
        assert len(stored) == len(content) + 16
        assert _sealer().open(7, memoryview(stored)) == content


def test_nothing_opens_in_another_place_or_with_another_key() -> None:
    stored = _sealer().seal(7, b"content")
    others = [
        (_sealer(), 8),
        (_sealer(name=NAME[:-1] + "1"), 7),
        (_sealer(salt_id=bytes(16)), 7),
        (_sealer(DataKey(1, bytes(32))), 7),
        (ObjectSealer(DATA_KEY, repository_id=bytes(16), salt_id=SALT_ID, name=NAME), 7),
    ]
    for sealer, number in others:
        with pytest.raises(IntegrityError, match="does not open"):
            sealer.open(number, stored)


def test_every_flipped_bit_is_found() -> None:
    stored = _sealer().seal(0, b"con")
    for position in range(len(stored) * 8):
        damaged = bytearray(stored)
        damaged[position // 8] ^= 1 << position % 8
        with pytest.raises(IntegrityError):
            _sealer().open(0, bytes(damaged))
    for length in range(len(stored)):
        with pytest.raises(IntegrityError):
            _sealer().open(0, stored[:length])


def test_a_number_that_no_object_has_is_refused() -> None:
    for number in (-1, 65_537):
        with pytest.raises(ValueError, match="no envelope"):
            _sealer().seal(number, b"")


def test_keys_are_not_in_what_is_printed_of_them() -> None:
    wrapped = wrap_for_file(DATA_KEY, FILE_KEY, repository_id=REPOSITORY, recipient="ops", random=_random())
    printed = f"{DATA_KEY!r} {Secret(passphrase=b'open sesame', file_key=FILE_KEY)!r} {wrapped!r}"
    assert "sesame" not in printed
    assert repr(FILE_KEY) not in printed
    assert repr(DATA_KEY.secret) not in printed


# Wrapping


@pytest.mark.usefixtures("quick_scrypt")
def test_a_data_key_is_had_back_with_the_passphrase_only() -> None:
    wrapped = wrap_for_passphrase(
        DATA_KEY, b"correct horse", repository_id=REPOSITORY, recipient="dba@home", random=_random()
    )
    parsed = parse_wrapped(wrapped.key_id, wrapped.document())
    assert parsed == wrapped
    opened = unlock([parsed], Secret(b"correct horse", origin="x"), repository_id=REPOSITORY, address="/r")
    assert opened == {1: DATA_KEY}
    with pytest.raises(WrongKey, match="opens none of the keys of /r, of which 1 are for passphrases"):
        unlock([parsed], Secret(b"correct horsf", origin="the passphrase"), repository_id=REPOSITORY, address="/r")
    with pytest.raises(WrongKey, match="has no key for key files"):
        unlock([parsed], Secret(file_key=FILE_KEY, origin="the file"), repository_id=REPOSITORY, address="/r")


@pytest.mark.usefixtures("quick_scrypt")
def test_scrypt_is_that_of_the_standard() -> None:
    kdf = Scrypt(b"salt" * 4, 1 << 15)
    assert kdf.key(b"secret") == hashlib.scrypt(
        b"secret", salt=b"salt" * 4, n=1 << 15, r=8, p=1, maxmem=1 << 26, dklen=32
    )


def test_the_usual_scrypt_takes_memory() -> None:
    assert 128 * Scrypt(b"").n * Scrypt(b"").r == 128 << 20


def test_a_key_file_needs_no_scrypt_and_opens_every_epoch() -> None:
    keys = [
        wrap_for_file(
            DataKey(epoch, bytes([epoch]) * 32), FILE_KEY, repository_id=REPOSITORY, recipient="a", random=os.urandom
        )
        for epoch in (1, 2)
    ]
    found = unlock(keys, Secret(file_key=FILE_KEY, origin="x"), repository_id=REPOSITORY, address="/r")
    assert {epoch: key.secret[:1] for epoch, key in found.items()} == {1: b"\1", 2: b"\2"}


def test_a_wrapped_key_does_not_open_elsewhere() -> None:
    wrapped = wrap_for_file(DATA_KEY, FILE_KEY, repository_id=REPOSITORY, recipient="a", random=_random())
    assert wrapped.open(REPOSITORY, FILE_KEY) == DATA_KEY
    assert wrapped.open(bytes(16), FILE_KEY) is None
    assert replace(wrapped, epoch=2).open(REPOSITORY, FILE_KEY) is None
    assert replace(wrapped, key_id="0" * 16).open(REPOSITORY, FILE_KEY) is None


def _document(**changes: Any) -> dict[str, Any]:
    wrapped = WrappedKey("0" * 16, 1, "ops", Scrypt(bytes(16)), bytes(60))
    document = wrapped.document()
    for name, value in changes.items():
        if name in ("n", "r", "p", "salt"):
            document["kdf"][name] = value
        else:
            document[name] = value
    return document


@pytest.mark.parametrize(
    "changes",
    [
        {"n": 1 << 14}, {"n": 1 << 21}, {"n": (1 << 17) + 1}, {"n": 0}, {"n": -(1 << 17)}, {"n": 131072.0}, {"n": True},
        {"r": 16}, {"p": 0}, {"p": 5}, {"p": "1"}, {"salt": "00"}, {"salt": None}, {"salt": "0" * 31 + "G"},
        {"kdf": None}, {"kdf": {"name": "argon2"}}, {"kdf": "file"}, {"epoch": 0}, {"epoch": 1 << 32}, {"epoch": "1"},
        {"epoch": True}, {"recipient": "a\x1b[2J"}, {"recipient": ""}, {"recipient": None}, {"wrapped": "00" * 59},
        {"wrapped": "00" * 61}, {"wrapped": None},
    ],
    ids=str,
)  # fmt: skip
def test_a_document_of_a_stranger_is_refused_before_anything_is_computed(changes: dict[str, Any]) -> None:
    assert parse_wrapped("0" * 16, _document()).recipient == "ops"
    with pytest.raises(IntegrityError, match="refused") as caught:
        parse_wrapped("0" * 16, _document(**changes))
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("key_id", ["", "0" * 15, "0" * 17, "../../../etc/pass", "ABCDEFABCDEFABCD"])
def test_an_id_that_is_none_is_refused(key_id: str) -> None:
    with pytest.raises(IntegrityError, match="not the name of a key"):
        parse_wrapped(key_id, _document())


def test_short_passphrases_and_odd_names_are_refused() -> None:
    with pytest.raises(UsageError, match="fewer than 8"):
        wrap_for_passphrase(DATA_KEY, "pässwör".encode(), repository_id=REPOSITORY, recipient="a", random=_random())
    with pytest.raises(UsageError, match="cannot name a key"):
        wrap_for_file(DATA_KEY, FILE_KEY, repository_id=REPOSITORY, recipient="a b", random=_random())


# All keys of a repository


class Documents:
    """Documents in a dictionary."""

    def __init__(self) -> None:
        self.kept: dict[str, Mapping[str, Any]] = {}

    def ids(self) -> Iterable[str]:
        return list(self.kept)

    def read(self, key_id: str) -> Mapping[str, Any]:
        return self.kept[key_id]

    def write(self, key_id: str, document: Mapping[str, Any]) -> None:
        assert key_id not in self.kept
        # As through an object and back.
        self.kept[key_id] = json.loads(json.dumps(document))

    def remove(self, key_id: str) -> None:
        del self.kept[key_id]


PASSPHRASE = Secret(b"correct horse", origin="the passphrase")
FILE = Secret(file_key=FILE_KEY, origin="the key file")


@pytest.fixture
def ring(quick_scrypt: None) -> KeyRing:
    return KeyRing(Documents(), REPOSITORY, "/r")


def _begin(ring: KeyRing, secret: Secret, recipient: str) -> DataKey:
    """Do what making a repository does: a new data key, wrapped for one recipient."""
    data_key = DataKey(1, os.urandom(32))
    key = wrapping.wrap(data_key, secret, repository_id=REPOSITORY, recipient=recipient, random=os.urandom)
    ring.documents.write(key.key_id, key.document())
    return data_key


def test_a_recipient_that_is_added_opens_the_same(ring: KeyRing) -> None:
    data_key = _begin(ring, PASSPHRASE, "dba")
    assert ring.unlock(PASSPHRASE) == {1: data_key}
    ring.add({1: data_key}, FILE, recipient="db1", random=os.urandom)
    assert ring.unlock(FILE) == ring.unlock(PASSPHRASE) == {1: data_key}
    assert [(key.recipient, key.kind, key.epoch) for key in ring.read()] == [
        ("db1", "file", 1),
        ("dba", "passphrase", 1),
    ]
    with pytest.raises(UsageError, match="has a key for 'db1' already"):
        ring.add({1: data_key}, FILE, recipient="db1", random=os.urandom)
    with pytest.raises(WrongKey):
        ring.unlock(replace(FILE, file_key=bytes(32)))


def test_a_key_that_is_removed_opens_nothing_and_the_last_one_stays(ring: KeyRing) -> None:
    data_key = _begin(ring, PASSPHRASE, "dba")
    with pytest.raises(UsageError, match="'dba' is the last key of /r") as caught:
        ring.remove("dba")
    assert "add another one first" in (caught.value.hint or "")
    (added,) = ring.add({1: data_key}, FILE, recipient="db1", random=os.urandom)
    assert [key.recipient for key in ring.remove("dba")] == ["dba"]
    with pytest.raises(WrongKey, match="has no key for passphrases"):
        ring.unlock(PASSPHRASE)
    with pytest.raises(UsageError, match="last key"):
        ring.remove(added.key_id)
    with pytest.raises(UsageError, match="has no key 'dba'"):
        ring.remove("dba")


def test_every_epoch_keeps_a_key(ring: KeyRing) -> None:
    first, second = _begin(ring, FILE, "db1"), DataKey(2, bytes(32))
    other = Secret(file_key=bytes(32), origin="x")
    ring.add({2: second}, other, recipient="db2", random=os.urandom)
    with pytest.raises(UsageError, match="for epoch 1"):
        ring.remove("db1")
    ring.add({1: first, 2: second}, Secret(file_key=b"3" * 32, origin="y"), recipient="db3", random=os.urandom)
    assert ring.unlock(Secret(file_key=b"3" * 32, origin="y")) == {1: first, 2: second}
    ring.remove("db1")
    ring.remove("db2")
    assert {key.recipient for key in ring.read()} == {"db3"}


def test_a_damaged_key_keeps_nobody_else_out(ring: KeyRing) -> None:
    data_key = _begin(ring, PASSPHRASE, "dba")
    ring.add({1: data_key}, FILE, recipient="db1", random=os.urandom)
    damaged = next(key for key in ring.read() if key.recipient == "dba")
    ring.documents.remove(damaged.key_id)
    ring.documents.write(
        damaged.key_id, {**damaged.document(), "kdf": {"name": "scrypt", "n": 1 << 30, "r": 8, "p": 1}}
    )
    assert ring.unlock(FILE) == {1: data_key}
    with pytest.raises(WrongKey) as caught:
        ring.unlock(PASSPHRASE)
    assert f"keys/{damaged.key_id}" in (caught.value.detail or "")


def test_more_keys_than_anybody_has_are_refused(ring: KeyRing) -> None:
    document = _document()
    for number in range(300):
        ring.documents.write(f"{number:016x}", document)
    with pytest.raises(IntegrityError, match="more than 256 keys"):
        ring.read()


# Where secrets come from


def test_a_key_file_is_written_for_its_owner_only_and_never_over_another(tmp_path: Path) -> None:
    path = tmp_path / "key"
    before = os.umask(0)
    try:
        key = write_key_file(str(path), random=_random())
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == "polarvault-key-1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8\n"
    assert read_key_file(str(path)) == key == bytes(range(32))
    with pytest.raises(StorageFailed, match="File exists"):
        write_key_file(str(path), random=os.urandom)
    assert read_key_file(str(path)) == key


@pytest.mark.parametrize(
    "content", [b"", b"polarvault-key-1:", b"polarvault-key-1:AAECAwQF", b"polarvault-key-2:" + b"A" * 43, b"A" * 43,
                b"polarvault-key-1:" + b"!" * 43, b"x" * 5000]
)  # fmt: skip
def test_what_is_no_key_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(KeyUnavailable, match="key"):
        read_key_file(str(path))


def test_a_secret_that_everybody_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "passphrase"
    path.write_text("correct horse\n")
    path.chmod(0o644)
    with pytest.raises(KeyUnavailable, match="everybody may read") as caught:
        read_secret(KeySource(passphrase_file=str(path)), {}, address="/r")
    assert f"chmod o-rwx {path}" in (caught.value.hint or "")
    path.chmod(0o640)
    assert read_secret(KeySource(passphrase_file=str(path)), {}, address="/r").passphrase == b"correct horse"


@pytest.mark.parametrize(
    ("content", "expected"),
    [("a b \n", b"a b "), ("one\ntwo\n", b"one"), ("dos\r\n", b"dos"), ("no end", b"no end"), ("ä\n", "ä".encode())],
)
def test_the_first_line_of_a_file_is_the_passphrase(tmp_path: Path, content: str, expected: bytes) -> None:
    path = tmp_path / "passphrase"
    path.write_bytes(content.encode())
    path.chmod(0o600)
    assert read_secret(KeySource(passphrase_file=str(path)), {}, address="/r").passphrase == expected


def test_a_command_prints_the_passphrase() -> None:
    source = KeySource(passphrase_command="cat; echo correct horse; echo more")
    assert read_secret(source, {"POLARVAULT_PASSPHRASE": "not this one"}, address="/r").passphrase == b"correct horse"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("exit 3", "status 3"),
        ("kill -9 $$", "signal 9"),
        ("true", "is empty"),
        ("echo", "is empty"),
        ("no-such-x", "127"),
    ],
)
def test_a_command_that_fails_is_told_and_its_output_is_not(
    command: str, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyUnavailable, match=said) as caught:
        read_secret(KeySource(passphrase_command=f"{command} # open sesame"), {}, address="/r")
    assert "sesame" not in f"{caught.value.message} {caught.value.hint}"


def test_the_environment_is_taken_where_nothing_else_is_said() -> None:
    environment = {"POLARVAULT_PASSPHRASE": "correct horse"}
    assert read_secret(KeySource(), environment, address="/r").passphrase == b"correct horse"
    with pytest.raises(KeyUnavailable, match="/r is encrypted") as caught:
        read_secret(KeySource(), {}, address="/r")
    assert "POLARVAULT_PASSPHRASE" in (caught.value.hint or "")


@pytest.mark.parametrize("kind", ["missing", "directory", "fifo"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    with pytest.raises(KeyUnavailable, match=str(path)):
        read_secret(KeySource(key_file=str(path)), {}, address="/r")


def test_cryptography_is_loaded_only_where_something_is_sealed() -> None:
    script = (
        "import sys\n"
        "from polarvault.repository.keys import ring, sealing, secrets, wrapped\n"
        "print(sorted(name for name in sys.modules if name.split('.')[0] in ('cryptography', 'obstore', 'psycopg')))\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
