"""WAL fetched ahead of a recovery: `wal fetch` starts this beside itself, and finds the next segments in a directory.

Theory. A recovery asks for one segment at a time and replays it before it asks for the next; a start of the program,
a look into the repository and decoding would be waited for each time. So the first fetch from a repository leaves a
process behind (`Prefetcher`) that keeps the next few segments in a directory for state, by the same rules and checks as
a fetch. It holds a lock as long as it lives. A segment is taken from the directory only while that lock is held: what a
killed one, or a power cut, has left is never served, and the next one removes it. It ends when nobody has asked for a
while, or when the server is gone. Nothing depends on it: what it has not, or could not get, the fetch gets itself, and
it alone says what is wrong. Histories and unfinished segments are not fetched ahead, because they may still change.
"""

from __future__ import annotations

import os
import time
import zlib

from polarvault.storage.files import open_regular
from polarvault.storage.state_directory import data_directories, state_directory
from polarvault.wal.segment_header import LONG_HEADER_BYTES, judge_place, parse_segment_header
from polarvault.walarchive.detached import detach, is_alive

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ASKED, BUSY, KEY = ".asked", ".busy", ".key"
_KEY_BYTES = 64 << 10
# A segment that is just being fetched is waited for; it takes as long as fetching it anew.
_WAIT_S = 30.0
_WAIT_POLL_S = 0.002


class Ahead:
    """The directory of one recovery, as a fetch sees it."""

    def __init__(self, directory: str, *, system_identifier: int | None) -> None:
        self.directory = directory
        self._system_identifier = system_identifier

    def take(self, name: str, target: str) -> bool:
        """Give a segment to the server if it is here; False if it has to be fetched."""
        if not is_alive(self.directory):
            return False
        path = os.path.join(self.directory, name)
        give_up_at = time.monotonic() + _WAIT_S
        while not os.path.exists(path):
            is_busy = os.path.exists(path + BUSY)
            if not is_busy and not os.path.exists(path):
                return False
            if time.monotonic() >= give_up_at or not is_alive(self.directory):
                return False
            time.sleep(_WAIT_POLL_S)
        try:
            size_bytes = self._serve(path, name, target)
        except OSError:
            return False  # The prefetcher has just ended, or it is another file.
        self.ask(name, size_bytes)
        return True

    def ask(self, name: str, size_bytes: int) -> None:
        """Say which segment was served, and the size of segments, so that those behind it are fetched."""
        try:
            descriptor = os.open(os.path.join(self.directory, ASKED), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.pwrite(descriptor, f"{name} {size_bytes}".encode(), 0)
            finally:
                os.close(descriptor)
        except OSError:
            return  # Nothing is fetched ahead then.

    def start(self, words: Sequence[str]) -> None:
        """Start a prefetcher if none lives. words: of `wal fetch`, without the two names."""
        try:
            if not is_alive(self.directory):
                detach(["wal", "fetch", *words, "--prefetch-into", self.directory])
        except OSError:
            return  # No process, or no memory for one: it goes without.

    def _serve(self, path: str, name: str, target: str) -> int:
        with open_regular(path) as stream:
            header = parse_segment_header(os.pread(stream.fileno(), LONG_HEADER_BYTES, 0))
            if header is None or judge_place(name, header).problem is not None:
                raise OSError("it is another segment")
            if self._system_identifier not in (None, header.system_identifier):
                raise OSError("it is of another cluster")
            try:
                os.rename(path, target)
            except OSError:
                # Another file system.
                from polarvault.storage.copying import copy_content
                from polarvault.walarchive.output import Output

                with Output(target) as output:
                    copy_content(stream.fileno(), output.descriptor, header.segment_size_bytes)
                    output.resize(header.segment_size_bytes)
                    output.publish()
                os.unlink(path)
            return header.segment_size_bytes


def open_ahead(
    environment: Mapping[str, str], told: str, target: str, *, system_identifier: int | None, make: bool
) -> Ahead | None:
    """Return the directory of a recovery: of what the command was told, and where the server wants its WAL.

    None if this account has no place for it or, unless it is to be made, nothing was fetched ahead yet.
    """
    place = os.path.dirname(os.path.abspath(target))
    try:
        found = os.stat(place)
    except OSError:
        return None
    key = f"{told}\n{os.path.realpath(place)} {found.st_dev} {found.st_ino}".encode("utf-8", "surrogateescape")
    # hashlib would take longer to import than all of this; two that have one name are told apart by what is inside.
    name = f"{zlib.crc32(key):08x}"
    directory = state_directory(environment, "fetched", name, outside=data_directories(target), make=make)
    if directory is None or not _is_of(directory, key, make=make):
        return None
    return Ahead(directory, system_identifier=system_identifier)


def _is_of(directory: str, key: bytes, *, make: bool) -> bool:
    """Tell whether a directory is that of this recovery; make: note it in a new one."""
    path = os.path.join(directory, KEY)
    try:
        if make and not os.path.lexists(path):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.write(descriptor, key)
            finally:
                os.close(descriptor)
        with open_regular(path) as stream:
            return stream.read(_KEY_BYTES) == key
    except OSError:
        return False
