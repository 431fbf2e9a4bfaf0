"""What verifybackup computes without looking at a backup: CRCs put together, halves told apart, pages in pieces."""

from __future__ import annotations

import hashlib

import google_crc32c
from hypothesis import example, given, settings
from hypothesis import strategies as st

from polarvault.model.lsn import Lsn
from polarvault.pgfiles.crc32c import combine
from polarvault.pgfiles.manifest import Manifest, ManifestFile, ManifestRange, encode_manifest, read_damaged_manifest
from polarvault.pgfiles.manifest_lines import cut_file_lines
from polarvault.verify.manifest.expected import split_entries

MANY = settings(max_examples=300)


@given(st.binary(max_size=300), st.data())
def test_the_crc_of_a_whole_follows_from_those_of_its_parts(content: bytes, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(content)))
    first, second = content[:cut], content[cut:]
    assert combine(google_crc32c.value(first), google_crc32c.value(second), len(second)) == google_crc32c.value(content)


@given(st.binary(min_size=1, max_size=20), st.integers(0, 1 << 40))
def test_crcs_of_huge_parts_are_put_together_as_if_they_had_been_read(content: bytes, zeros: int) -> None:
    # Appending the zeros in two steps gives the same as in one, however many they are.
    crc = google_crc32c.value(content)
    half = zeros // 2
    assert combine(combine(crc, 0, half), 0, zeros - half) == combine(crc, 0, zeros)


# Two halves in one list

# A file is its size and what is in it; few of both, so that halves often hold files that look alike.
_FILE = st.tuples(st.integers(0, 3), st.integers(0, 3))
_HALF = st.dictionaries(st.sampled_from([f"f{n}" for n in range(12)]), _FILE, max_size=10)


def entries_of(half: dict[str, tuple[int, int]]) -> list[ManifestFile]:
    return [ManifestFile(path, size, "", "CRC32C", f"{content}") for path, (size, content) in half.items()]


def split(
    listed: list[ManifestFile], local: dict[str, tuple[int, int]], shared: dict[str, tuple[int, int]]
) -> tuple[list[ManifestFile], list[ManifestFile]]:
    def is_in(half: dict[str, tuple[int, int]], entry: ManifestFile) -> bool:
        return half.get(entry.path) == (entry.size, int(entry.checksum or ""))

    return split_entries(
        listed,
        {path: size for path, (size, _) in local.items()},
        {path: size for path, (size, _) in shared.items()},
        lambda entry: is_in(local, entry),
        lambda entry: is_in(shared, entry),
    )


@MANY
@given(_HALF, _HALF)
def test_undamaged_halves_are_told_apart(local: dict[str, tuple[int, int]], shared: dict[str, tuple[int, int]]) -> None:
    found = split(entries_of(local) + entries_of(shared), local, shared)
    for half, entries in zip((local, shared), found, strict=True):
        assert {entry.path: (entry.size, int(entry.checksum or "")) for entry in entries} == half


@MANY
@given(_HALF, _HALF, st.data())
def test_a_damaged_file_is_looked_for_in_its_own_half(
    local: dict[str, tuple[int, int]], shared: dict[str, tuple[int, int]], data: st.DataObject
) -> None:
    everything = [(0, path) for path in local] + [(1, path) for path in shared]
    if not everything:
        return
    listed = entries_of(local) + entries_of(shared)
    on_disk = (dict(local), dict(shared))
    half, damaged = data.draw(st.sampled_from(everything))
    replacement = data.draw(st.none() | _FILE)
    if replacement is None:
        del on_disk[half][damaged]
    else:
        on_disk[half][damaged] = replacement
    found = split(listed, *on_disk)
    # A file that is in neither half any more, or in another state, may be the one at which they meet.
    for entries, expected in zip(found, (local, shared), strict=True):
        assert {entry.path for entry in entries} ^ expected.keys() <= {damaged}
    if damaged in local and damaged in shared:
        # What is in both halves is never mixed up: the list says once for each.
        assert [{entry.path for entry in entries} for entries in found] == [set(local), set(shared)]


@given(_HALF, _HALF)
def test_names_with_a_protocol_are_no_files(
    local: dict[str, tuple[int, int]], shared: dict[str, tuple[int, int]]
) -> None:
    done = ManifestFile("file-dio:///x/pg_wal/archive_status/1.done", 0, "", None, None)
    first, second = split([*entries_of(local), *entries_of(shared), done], local, shared)
    assert len(first) + len(second) == len(local) + len(shared)


# A damaged manifest

_MANIFEST = encode_manifest(
    Manifest(
        2,
        [
            ManifestFile("PG_VERSION", 3, "2026-11-23 00:00:00 GMT", "CRC32C", "00112233"),
            ManifestFile("odd \udcff", 0, "2026-11-23 00:00:00 GMT", None, None, encoded=True),
        ],
        [ManifestRange(1, Lsn(0x2000028), Lsn(0x2000130))],
        7711101783964903611,
    )
)


def flipped(position: int, bit: int) -> bytes:
    content = bytearray(_MANIFEST)
    content[position] ^= 1 << bit
    return bytes(content)


