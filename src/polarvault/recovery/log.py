"""What the log of a recovering server says: where it stopped, whether it pauses, why it failed.

Only what is written after the start counts: a backup in plain format brings the source's old log files along.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime

from polarvault.instance.log_files import MOST_BYTES, log_size, read_log
from polarvault.instance.model import Instance
from polarvault.instance.start import LOG_NAME
from polarvault.model.lsn import Lsn
from polarvault.model.secrets import hide_secrets

_LINES = 15
# "recovery stopping before commit of transaction 740, time ...", "recovery stopping at restore point "x", time ...",
# "... after WAL location (LSN) "0/3000148"", "... after reaching consistency".
_STOPPING = re.compile(r"recovery stopping (?:before|after|at) .*")
_LSN_IN_QUOTES = re.compile(r'\(LSN\) "([0-9A-F]+/[0-9A-F]+)"')
_REDO_DONE = re.compile(r"redo done at ([0-9A-F]+/[0-9A-F]+)")
_PAUSED = ("recovery has paused", "pausing at the end of recovery")
_LAST_TIME = re.compile(
    r"last completed transaction was at log time (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?)([+-]\d\d(?::?\d\d)?)"
)
_FATAL = re.compile(r"\b(?:FATAL|PANIC):\s+(.*)")
# While it starts up the server turns every visitor away with a FATAL of this kind.
_TURNED_AWAY = ("the database system is", "no pg_hba.conf entry", "role ", "password authentication", "Peer auth")


@dataclass(frozen=True, slots=True)
class StopLine:
    """The server's words on where it stopped, and the LSN if it gave one."""

    text: str
    lsn: Lsn | None


class RecoveryLog:
    """The log files of one start; made before the server is started."""

    def __init__(self, instance: Instance) -> None:
        self._main = os.path.join(instance.data_directory, LOG_NAME)
        self._directory = os.path.join(instance.data_directory, "log")
        self._root = instance.data_directory
        self._before = {path: self._size(path) for path in self._files()}
        # What was written since and read already: a recovery is watched twice a second, perhaps for days.
        self._read: dict[str, bytes] = {}
        self._read_up_to = dict(self._before)
        self._text = ""

    def _size(self, path: str) -> int:
        return log_size(self._root, path) or 0

    def _files(self) -> list[str]:
        found = [self._main] if os.path.isfile(self._main) else []
        if os.path.isdir(self._directory):
            found += [os.path.join(self._directory, name) for name in sorted(os.listdir(self._directory))]
        return [path for path in found if log_size(self._root, path) is not None]

    @property
    def path(self) -> str:
        """The file that was written to last."""
        grown = [path for path in self._files() if self._size(path) > self._before.get(path, 0)]
        return max(grown, key=lambda path: os.lstat(path).st_mtime, default=self._main)

    @property
    def text(self) -> str:
        """Everything written since the start, at most the last of each file."""
        # All are read, whether or not the first one has grown.
        if sum(map(self._read_on, self._files())):
            in_order = sorted(self._read, key=lambda path: (path != self._main, path))
            self._text = "\n".join(self._read[path].decode("utf-8", "replace") for path in in_order)
        return self._text

    def _read_on(self, path: str) -> bool:
        """Read what was written to a file since the last time; False when that is nothing."""
        start = self._read_up_to.get(path, 0)
        try:
            content = read_log(self._root, path, start=start)
        except OSError:
            return False  # Rotated away: the newer file is read as well.
        # Of more than that between two looks the beginning is left out.
        self._read_up_to[path] = start + len(content) if len(content) < MOST_BYTES else self._size(path)
        if content:
            self._read[path] = (self._read.get(path, b"") + content)[-MOST_BYTES:]
        return bool(content)

    @property
    def end(self) -> str:
        """The last lines."""
        return hide_secrets("\n".join(self.text.splitlines()[-_LINES:]))

    @property
    def stopped(self) -> StopLine | None:
        """Where the server says that it stops."""
        match = _STOPPING.search(self.text)
        if match is None:
            return None
        lsn = _LSN_IN_QUOTES.search(match[0]) or _REDO_DONE.search(self.text)
        return StopLine(match[0], Lsn.parse(lsn[1]) if lsn else None)

    @property
    def paused(self) -> bool:
        """Tell whether the server says that it pauses."""
        text = self.text
        return any(words in text for words in _PAUSED)

    @property
    def last_time(self) -> datetime | None:
        """The time of the last transaction, if the server wrote it with an offset or in UTC."""
        text = self.text
        match = _LAST_TIME.search(text)
        if match is None:
            return None
        return datetime.fromisoformat(match[1] + match[2]).astimezone(UTC)

    @property
    def fatal(self) -> str | None:
        """The first FATAL or PANIC that is about the server itself."""
        found = (match[1] for match in _FATAL.finditer(self.text))
        return next((line for line in found if not line.startswith(_TURNED_AWAY)), None)
