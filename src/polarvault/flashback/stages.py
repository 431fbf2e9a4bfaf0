"""How long each part of the work takes, said when it begins and kept for the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from polarvault.flashback.model import Stage

Say = Callable[[str], None]


class Stages:
    """Measures stages one after the other."""

    def __init__(self, say: Say) -> None:
        self.say = say
        self._done: list[Stage] = []

    @property
    def done(self) -> tuple[Stage, ...]:
        """Those that are over, in order."""
        return tuple(self._done)

    @contextmanager
    def of(self, name: str, words: str) -> Iterator[None]:
        """Say the words, and measure what is done within."""
        self.say(words)
        began = time.monotonic()
        yield
        self.add(name, time.monotonic() - began)

    def add(self, name: str, seconds: float) -> None:
        """Add one that somebody else has measured."""
        self._done.append(Stage(name, seconds))