def test_every_flipped_bit_that_changes_what_a_manifest_says_is_noticed() -> None:
    # A letter of its own checksum says the same as a capital, and pg_verifybackup takes both.
    first = _MANIFEST.rindex(b'"Manifest-Checksum": "') + len(b'"Manifest-Checksum": "')
    capitals = {(n, 5) for n in range(first, first + 64) if chr(_MANIFEST[n]).isalpha()}
    unnoticed = {
        (n, bit) for n in range(len(_MANIFEST)) for bit in range(8) if read_damaged_manifest(flipped(n, bit))[1] is None
    }
    assert unnoticed == capitals
    for n, bit in capitals:
        assert read_damaged_manifest(flipped(n, bit)) == read_damaged_manifest(_MANIFEST)


@given(st.integers(0, len(_MANIFEST) - 3))
def test_a_manifest_that_was_cut_anywhere_is_noticed(length: int) -> None:
    _, damage = read_damaged_manifest(_MANIFEST[:length])
    assert damage is not None


@given(st.binary(max_size=60))
@example(b"[" * 100_000)
@example(b'{"PostgreSQL-Backup-Manifest-Version": 1, "Files": {"a": 1}, "WAL-Ranges": []}')
@example(b'{"PostgreSQL-Backup-Manifest-Version": 1, "Files": [], "WAL-Ranges": [7]}')
@example(b'{"PostgreSQL-Backup-Manifest-Version": 1, "Files": [], "WAL-Ranges": [{"Timeline": 1e400}]}')
@example(b'{"PostgreSQL-Backup-Manifest-Version": 1, "Files": [], "WAL-Ranges": [], "Manifest-Checksum": NaN}')
@example(_MANIFEST.decode(errors="replace").encode("utf-16"))
@example(b'{"Size": ' + b"9" * 5000 + b"}")
def test_what_is_no_manifest_is_said_to_be_none(content: bytes) -> None:
    manifest, damage = read_damaged_manifest(content)
    assert manifest is None
    assert damage is not None


def test_what_can_be_read_of_a_damaged_manifest_is_used() -> None:
    damaged = _MANIFEST.replace(b"2000130", b"2000131")
    manifest, damage = read_damaged_manifest(damaged)
    assert manifest is not None
    assert [entry.path for entry in manifest.files] == ["PG_VERSION", "odd \udcff"]
    assert "manifest checksum mismatch" in str(damage)


# A manifest that is laid out as servers do it is read by another way, which must come to the same

_LAID_OUT = encode_manifest(
    Manifest(
        1,
        [
            ManifestFile("PG_VERSION", 3, "2026-11-23 00:00:00 GMT", "CRC32C", "00112233"),
            ManifestFile("base/5/1259", 98304, "2026-11-23 00:00:00 GMT", None, None),
            ManifestFile("naïve }, ], \udcff", 0, "", "SHA256", "ab" * 32),
        ],
        [ManifestRange(1, Lsn(0x2000028), Lsn(0x2000130))],
    )
)
_FIRST_LINE_ENDS = _LAID_OUT.index(b'"Files": [') + len(b'"Files": [')
_WORDS = st.sampled_from(
    (
        *(
            b"\n",
            b",\n",
            b"],\n",
            b'"',
            b"\\u0041",
            b"{",
            b" }",
            b"[",
            b"]",
            b", ",
            b"-",
            b"0",
            b"9" * 20,
            b"e1",
            b"NONE",
        ),
        *(b"a", b"A", b'"Size": 1, ', b'"Encoded-Path": "41", ', b'"Checksum": "0', b"true", b"\x00", b"\xff", b""),
        *(b'\n],\n"Files": [\n{ "Path": "second", "Size": 1 }', b'{ "Path": "", "Size": 1, "Last-Modified": "" },\n'),
    )
)


def signed(content: bytes) -> bytes:
    body = content[: content.rfind(b"\n", 0, -1) + 1]
    return body + b'"Manifest-Checksum": "' + hashlib.sha256(body).hexdigest().encode() + b'"}\n'


@given(st.lists(st.tuples(st.integers(_FIRST_LINE_ENDS + 1, len(_LAID_OUT)), st.integers(0, 12), _WORDS), max_size=3))
@example([])
@example([(_FIRST_LINE_ENDS + 1, 0, b'{ "Path": "", "Size": 1, "Last-Modified": "" },\n')])
@example([(_LAID_OUT.index(b"98304"), 0, b"0")])
@example([(_LAID_OUT.index(b"00112233"), 1, b"")])
@example([(_LAID_OUT.index(b'\n],\n"WAL'), 0, b",")])
@example([(_LAID_OUT.index(b'\n],\n"WAL'), 0, b'\n],\n"Files": [\n{ "Path": "second", "Size": 1 }')])
def test_a_manifest_means_the_same_however_it_is_laid_out(changes: list[tuple[int, int, bytes]]) -> None:
    content = _LAID_OUT
    for position, length, word in sorted(changes, reverse=True):
        content = content[:position] + word + content[position + length :]
    content = signed(content)
    # No server writes a space there.
    otherwise = signed(content[:_FIRST_LINE_ENDS] + b" " + content[_FIRST_LINE_ENDS:])
    assert cut_file_lines(otherwise) is None
    read, expected = read_damaged_manifest(content), read_damaged_manifest(otherwise)
    # What is said differs by the checksums of the two, where it shows them.
    assert read[0] == expected[0]
    assert (read[1] is None) == (expected[1] is None)


def test_a_manifest_as_servers_write_it_is_read_line_by_line() -> None:
    cut = cut_file_lines(_LAID_OUT)
    assert cut is not None
    assert [line[0] for line in cut[0]] == ["PG_VERSION", "base/5/1259", "naïve }, ], \udcff"]
