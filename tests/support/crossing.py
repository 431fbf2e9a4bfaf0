"""Two commands at one repository whose requests to the store come in a chosen order."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from polarvault.repository.catalogue.repository import Generation, Repository
from polarvault.storage.objects.store import ObjectStore
from support.faulty_store import FaultyStore, Request
from support.repositories import facts

SEGMENT = 16 << 20
SYSTEM = facts().system_identifier


def with_wal(repository: Repository) -> Repository:
    """Add the WAL that all backups of these tests need, and some from before."""
    repository.ensure_generation("shop", Generation(SYSTEM, 180000, False, SEGMENT, 1 << 30, True))
    wal = repository.wal("shop", SYSTEM, SEGMENT)
    for at in range(0, facts().stop_lsn + SEGMENT, SEGMENT):
        wal.put_range(1, at, bytes(100) if at == 0 else bytes(SEGMENT))
    return repository


class Turns:
    """Lets two threads work at a store in turns: each may do so many requests, then it is the other's turn."""

    def __init__(self, turns: list[tuple[str, int]]) -> None:
        self._turns = turns
        self._left = turns[0][1]
        self._ended: set[str] = set()
        self._changed = threading.Condition()

    def hook(self, who: str) -> Callable[[Request], None]:
        def wait(request: Request) -> None:
            if request.moment == "after" or request.operation == "next":
                return
            with self._changed:
                while not self._may(who):
                    assert self._changed.wait(20), "nobody goes on"
                self._left -= 1
                self._changed.notify_all()

        return wait

    def _may(self, who: str) -> bool:
        while self._turns and (self._left == 0 or self._turns[0][0] in self._ended):
            self._turns.pop(0)
            self._left = self._turns[0][1] if self._turns else 0
        return not self._turns or self._turns[0][0] == who

    def end(self, who: str) -> None:
        with self._changed:
            self._ended.add(who)
            self._changed.notify_all()


def crossed(
    inner: ObjectStore, turns: list[tuple[str, int]], jobs: dict[str, Callable[[Repository], object]], seed: int
) -> None:
    """Run jobs at the repository in a store, in turns: each pair is who may do so many requests."""
    order = Turns(turns)
    # Opening a repository changes nothing: it is not what is interleaved.
    opened = Repository.open(inner)

    def run(who: str) -> object:
        store = FaultyStore(inner, hook=order.hook(who))
        randomness = random.Random(f"{seed}{who}").randbytes
        try:
            return jobs[who](Repository(store, opened.codec, opened.page_key, randomness))
        finally:
            order.end(who)

    with ThreadPoolExecutor(len(jobs)) as pool:
        for future in [pool.submit(run, who) for who in jobs]:
            future.result()
