"""Try the program with damaged input: it must end soon, in words, within its memory, and write into its target only.

`Worker` runs commands, `Case` gives each a sandbox and judges what came out, `mutate` changes recorded messages.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

Messages = list[tuple[bytes, bytes]]
# Generous on a busy machine: what ends ends in well under a second, what hangs never ends.
TIMEOUT_S = 45.0
PEAK_BYTES = 600 << 20
_SIGNS_OF_A_CRASH = ("Traceback (most recent call last)", "Exception in thread", "Exception ignored", "Fatal Python")
_NASTY_TEXTS = (
    *(b"", b"0", b"-1", b"1", b"4294967295", b"4294967296", b"99999999999999999999", b"9" * 5000, b"1_0", b"+5", b" 7"),
    *(b"0/0", b"FFFFFFFF/FFFFFFFF", b"0/FFFFFFFF", b"1/2/3", b"G/1", b"../../outside/planted", b"/outside/planted"),
    *(
        b"base.tar",
        b"..",
        b".",
        b"a/../../x",
        b"x" * 5000,
        b"d/" * 2000,
        b"\xff\xfe",
        b"\xed\xa0\x80",
        b"\x1b[2J",
        b"%s%n",
    ),
    *(b"pg_tblspc/1", b"backup_manifest", b"backup_manifest.tmp", b"polarvault_backup_in_progress", b"pg_wal/x"),
    *("٣٤".encode(), b"16MB", b"0MB", b"3MB", b"1e5", b"0x10", b"on", b"none", b"\n", b"'", b'"'),
)
_KINDS = b"TDCEZNSAIHGWdcRKn1pmw"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended: status None when it had to be killed."""

    status: int | None
    errors: str
    peak_bytes: int
    printed_bytes: int

    def problem(self) -> str | None:
        """Say what must not be; None if nothing."""
        if self.status is None:
            return "it does not end"
        if any(sign in self.errors for sign in _SIGNS_OF_A_CRASH) or self.status == 70:
            return "it crashes"
        if self.status < 0:
            return f"signal {-self.status} ends it"
        if self.peak_bytes > PEAK_BYTES:
            return f"it takes {self.peak_bytes >> 20} MB"
        if self.status and not self.errors.strip() and not self.printed_bytes:
            return "it fails without a word"
        return None


