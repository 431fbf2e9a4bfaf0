"""Record what a process asks the system to do with files, take one fsync away, or end it between two system calls.

`install` is called inside of the process that is watched, after its imports and before it begins (see
`support.fuzzing.Worker`, prelude); the program itself knows nothing of it. Every call that changes a file or a name
below one directory, that makes something durable, or that acknowledges WAL to a server becomes a line of JSON in the
trace. What opens a file for writing in another way than by os.open is in it as well, because nobody sees its writes.
`support.durability` judges the trace; a test compares it with what strace sees.

Events: `op`, `path` (links in its directory resolved), `inode`; number is their order. A write has `start` and `end`.
A sync has `since`, the number of events when it began: what came after is not part of it; it is written down when it
has returned. `sites` are the places in the program that led to it: file below src and line.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import polarvault
from support.power_cut import Event, PowerCut

SOURCE = str(Path(polarvault.__file__).parents[1]) + os.sep
_FICLONE = 0x40049409
_STATUS_BYTES = 39

# As a moment for the end: after the last call.
AT_END = 1 << 62

Site = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Fault:
    """What is to go wrong: syncs that this site (file, first and last line) leads to do nothing; SIGKILL before a call.

    kill_at counts the calls that are recorded, from 1; at AT_END the process has done its work. power_cut: the seed of
    what is lost besides, see `support.power_cut`.
    """

    without: tuple[str, int, int] | None = None
    kill_at: int | None = None
    power_cut: str | None = None


def install(trace: str, root: str, fault: Fault) -> None:
    """Watch this process from now on, everything below root, into a new file trace."""
    _Recorder(trace, os.path.realpath(root), fault).patch()


NO_FAULT = Fault()


def prelude(trace: Path, root: Path, fault: Fault = NO_FAULT) -> str:
    """Return the Python that has a process watched."""
    return f"from support.system_calls import Fault, install\ninstall({str(trace)!r}, {str(root)!r}, {fault!r})\n"


def read_trace(trace: Path) -> list[Event]:
    """Return the events of a trace; the last line of a process that was killed may be cut."""
    lines = trace.read_text(errors="replace").split("\n")
    return [json.loads(line) for line in lines[:-1]]


class _Recorder:
    def __init__(self, trace: str, root: str, fault: Fault) -> None:
        self._root = root
        self._fault = fault
        self._count = 0
        # What lies below no root: nothing is recorded any more.
        self._is_over = False
        self._power = None if fault.power_cut is None else PowerCut(self._root, trace + ".kept", fault.power_cut)
        # A call and its event are one: the order of the trace is the order in which things happened.
        self._lock = threading.RLock()
        # The places that led to what a thread of a pool does.
        self._local = threading.local()
        self._write, self._fsync, self._stat = os.write, os.fsync, os.stat
        self._trace = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)

    def patch(self) -> None:
        """Put ourselves in front of the system calls."""
        for name in ("write", "writev", "pwrite", "pwritev", "ftruncate", "truncate"):
            setattr(os, name, getattr(self, f"_{name}_of")(getattr(os, name)))
        os.copy_file_range = self._copy_of(os.copy_file_range)
        os.sendfile = self._copy_of(os.sendfile)
        fcntl.ioctl = self._clone_of(fcntl.ioctl)
        os.open = self._open_of(os.open)
        for name in ("mkdir", "symlink"):
            setattr(os, name, self._named_of(name, getattr(os, name)))
        os.link = self._link_of(os.link)
        os.rename = self._rename_of(os.rename)
        os.replace = self._rename_of(os.replace)
        for name in ("unlink", "remove", "rmdir"):
            setattr(os, name, self._unlink_of(getattr(os, name)))
        os.fsync = self._sync_of(os.fsync)
        os.fdatasync = self._sync_of(os.fdatasync)
        ctypes.CDLL = self._library_of(ctypes.CDLL)  # type: ignore[misc]
        socket.socket.sendall = self._sendall_of(socket.socket.sendall)  # type: ignore[method-assign]
        ThreadPoolExecutor.submit = self._submit_of(ThreadPoolExecutor.submit)  # type: ignore[method-assign]
        sys.addaudithook(self._audit)
        os._exit = self._exit_of(os._exit)  # type: ignore[assignment]
        self._note_what_is_there()

    def _note_what_is_there(self) -> None:
        for directory, directories, names in os.walk(self._root):
            for name in directories + names:
                place = os.path.join(directory, name)
                status = self._stat(place, follow_symlinks=False)
                self._note("exists", place, (status.st_dev, status.st_ino), length=status.st_size)

    # Contents

    def _write_of(self, call: Callable[..., int]) -> Callable[..., int]:
        def write(descriptor: int, content: Any) -> int:
            return self._written(descriptor, None, lambda: call(descriptor, content))

        return write

    def _writev_of(self, call: Callable[..., int]) -> Callable[..., int]:
        return self._write_of(call)

    def _pwrite_of(self, call: Callable[..., int]) -> Callable[..., int]:
        def write(descriptor: int, content: Any, offset: int) -> int:
            return self._written(descriptor, offset, lambda: call(descriptor, content, offset))

        return write

    def _pwritev_of(self, call: Callable[..., int]) -> Callable[..., int]:
        return self._pwrite_of(call)

    def _ftruncate_of(self, call: Callable[..., None]) -> Callable[..., None]:
        def truncate(descriptor: int, size: int) -> None:
            self._resized(descriptor, size, lambda: call(descriptor, size))

        return truncate

    def _truncate_of(self, call: Callable[..., None]) -> Callable[..., None]:
        def truncate(path: Any, size: int) -> None:
            self._resized(path, size, lambda: call(path, size))

        return truncate

    def _copy_of(self, call: Callable[..., int]) -> Callable[..., int]:
        def copy(one: int, other: int, *how: Any, **more: Any) -> int:
            # os.sendfile names the target first, os.copy_file_range second.
            target = one if call.__name__ == "sendfile" else other
            return self._written(target, None, lambda: call(one, other, *how, **more), whole=True)

        return copy

    def _clone_of(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def ioctl(descriptor: int, request: int, *how: Any) -> Any:
            if request != _FICLONE:
                return call(descriptor, request, *how)
            return self._written(descriptor, None, lambda: call(descriptor, request, *how), whole=True)

        return ioctl

    def _written(self, descriptor: int, offset: int | None, call: Callable[[], int], *, whole: bool = False) -> int:
        place = self._place(descriptor)
        if place is None:
            return call()
        with self._lock:
            self._step()
            if offset is None and not whole:
                status = os.fstat(descriptor)
                appends = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_APPEND
                offset = status.st_size if appends else os.lseek(descriptor, 0, os.SEEK_CUR)
            written = call()
            start, end = (0, 1 << 62) if offset is None else (offset, offset + written)
            self._note("write", place, self._inode(descriptor), start=start, end=end)
            return written

    def _resized(self, target: Any, size: int, call: Callable[[], None]) -> None:
        place = self._place(target) if isinstance(target, int) else self._named(target, None)
        if place is None:
            call()
            return
        with self._lock:
            self._step()
            before = self._stat(target).st_size
            call()
            start, end = sorted((before, size))
            self._note("write", place, self._inode(target), start=start, end=end)

    # Names

    def _open_of(self, call: Callable[..., int]) -> Callable[..., int]:
        def open_(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            place = self._named(path, dir_fd) if flags & (os.O_CREAT | os.O_TRUNC) else None
            if place is None or flags & os.O_TMPFILE == os.O_TMPFILE:
                return call(path, flags, mode, dir_fd=dir_fd)
            with self._lock:
                was_there = os.path.lexists(place)
                self._step()
                descriptor = call(path, flags, mode, dir_fd=dir_fd)
                if not was_there:
                    self._note("create", place, self._inode(descriptor))
                elif flags & os.O_TRUNC:
                    self._note("write", place, self._inode(descriptor), start=0, end=1 << 62)
                return descriptor

        return open_

    def _named_of(self, op: str, call: Callable[..., None]) -> Callable[..., None]:
        # mkdir(path, mode), symlink(target, path)
        def make(first: Any, *rest: Any, dir_fd: int | None = None, **more: Any) -> None:
            place = self._named(rest[0] if op == "symlink" else first, dir_fd)
            with self._lock:
                if place is not None:
                    self._step()
                call(first, *rest, dir_fd=dir_fd, **more)
                if place is not None:
                    self._note(op, place, self._inode(place, follow=False))

        return make

    def _link_of(self, call: Callable[..., None]) -> Callable[..., None]:
        def link(source: Any, target: Any, *, dst_dir_fd: int | None = None, **more: Any) -> None:
            place = self._named(target, dst_dir_fd)
            with self._lock:
                if place is not None:
                    self._step()
                call(source, target, dst_dir_fd=dst_dir_fd, **more)
                if place is not None:
                    self._note("link", place, self._inode(place, follow=False))

        return link

    def _rename_of(self, call: Callable[..., None]) -> Callable[..., None]:
        def rename(source: Any, target: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
            old, new = self._named(source, src_dir_fd), self._named(target, dst_dir_fd)
            with self._lock:
                if new is not None:
                    self._step()
                    self._keep(new)
                call(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
                if new is not None:
                    self._note("rename", new, self._inode(new, follow=False), old=old)

        return rename

    def _unlink_of(self, call: Callable[..., None]) -> Callable[..., None]:
        def unlink(path: Any, *, dir_fd: int | None = None) -> None:
            place = self._named(path, dir_fd)
            with self._lock:
                if place is not None:
                    self._step()
                    self._keep(place)
                call(path, dir_fd=dir_fd)
                if place is not None:
                    self._note("unlink", place, None)

        return unlink

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        # Python's own open: its writes never pass through the os module. os.open has no mode.
        if event != "open" or not isinstance(arguments[1], str) or isinstance(arguments[0], int):
            return
        if set(arguments[1]) & set("wax+") and (place := self._named(arguments[0], None)) is not None:
            with self._lock:
                self._note("opaque", place, None)

    # Durability, and what is said of it

    def _sync_of(self, call: Callable[[int], None]) -> Callable[[int], None]:
        def sync(descriptor: int) -> None:
            place = self._place(descriptor)
            if place is None:
                call(descriptor)
                return
            self._synced("sync", place, self._inode(descriptor), lambda: call(descriptor))

        return sync

    def _library_of(self, kind: type[ctypes.CDLL]) -> type[ctypes.CDLL]:
        synced, place_of = self._synced, self._place

        class Library(kind):  # type: ignore[valid-type, misc]
            def __getattr__(self, name: str) -> Any:
                found = super().__getattr__(name)
                if name != "syncfs":
                    return found

                def syncfs(descriptor: int) -> Any:
                    return synced("syncfs", place_of(descriptor) or "/", None, lambda: found(descriptor)) or 0

                return syncfs

        return Library

    def _synced(self, op: str, place: str, inode: Sequence[int] | None, call: Callable[[], Any]) -> Any:
        sites = self._sites(sys._getframe())
        if self._fault.without is not None and _leads_through(sites, self._fault.without):
            return None
        with self._lock:
            self._step()
            since = self._count
            if self._power is not None:
                self._power.sync_begins(None if op == "syncfs" else place, since)
        # Not under the lock: others go on meanwhile.
        returned = call()
        with self._lock:
            self._note(op, place, inode, since=since, sites=sites)
        return returned

    def _sendall_of(self, call: Callable[..., None]) -> Callable[..., None]:
        def sendall(itself: socket.socket, content: Any, *how: Any) -> None:
            raw = bytes(content)
            # CopyData with a standby status update (manual, "Streaming Replication Protocol").
            if len(raw) == _STATUS_BYTES and raw[:1] == b"d" and raw[5:6] == b"r":
                with self._lock:
                    written, flushed = struct.unpack_from(">QQ", raw, 6)
                    self._note("acknowledge", "", None, written=written, flushed=flushed)
            call(itself, content, *how)

        return sendall

    def _submit_of(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def submit(itself: Any, task: Callable[..., Any], /, *arguments: Any, **more: Any) -> Any:
            sites = self._sites(sys._getframe())

            def run(*arguments: Any, **more: Any) -> Any:
                self._local.sites = sites
                try:
                    return task(*arguments, **more)
                finally:
                    self._local.sites = []

            return call(itself, run, *arguments, **more)

        return submit

    # Where, and in which order

    def _sites(self, frame: FrameType | None) -> list[Site]:
        found: list[Site] = []
        while frame is not None:
            path = frame.f_code.co_filename
            if path.startswith(SOURCE):
                found.append((path.removeprefix(SOURCE), frame.f_lineno))
            frame = frame.f_back
        return found + list(getattr(self._local, "sites", ()))

    def _place(self, descriptor: int) -> str | None:
        return self._below(os.readlink(f"/proc/self/fd/{descriptor}"))

    def _named(self, path: Any, dir_fd: int | None) -> str | None:
        if isinstance(path, int):
            return self._place(path)
        name = os.fsdecode(path)
        if dir_fd is not None:
            name = os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), name)
        directory, last = os.path.split(os.path.abspath(name))
        return self._below(os.path.join(os.path.realpath(directory), last))

    def _below(self, path: str) -> str | None:
        if self._is_over:
            return None
        return path if path == self._root or path.startswith(self._root + os.sep) else None

    def _keep(self, path: str) -> None:
        if self._power is not None:
            self._power.keep(path)

    def _inode(self, target: Any, *, follow: bool = True) -> tuple[int, int]:
        status = self._stat(target) if isinstance(target, int) else self._stat(target, follow_symlinks=follow)
        return status.st_dev, status.st_ino

    def _step(self) -> None:
        """Count a call that is about to be made; be killed before it, if that is the one."""
        self._count += 1
        if self._count == self._fault.kill_at:
            self._end()

    def _end(self) -> NoReturn:
        if self._power is not None:
            self._is_over = True
            # What a power cut takes away may be root's where the program works as another account.
            if os.getuid() == 0:
                os.seteuid(0)
            self._power.cut()
        os.kill(os.getpid(), signal.SIGKILL)
        while True:
            signal.pause()

    def _exit_of(self, call: Callable[[int], NoReturn]) -> Callable[[int], NoReturn]:
        def exit_(status: int) -> NoReturn:
            if self._fault.kill_at == AT_END and status == 0:
                with self._lock:
                    self._end()
            call(status)

        return exit_

    def _note(self, op: str, path: str, inode: Sequence[int] | None, **more: Any) -> None:
        event = {"op": op, "path": path, "inode": inode, "number": self._count, **more}
        self._write(self._trace, os.fsencode(json.dumps(event) + "\n"))
        if self._power is not None:
            self._power.note(event)


def _leads_through(sites: list[Site], wanted: tuple[str, int, int]) -> bool:
    path, first, last = wanted
    return any(site[0] == path and first <= site[1] <= last for site in sites)
