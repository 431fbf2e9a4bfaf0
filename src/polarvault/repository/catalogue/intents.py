"""What commands say that they do, before they do it: whoever removes something looks here, and needs no clock for it.

A command writes its intent and then looks for tombstones; `expire` writes tombstones and then lists intents. So one of
the two always sees the other. What an intent names counts as used. It ends with its command; of a command that was
killed it is left, until somebody on the same host sees that the process is gone, or says so: `polarvault repo abort`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from polarvault.errors import ObjectMissing, RepositoryNewer, RepositoryNotFound, StoreForbidden
from polarvault.model import limits
from polarvault.model.dataclass import dataclass
from polarvault.repository.format import names
from polarvault.repository.format.codec import Codec
from polarvault.repository.format.documents import Fields
from polarvault.repository.format.frame import Kind
from polarvault.storage.objects.model import StoredObject
from polarvault.storage.objects.store import ObjectStore

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import datetime

BACKUP, RESTORE, VERIFY, SYNC, EXPIRE, EXPORT = "backup", "restore", "verify", "sync", "expire", "export"
KNOWN_COMMANDS = frozenset({BACKUP, RESTORE, VERIFY, SYNC, EXPIRE, EXPORT, "drill", "import"})


@dataclass(frozen=True, slots=True)
class Intent:
    """What a command says that it does: it runs, or was killed.

    label: of the backup that is made or read, "" for none; parent: what it is compared with; adopts: whose packs it may
    use. process: what tells a process from a later one of the same number, "" where it is not known.
    """

    id: str
    command: str
    cluster: str
    label: str
    started: str
    host: str
    pid: int
    parent: str = ""
    adopts: tuple[str, ...] = ()
    process: str = ""

    @property
    def labels(self) -> frozenset[str]:
        """All backups that it names, which count as used."""
        return frozenset({self.label, self.parent, *self.adopts} - {""})

    def is_known(self) -> bool:
        """Tell whether this program knows what such a command uses."""
        return self.command in KNOWN_COMMANDS

    def is_over(self) -> bool:
        """Tell whether its process is known to be gone: it ran here, since this machine was started.

        Two machines may have one name, and two containers one machine: only the very same boot and process namespace
        tell. After a restart of the machine somebody has to say so.
        """
        here, _, start = self.process.rpartition(":")
        if self.host != os.uname().nodename or not start or here != _this_place():
            return False
        now = process_mark(self.pid)
        return now is None or (bool(now) and now != self.process)


def process_mark(pid: int) -> str | None:
    """Return what tells a process that runs from others of its number; None if none runs, "" if nobody can tell."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stream:
            # The name before may hold anything; the start is the twentieth word behind it (proc(5)).
            start = stream.read().rpartition(")")[2].split()[19]
    except FileNotFoundError:
        return None if os.path.isdir("/proc/self") else ""
    except (OSError, IndexError):
        return ""
    here = _this_place()
    return f"{here}:{start}" if here else ""


def _this_place() -> str:
    """Return what tells this boot of this machine, and this namespace of processes, from all others; "" if unknown."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as stream:
            return f"{stream.read().strip()}:{os.readlink('/proc/self/ns/pid').partition(':')[2].strip('[]')}"
    except OSError:
        return ""


class Intents:
    """The intents in a repository."""

    def __init__(self, store: ObjectStore, codec: Codec, random: Callable[[int], bytes] = os.urandom) -> None:
        self._store, self._codec, self._random = store, codec, random

    def declare(
        self,
        command: str,
        cluster: str,
        *,
        label: str = "",
        parent: str | None = None,
        adopts: Sequence[str] = (),
        started: datetime | None = None,
    ) -> str:
        """Say what is about to be done; durable on return. Return the intent's id."""
        from datetime import UTC, datetime

        from polarvault.repository.format.record import TIME

        number = self._random(8).hex()
        name = f"{names.INTENTS}/{number}"
        clear = {
            "command": command,
            "cluster": cluster,
            "label": label,
            "parent": parent,
            "adopts": list(adopts),
            "started": (started or datetime.now(UTC)).astimezone(UTC).strftime(TIME),
            "host": os.uname().nodename,
            "pid": os.getpid(),
            "process": process_mark(os.getpid()) or "",
        }
        self._store.put_new(
            name, [memoryview(part) for part in self._codec.document(Kind.INTENT, name, clear)], from_reserve=True
        )
        return number

    def end(self, number: str) -> None:
        """Take an intent back; a success if it is gone."""
        self._store.delete(f"{names.INTENTS}/{number}")

    @contextmanager
    def declared(self, command: str, cluster: str, *, label: str = "") -> Iterator[str]:
        """Hold an intent while something is read; where it cannot be removed it is left, and is no failure."""
        number = self.declare(command, cluster, label=label)
        try:
            yield number
        finally:
            with suppress(StoreForbidden):
                self.end(number)

    def stored(self) -> list[StoredObject]:
        """Return the objects, unread."""
        return list(self._store.list_objects(names.INTENTS))

    def read(self, number: str) -> Intent:
        """Return an intent by its id; RepositoryNotFound if there is none."""
        name = f"{names.INTENTS}/{number}"
        try:
            content = self._store.get(name, most_bytes=limits.REPOSITORY_JSON_BYTES)
        except ObjectMissing:
            raise RepositoryNotFound(f"there is no intent {number}", hint="polarvault repo info lists them") from None
        clear = self._codec.read_document(Kind.INTENT, name, content).clear
        fields = Fields(clear, f'"{name}"')
        return Intent(
            number,
            fields.text("command"),
            fields.text("cluster"),
            fields.optional_text("label") or "",
            fields.text("started"),
            fields.text("host"),
            fields.number("pid"),
            fields.optional_text("parent") or "",
            tuple(word for word in fields.items("adopts") if isinstance(word, str)),
            fields.optional_text("process") or "",
        )

    def listed(self) -> list[Intent]:
        """Return all intents; one that ends meanwhile is left out."""
        found = []
        for one in self.stored():
            try:
                found.append(self.read(one.name.rpartition("/")[2]))
            except RepositoryNotFound:
                continue
        return found

    def end_those_that_are_over(self) -> list[Intent]:
        """Remove the intents of commands that ran on this host and were killed; return them."""
        over = [intent for intent in self.listed() if intent.is_over()]
        for intent in over:
            self.end(intent.id)
        return over


def refuse_unknown(intents: Sequence[Intent], address: str) -> None:
    """Raise RepositoryNewer for a command of which nobody here knows what it uses."""
    for intent in intents:
        if not intent.is_known():
            raise RepositoryNewer(
                f"in {address} {intent.host} runs `{intent.command}`, of which this program does not know what it uses",
                hint=f"use a newer program, or wait for its end; if it is gone: polarvault repo abort {intent.id}",
            )
