"""Which manifests are accepted: exactly those that the pg_verifybackup of the backup's version accepts.

No server is needed: a directory of four small files is a backup to both programs as long as no WAL is to be read.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest

from polarvault.backupset.skeleton import missing_directories
from polarvault.instance.account import server_account
from polarvault.instance.model import Binaries
from polarvault.pgfiles.manifest import checksum
from support.servers import EXPECTED, ServerPool, found_installations, missing_reason
from support.small_files import SYSTEM_IDENTIFIER, control_bytes, label_bytes
from support.verifying import ours, theirs

pytestmark = pytest.mark.postgres

# Version and catalog version of pg_control (catversion.h of each release).
CONTROL = {
    13: (1300, 202007201), 14: (1300, 202107181), 15: (1300, 202209061), 16: (1300, 202307071),
    17: (1700, 202406281), 18: (1800, 202506291),
}  # fmt: skip
MAJORS = sorted({*found_installations(), *EXPECTED} & CONTROL.keys())
# Words of Python's, of its json package and of our own variables.
PYTHONS_WORDS = re.compile(
    r"Traceback|NoneType|object has no|not subscriptable|Expecting|delimiter|Extra data|invalid literal|codec|'\w+' is"
    r"|<class|dict|Invalid control|unterminated string|argument|recursion",
    re.IGNORECASE,
)


Replacement = bytes | Callable[[re.Match[bytes]], bytes]


@dataclass(frozen=True, slots=True)
class TinyBackup:
    """A backup of four files, and the body (all but the last line) of the manifest that its server writes."""

    installation: Binaries
    directory: Path
    body: bytes

    def both(self, manifest: bytes) -> tuple[int, int, str]:
        """Return the exit status of both programs for a manifest, and what ours says."""
        (self.directory / "backup_manifest").write_bytes(manifest)
        mine = ours("-n", self.directory)
        return mine.status, theirs(self.installation, "-n", self.directory).status, mine.errors


@pytest.fixture(scope="module")
def backups(servers: ServerPool) -> Iterator[Callable[[int], TinyBackup]]:
    root = Path(tempfile.mkdtemp(prefix="pv-", dir="/tmp"))
    root.chmod(0o755)
    made: dict[int, TinyBackup] = {}

    def get(major: int) -> TinyBackup:
        if major not in servers.installations:
            pytest.skip(missing_reason(major))
        installation = servers.installations[major]
        if not (Path(installation.directory) / "pg_verifybackup").exists():
            pytest.skip(f"this installation of PostgreSQL {major} has no pg_verifybackup")
        if major not in made:
            made[major] = tiny_backup(installation, root / str(major))
        return made[major]

    yield get
    shutil.rmtree(root)


def tiny_backup(installation: Binaries, directory: Path) -> TinyBackup:
    server_account().make_directory(directory)
    for path in ("global", "base", "pg_xact", "pg_multixact/offsets"):
        (directory / path).mkdir(parents=True)
    for missing in missing_directories(str(directory), None):
        Path(missing).mkdir(parents=True)
    version, catalog = CONTROL[installation.major]
    files = {
        "backup_label": label_bytes(), "base/1": b"one",
        "PG_VERSION": b"%d\n" % installation.major,
        "global/pg_control": control_bytes(version, catalog), "pg_xact/0000": b"@", "pg_multixact/offsets/0000": b"",
    }  # fmt: skip
    entries = []
    for path, content in files.items():
        (directory / path).write_bytes(content)
        entries.append(
            f'{{ "Path": "{path}", "Size": {len(content)}, "Last-Modified": "2026-11-22 12:00:00 GMT", '
            f'"Checksum-Algorithm": "CRC32C", "Checksum": "{checksum(content, "CRC32C")}" }}'
        )
    is_new = installation.major >= 17
    identifier = f'"System-Identifier": {SYSTEM_IDENTIFIER},\n' if is_new else ""
    head = f'{{ "PostgreSQL-Backup-Manifest-Version": {2 if is_new else 1},\n{identifier}'
    ranges = '"WAL-Ranges": [\n{ "Timeline": 3, "Start-LSN": "0/50144340", "End-LSN": "0/50150000" }\n],\n'
    listed = ",\n".join(entries)
    return TinyBackup(installation, directory, f'{head}"Files": [\n{listed}\n],\n{ranges}'.encode())


def changed(body: bytes, pattern: bytes, replacement: Replacement) -> bytes | None:
    """Return the body with the first match replaced; None where there is none, as an older manifest lacks fields."""
    text, count = re.subn(pattern, replacement if callable(replacement) else lambda _: replacement, body, count=1)
    return text if count else None


def with_checksum(body: bytes, last: bytes = b'"Manifest-Checksum": "%s"}\n') -> bytes:
    return body + (last % sha256(body).hexdigest().encode() if b"%s" in last else last)


# Each replaces the first match of a pattern in the body; VERSION, SIZE, ... are shorthands for patterns.

VERSION = rb'(?<="PostgreSQL-Backup-Manifest-Version": )\d'
PATH = rb'"Path": "base/1"'
SIZE = rb'(?<="base/1", "Size": )3'
ALGORITHM = rb'(?<=GMT", )"Checksum-Algorithm": "CRC32C"'
CHECKSUM = rb'(?<="CRC32C", )"Checksum": "\w+"'
VALUE = rb'(?<="Checksum": ")\w+(?=")'
FILES = rb'"Files": \[[^\]]*\],\n'
RANGES = rb'"WAL-Ranges": \[[^\]]*\],\n'
ONE_RANGE = rb'{ "Timeline"[^}]*}'
TIMELINE = rb'(?<="Timeline": )3'
START = rb'(?<="Start-LSN": )"[^"]*"'
END = rb'(?<="End-LSN": )"[^"]*"'
IDENTIFIER = rb'"System-Identifier": \d+,\n'
NUMBER = rb'(?<="System-Identifier": )\d+'


def again(match: re.Match[bytes]) -> bytes:
    return match[0] * 2


def quoted(match: re.Match[bytes]) -> bytes:
    return b'"' + match[0] + b'"'


def upper(match: re.Match[bytes]) -> bytes:
    return match[0].upper()


def swapped(match: re.Match[bytes]) -> bytes:
    return match[2] + match[1]


CHANGES: dict[str, tuple[bytes, Replacement]] = {
    "nothing": (rb"\A", b""),
    # What is not known
    "unknown top-level field": (RANGES, lambda match: b'"More": 1,\n' + match[0]),
    "unknown top-level object": (RANGES, lambda match: b'"More": {},\n' + match[0]),
    "unknown first field": (rb"\A{", b'{ "More": 1,'),
    "unknown file field": (PATH, PATH + b', "Mode": 384'),
    "unknown file field null": (PATH, PATH + b', "Mode": null'),
    "file field in other letters": (PATH, b'"path": "base/1"'),
    "unknown range field": (TIMELINE, b'3, "More": 1'),
    "a file's field in a range": (TIMELINE, b'3, "Size": 1'),
    "a range's field in a file": (PATH, PATH + b', "Timeline": 1'),
    # The version
    "version quoted": (VERSION, quoted),
    "version 0": (VERSION, b"0"),
    "version 1": (VERSION, b"1"),
    "version 2": (VERSION, b"2"),
    "version 3": (VERSION, b"3"),
    "version negative": (VERSION, b"-1"),
    "version with a blank": (VERSION, lambda match: b'" %s"' % match[0]),
    "version with a zero": (VERSION, lambda match: b'"0%s"' % match[0]),
    "version with a sign": (VERSION, lambda match: b'"+%s"' % match[0]),
    "version as a fraction": (VERSION, lambda match: match[0] + b".0"),
    "version with an exponent": (VERSION, lambda match: match[0] + b"e0"),
    "version true": (VERSION, b"true"),
    "version null": (VERSION, b"null"),
    "version empty": (VERSION, b'""'),
    "version a word": (VERSION, b'"one"'),
    "version an array": (VERSION, b"[1]"),
    "version an object": (VERSION, b'{"a": 1}'),
    "version of 5000 digits": (VERSION, b"9" * 5000),
    "version twice": (rb'"PostgreSQL-Backup-Manifest-Version": \d,', again),
    "no version": (rb'"PostgreSQL-Backup-Manifest-Version": \d,', b""),
    # The system identifier
    "no identifier": (IDENTIFIER, b""),
    "identifier twice": (IDENTIFIER, again),
    "identifier last": (rb"(?s)(%s)(.*)\Z" % IDENTIFIER, swapped),
    "identifier added": (FILES, lambda match: b'"System-Identifier": %d,\n' % SYSTEM_IDENTIFIER + match[0]),
    "identifier quoted": (NUMBER, quoted),
    "identifier of another": (NUMBER, b"7711101783964903612"),
    "identifier a word": (NUMBER, b'"many"'),
    "identifier true": (NUMBER, b"true"),
    "identifier null": (NUMBER, b"null"),
    "identifier empty": (NUMBER, b'""'),
    "identifier a fraction": (NUMBER, b"7711101783964903611.0"),
    "identifier too large": (NUMBER, b"9" * 400),
    "identifier an array": (NUMBER, b"[]"),
    # Lists
    "no files": (FILES, b""),
    "files twice": (FILES, again),
    "files empty and again": (FILES, lambda match: b'"Files": [],\n' + match[0]),
    "files null": (FILES, b'"Files": null,\n'),
    "files an object": (FILES, b'"Files": {},\n'),
    "files a word": (FILES, b'"Files": "none",\n'),
    "files of files": (FILES, b'"Files": [[]],\n'),
    "files with null": (rb'"Files": \[', b'"Files": [null,'),
    "files with a number": (rb'"Files": \[', b'"Files": [7,'),
    "files with an empty entry": (rb'"Files": \[', b'"Files": [{},'),
    "files behind ranges": (rb"(?s)(%s)(%s)" % (FILES, RANGES), swapped),
    "no ranges": (RANGES, b""),
    "ranges twice": (RANGES, again),
    "ranges empty": (RANGES, b'"WAL-Ranges": [],\n'),
    "ranges null": (RANGES, b'"WAL-Ranges": null,\n'),
    "ranges an object": (RANGES, b'"WAL-Ranges": {},\n'),
    "ranges with a number": (RANGES, b'"WAL-Ranges": [5],\n'),
    "ranges with an empty entry": (RANGES, b'"WAL-Ranges": [{}],\n'),
    "a file twice": (rb'(?s){ "Path": "base/1".*?}', lambda match: match[0] + b"," + match[0]),
    # Paths
    "path null": (PATH, b'"Path": null'),
    "path a number": (PATH, b'"Path": 17'),
    "path an object": (PATH, b'"Path": {}'),
    "path an array": (PATH, b'"Path": ["base/1"]'),
    "path empty": (PATH, b'"Path": ""'),
    "path twice": (PATH, b'"Path": "elsewhere", "Path": "base/1"'),
    "path twice, wrong last": (PATH, b'"Path": "base/1", "Path": "elsewhere"'),
    "path an object, then right": (PATH, b'"Path": {}, "Path": "base/1"'),
    "no path": (PATH + b", ", b""),
    "path with escapes": (PATH, b'"Path": "b\\u0061se\\/\\u0031"'),
    "path with a zero escape": (PATH, b'"Path": "base/1\\u0000"'),
    "path with half a character": (PATH, b'"Path": "base/1\\ud83d"'),
    "path with the other half": (PATH, b'"Path": "base/1\\ude00"'),
    "path with a letter": (PATH, b'"Path": "base/\\ud83d\\ude00"'),
    "path with a short escape": (PATH, b'"Path": "base/1\\u12"'),
    "path with a wrong escape": (PATH, b'"Path": "base/\\x31"'),
    "path with a control character": (PATH, b'"Path": "base/1\x01"'),
    "path with a line end": (PATH, b'"Path": "base/1\n"'),
    "path with a tabulator": (PATH, b'"Path": "base/\t1"'),
    "path with DEL": (PATH, b'"Path": "base/1\x7f"'),
    "path not UTF-8": (PATH, b'"Path": "base/\xff"'),
    "path in apostrophes": (PATH, b"\"Path\": 'base/1'"),
    "path encoded": (PATH, b'"Encoded-Path": "626173652f31"'),
    "path encoded in capitals": (PATH, b'"Encoded-Path": "626173652F31"'),
    "path encoded with a blank": (PATH, b'"Encoded-Path": "626173652f 31"'),
    "path encoded, odd": (PATH, b'"Encoded-Path": "626173652f3"'),
    "path encoded, no digits": (PATH, b'"Encoded-Path": "base/1"'),
    "path encoded, zero at its end": (PATH, b'"Encoded-Path": "626173652f310062"'),
    "path encoded, empty": (PATH, b'"Encoded-Path": ""'),
    "path encoded, null": (PATH, b'"Encoded-Path": null'),
    "path encoded, number": (PATH, b'"Encoded-Path": 62'),
    "both paths": (PATH, PATH + b', "Encoded-Path": "626173652f31"'),
    "both paths, one null": (PATH, PATH + b', "Encoded-Path": null'),
    # Sizes
    "size quoted": (SIZE, quoted),
    "size with a blank": (SIZE, b'" 3"'),
    "size with a blank behind": (SIZE, b'"3 "'),
    "size with a sign": (SIZE, b'"+3"'),
    "size with zeros": (SIZE, b'"003"'),
    "size with zeros, a number": (SIZE, b"003"),
    "size in hex": (SIZE, b'"0x3"'),
    "size a fraction": (SIZE, b"3.0"),
    "size with an exponent": (SIZE, b"3e0"),
    "size true": (SIZE, b"true"),
    "size null": (SIZE, b"null"),
    "size an array": (SIZE, b"[3]"),
    "size a word": (SIZE, b'"three"'),
    "size empty": (SIZE, b'""'),
    "size a blank": (SIZE, b'" "'),
    "size a sign": (SIZE, b'"-"'),
    "size negative": (SIZE, b"-3"),
    "size negative, round the corner": (SIZE, b"-18446744073709551613"),
    "size too large": (SIZE, b"9" * 400),
    "size of 5000 digits": (SIZE, b"9" * 5000),
    "size in other digits": (SIZE, '"٣"'.encode()),
    "size twice": (SIZE, b'4, "Size": 3'),
    "size wrong": (SIZE, b"4"),
    "no size": (rb'(?<="base/1", )"Size": 3, ', b""),
    # Dates are not looked at.
    "date null": (rb'(?<="Last-Modified": )"[^"]*"', b"null"),
    "date a word": (rb'(?<="Last-Modified": )"[^"]*"', b'"yesterday"'),
    "date an object": (rb'(?<="Last-Modified": )"[^"]*"', b"{}"),
    "no date": (rb'"Last-Modified": "[^"]*", ', b""),
    # Checksums
    "algorithm in small letters": (ALGORITHM, b'"Checksum-Algorithm": "crc32c"'),
    "algorithm in mixed letters": (ALGORITHM, b'"Checksum-Algorithm": "Crc32c"'),
    "algorithm none": (ALGORITHM, b'"Checksum-Algorithm": "NONE"'),
    "algorithm empty": (ALGORITHM, b'"Checksum-Algorithm": ""'),
    "algorithm null": (ALGORITHM, b'"Checksum-Algorithm": null'),
    "algorithm a number": (ALGORITHM, b'"Checksum-Algorithm": 32'),
    "algorithm another": (ALGORITHM, b'"Checksum-Algorithm": "SHA256"'),
    "algorithm not known": (ALGORITHM, b'"Checksum-Algorithm": "MD5"'),
    "algorithm with a letter like S": (ALGORITHM, '"Checksum-Algorithm": "\u017fha256"'.encode()),
    "no algorithm": (ALGORITHM + b", ", b""),
    "no checksum": (rb", " + CHECKSUM, b""),
    "neither": (rb', "Checksum-Algorithm": "CRC32C", "Checksum": "\w+"', b""),
    "checksum in capitals": (VALUE, upper),
    "checksum wrong": (VALUE, b"00000000"),
    "checksum short": (VALUE, b"0011"),
    "checksum odd": (VALUE, b"001"),
    "checksum no digits": (VALUE, b"zz"),
    "checksum with a blank": (VALUE, lambda match: match[0][:4] + b" " + match[0][4:]),
    "checksum empty": (VALUE, b""),
    "checksum null": (CHECKSUM, b'"Checksum": null'),
    "checksum true": (CHECKSUM, b'"Checksum": true'),
    "checksum a number": (CHECKSUM, b'"Checksum": 12345678'),
    "checksum an array": (CHECKSUM, b'"Checksum": []'),
    # WAL ranges
    "timeline quoted": (TIMELINE, quoted),
    "timeline true": (TIMELINE, b"true"),
    "timeline null": (TIMELINE, b"null"),
    "timeline a fraction": (TIMELINE, b"3.0"),
    "timeline infinite": (TIMELINE, b"1e400"),
    "timeline an array": (TIMELINE, b"[3]"),
    "timeline twice": (TIMELINE, b'"x", "Timeline": 3'),
    "timeline round the corner": (TIMELINE, b"4294967299"),
    "no timeline": (rb'"Timeline": 3, ', b""),
    "no start": (rb'"Start-LSN": "[^"]*", ', b""),
    "no end": (rb', "End-LSN": "[^"]*"', b""),
    "start null": (START, b"null"),
    "start a number": (START, b"5"),
    "start a word": (START, b'"oops"'),
    "start empty": (START, b'""'),
    "start with more behind": (START, b'"0/50144340 and more"'),
    "start with a blank before": (START, b'" 0/50144340"'),
    "start with 0x": (START, b'"0x0/0x50144340"'),
    "start with a blank inside": (START, b'"0 /50144340"'),
    "start in small letters, long": (START, b'"00000000/0000000050144340"'),
    "start without its second half": (START, b'"0/"'),
    "start an object": (START, b"{}"),
    "end a word": (END, b'"x/y"'),
    "end null": (END, b"null"),
    "end true": (END, b"true"),
    # JSON
    "a comma too many": (rb"\]", b",]"),
    "a comma too many in a file": (PATH, PATH + b","),
    "no comma": (rb",\n", b"\n"),
    "a comment": (FILES, lambda match: b"/* more */" + match[0]),
    "NaN": (SIZE, b"NaN"),
    "Infinity": (SIZE, b"-Infinity"),
    "a word in other letters": (rb'(?<="Last-Modified": )"[^"]*"', b"Null"),
    "blanks, tabulators and line ends": (rb": ", b" \t\r\n:\n\n  "),
    "a form feed": (rb": ", b":\f"),
    "a no-break space": (rb": ", ":\xa0".encode()),
    "no line ends inside": (rb"(?s)\A(.*)\n\Z", lambda match: match[1].replace(b"\n", b" ") + b"\n"),
    "byte order mark": (rb"\A", b"\xef\xbb\xbf"),
    "zero byte in front": (rb"\A", b"\0"),
    "deep arrays": (SIZE, b"[" * 20000 + b"]" * 20000),
    "deep objects": (SIZE, b'{"a":' * 20000 + b"1" + b"}" * 20000),
    "an array around": (rb"\A", b"["),
    "UTF-16": (rb"(?s)\A.*\Z", lambda match: match[0].decode().encode("utf-16")),
    "closed too early": (RANGES, lambda match: b"},\n{" + match[0]),
}

# The last line; %s: the right checksum.
LAST_LINES: dict[str, bytes] = {
    "a blank behind": b'"Manifest-Checksum": "%s"} \n',
    "blanks before": b'   "Manifest-Checksum"  :  "%s"  }\n',
    "with a carriage return": b'"Manifest-Checksum": "%s"}\r\n',
    "no line end": b'"Manifest-Checksum": "%s"}',
    "two line ends": b'"Manifest-Checksum": "%s"}\n\n',
    "not closed": b'"Manifest-Checksum": "%s"\n',
    "closed twice": b'"Manifest-Checksum": "%s"}}\n',
    "data behind": b'"Manifest-Checksum": "%s"} more\n',
    "an object behind": b'"Manifest-Checksum": "%s"} {}\n',
    "zero bytes behind": b'"Manifest-Checksum": "%s"}\0\0\n',
    "a field behind": b'"Manifest-Checksum": "%s", "More": 1}\n',
    "ranges behind": b'"Manifest-Checksum": "%s", "WAL-Ranges": []}\n',
    "twice": b'"Manifest-Checksum": "%s", "Manifest-Checksum": ""}\n',
    "short": b'"Manifest-Checksum": "0011"}\n',
    "wrong": b'"Manifest-Checksum": "' + b"00" * 32 + b'"}\n',
    "no digits": b'"Manifest-Checksum": "' + b"zz" * 32 + b'"}\n',
    "null": b'"Manifest-Checksum": null}\n',
    "a number": b'"Manifest-Checksum": 5}\n',
    "true": b'"Manifest-Checksum": true}\n',
    "an array": b'"Manifest-Checksum": ["%s"]}\n',
    "an object": b'"Manifest-Checksum": {}}\n',
    "no value": b'"Manifest-Checksum": }\n',
    "no name": b'"%s"}\n',
    "none": b"}\n",
    "none, and a comma": b'"Last": 1}\n',
    "other name": b'"Manifest-checksum": "%s"}\n',
}


def manifests(body: bytes) -> Iterator[tuple[str, bytes]]:
    for name, (pattern, replacement) in CHANGES.items():
        text = changed(body, pattern, replacement)
        if text is not None:
            yield name, with_checksum(text)
    for name, last in LAST_LINES.items():
        yield f"last line: {name}", with_checksum(body, last)
    digest = sha256(body).hexdigest().upper().encode()
    yield "last line: capitals", body + b'"Manifest-Checksum": "%s"}\n' % digest
    yield "empty", b""
    yield "one line", b'{"PostgreSQL-Backup-Manifest-Version": 1}\n'
    yield "a number", b"5\n\n"
    yield "a word", b'"manifest"\n\n'
    yield "null", b"null\n\n"
    yield "an empty object", b"{}\n\n"
    yield "an empty array", b"[\n]\n"
    yield "only line ends", b"\n\n\n"


@pytest.mark.parametrize("major", MAJORS)
def test_a_manifest_is_accepted_where_the_real_program_accepts_it(
    backups: Callable[[int], TinyBackup], major: int
) -> None:
    backup = backups(major)
    differences, untold = [], []
    for name, manifest in manifests(backup.body):
        mine, other, said = backup.both(manifest)
        if mine != other:
            differences.append(f"{name}: ours {mine}, theirs {other}: {said}")
        if mine and PYTHONS_WORDS.search(said):
            untold.append(f"{name}: {said}")
        if not mine and said:
            untold.append(f"{name} is good, and yet: {said}")
    assert not differences, "\n".join(differences)
    assert not untold, "\n".join(untold)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("unknown top-level field", 'unrecognized top-level field "More"'),
        ("unknown file field", 'file 2: unexpected file field "Mode"'),
        ("unknown range field", 'WAL range 1: unexpected WAL range field "More"'),
        ("timeline true", 'WAL range 1: timeline is not an integer: "true"'),
        ("size null", 'file 2 ("base/1"): file size is not an integer: "null"'),
        ("path an object", "unexpected object start in place of a value, as Path of file 2"),
        ("files with null", "unexpected scalar where file 1 should begin"),
        ("files null", "unexpected scalar where the list of Files should begin"),
        ("deep arrays", "objects and arrays are nested more deeply than in any manifest"),
        ("checksum no digits", 'file 1 ("backup_label"): invalid checksum for file: "zz"'),
        ("no comma", "it is no JSON at line 2, column 1"),
        ("path with half a character", "is half of a character"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(backups: Callable[[int], TinyBackup], name: str, words: str) -> None:
    backup = backups(15)
    text = changed(backup.body, *CHANGES[name])
    assert text is not None
    _, _, said = backup.both(with_checksum(text))
    assert "could not parse backup manifest: " in said
    assert words in said