class Worker:
    """A process that runs commands for us; use it with `with`."""

    def __init__(self) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        environment |= {"PYTHONPATH": str(Path(__file__).parents[1]), "OPENBLAS_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.fuzz_worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()

    def run(self, arguments: Sequence[str], cwd: Path, *, timeout_s: float = TIMEOUT_S, prelude: str = "") -> Outcome:
        """Run one command; prelude is Python that its process executes first, to make something fail."""
        request = {"arguments": list(arguments), "cwd": str(cwd), "timeout_s": timeout_s, "prelude": prelude}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Outcome(**json.loads(self._process.stdout.readline()))


class Sandbox:
    """A directory with a place for the target, and others in which nothing may change; use it with `with`."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="pv-fuzz-", dir="/tmp"))
        self.work = self.root / "work"
        self.work.mkdir()
        # The account that owns what root restores has to get in; each sandbox has a name that nobody guesses.
        self.root.chmod(0o711)
        self.outside = self.root / "outside"
        self.outside.mkdir()
        (self.outside / "victim").write_text("untouched")
        (self.root / "victim").write_text("untouched")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Deep trees and directories without permissions, too.
        subprocess.run(["chmod", "-R", "u+rwX", str(self.root)], check=False, stderr=subprocess.DEVNULL)
        # Not shutil: it goes down a tree by recursion.
        subprocess.run(["rm", "-rf", str(self.root)], check=False)

    def escaped(self, *targets: str) -> list[str]:
        """Return what is new or changed outside of the targets, which are names below `work`."""
        expected = {"victim", "work", "outside"}
        found = [name for name in os.listdir(self.root) if name not in expected]
        found += [f"work/{name}" for name in os.listdir(self.work) if name not in targets]
        found += [f"outside/{name}" for name in os.listdir(self.outside) if name != "victim"]
        victims = (self.root / "victim", self.outside / "victim")
        return found + [str(path) for path in victims if path.read_text() != "untouched"]


def mutate(messages: Messages, rng: random.Random) -> bytes:
    """Return the messages with one to three things changed, as bytes."""
    changed = list(messages)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        changed = rng.choice(_STRUCTURAL)(changed, rng)
    raw = b"".join(_encode(kind, body, rng) for kind, body in changed)
    if rng.random() < 0.15:
        raw = _mutate_bytes(raw, rng)
    if rng.random() < 0.1:
        raw = raw[: rng.randrange(len(raw) + 1)]
    return raw


def _encode(kind: bytes, body: bytes, rng: random.Random) -> bytes:
    return kind + (len(body) + 4).to_bytes(4, "big") + body


def _pick(messages: Messages, rng: random.Random) -> int:
    # What begins and ends an answer is short and matters most.
    if rng.random() < 0.5:
        edges = [*range(min(8, len(messages))), *range(max(0, len(messages) - 8), len(messages))]
        return rng.choice(edges)
    return rng.randrange(len(messages))


def _drop(messages: Messages, rng: random.Random) -> Messages:
    at = _pick(messages, rng)
    return messages[:at] + messages[at + 1 :] if len(messages) > 1 else messages


def _repeat(messages: Messages, rng: random.Random) -> Messages:
    at = _pick(messages, rng)
    return messages[:at] + messages[at : at + 1] * rng.choice((1, 2, 50)) + messages[at:]


def _swap(messages: Messages, rng: random.Random) -> Messages:
    one, other = _pick(messages, rng), _pick(messages, rng)
    swapped = list(messages)
    swapped[one], swapped[other] = swapped[other], swapped[one]
    return swapped


def _flip(messages: Messages, rng: random.Random) -> Messages:
    at = _pick(messages, rng)
    kind, body = messages[at]
    return [*messages[:at], (kind, _mutate_bytes(body, rng)), *messages[at + 1 :]]


def _cut(messages: Messages, rng: random.Random) -> Messages:
    at = _pick(messages, rng)
    kind, body = messages[at]
    return [*messages[:at], (kind, body[: rng.randrange(len(body) + 1)]), *messages[at + 1 :]]


def _change_kind(messages: Messages, rng: random.Random) -> Messages:
    at = _pick(messages, rng)
    return [*messages[:at], (bytes([rng.choice(_KINDS)]), messages[at][1]), *messages[at + 1 :]]


def _insert(messages: Messages, rng: random.Random) -> Messages:
    at = _pick(messages, rng)
    text = rng.choice(_NASTY_TEXTS)
    body = rng.choice(
        (
            b"SERROR\0C42704\0M" + text + b"\0\0", b"SWARNING\0VWARNING\0C01000\0M" + text + b"\0\0",
            b"n" + text + b"\0/x\0", b"m", b"p" + text, b"d" + text, text,
            (1).to_bytes(2, "big") + len(text).to_bytes(4, "big") + text,
            (65535).to_bytes(2, "big"), (1).to_bytes(2, "big") + b"\x7f\xff\xff\xff",
        )
    )  # fmt: skip
    return [*messages[:at], (bytes([rng.choice(_KINDS)]), body), *messages[at:]]


def _change_field(messages: Messages, rng: random.Random) -> Messages:
    """Give a field of a row, or the name of an archive, another text."""
    rows = [
        number for number, (kind, body) in enumerate(messages) if kind == b"D" or (kind == b"d" and body[:1] == b"n")
    ]
    if not rows:
        return _flip(messages, rng)
    at = rng.choice(rows)
    kind, body = messages[at]
    if kind == b"d":
        suffix = rng.choice((b"", b".tar", b".tar.gz"))
        return [*messages[:at], (kind, b"n" + rng.choice(_NASTY_TEXTS) + suffix + b"\0\0"), *messages[at + 1 :]]
    fields: list[bytes | None] = []
    position = 2
    for _ in range(int.from_bytes(body[:2], "big")):
        length = int.from_bytes(body[position : position + 4], "big", signed=True)
        position += 4
        fields.append(None if length < 0 else body[position : position + length])
        position += max(0, length)
    if rng.random() < 0.2 or not fields:
        fields = fields[: rng.randrange(len(fields) + 1)]
    else:
        fields[rng.randrange(len(fields))] = rng.choice((*_NASTY_TEXTS, None))
    encoded = b"".join(
        b"\xff\xff\xff\xff" if field is None else len(field).to_bytes(4, "big") + field for field in fields
    )
    return [*messages[:at], (kind, len(fields).to_bytes(2, "big") + encoded), *messages[at + 1 :]]


def _change_member(messages: Messages, rng: random.Random) -> Messages:
    """Change the header of a tar member inside of the data; its checksum is right again afterwards."""
    with_header = [number for number, (_, body) in enumerate(messages) if b"ustar" in body]
    if not with_header:
        return _flip(messages, rng)
    at = rng.choice(with_header)
    kind, body = messages[at]
    found = body.find(b"ustar", rng.randrange(len(body)))
    start = (found if found >= 0 else body.find(b"ustar")) - 257
    if start < 0 or start + 512 > len(body):
        return _flip(messages, rng)
    header = change_header(body[start : start + 512], rng)
    return [*messages[:at], (kind, body[:start] + header + body[start + 512 :]), *messages[at + 1 :]]


def change_header(header: bytes, rng: random.Random) -> bytes:
    """Return a tar header with one field changed and a checksum that is right."""
    fields: list[tuple[int, int, tuple[bytes, ...]]] = [
        (0, 100, _NASTY_TEXTS),
        (157, 100, (*_NASTY_TEXTS, b"/etc", b"../outside")),
        (
            124,
            12,
            (b"-0000001000", b"\x80" + b"\xff" * 11, b"\xff" * 12, b"77777777777", b"1_0", b"0o17", b"", b"zz", b"5"),
        ),
        (100, 8, (b"-1", b"7777777", b"\xff" * 8, b"0", b"")),
        (136, 12, (b"-1", b"\xff" * 12, b"77777777777")),
        (156, 1, tuple(bytes([one]) for one in b"0123456789LKxgSVM\0")),
        (345, 155, _NASTY_TEXTS),
    ]
    offset, length, values = rng.choice(fields)
    changed = bytearray(header)
    changed[offset : offset + length] = rng.choice(values)[:length].ljust(length, b"\0")
    if rng.random() < 0.4:
        # A link to somewhere, and what follows goes through it.
        changed[156:157], changed[157:257] = b"2", b"../outside".ljust(100, b"\0")
    changed[148:156] = b" " * 8
    changed[148:156] = b"%06o\0 " % sum(changed)
    return bytes(changed)


def _mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if not changed:
            return bytes(rng.randrange(256) for _ in range(rng.randrange(16)))
        at = rng.randrange(len(changed))
        action = rng.randrange(5)
        if action == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif action == 1:
            changed[at] = rng.choice((0, 0xFF, 0x7F, 0x80))
        elif action == 2:
            del changed[at : at + rng.choice((1, 4, 100))]
        elif action == 3:
            changed[at:at] = rng.choice(_NASTY_TEXTS)
        else:
            changed[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\0\0\0\1"))
    return bytes(changed)


_STRUCTURAL: tuple[Callable[[Messages, random.Random], Messages], ...] = (
    _drop, _repeat, _swap, _flip, _flip, _cut, _change_kind, _insert, _change_field, _change_field, _change_member,
    _change_member,
)  # fmt: skip


def unpack(archive: bytes, directory: Path) -> None:
    """Unpack a recorded archive, which is known to be harmless."""
    import io

    directory.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(archive)) as reading:
        reading.extractall(directory, filter="fully_trusted")
