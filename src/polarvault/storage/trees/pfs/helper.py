"""The process that has libpfsd: it mounts one disk, serves its channels by a thread each, and goes with its parent.

It resolves every name below one directory, and does nothing that writes unless it was started to write: what it is sent
is checked here, too, because a mount for reading does not protect the storage.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from polarvault.model.names import name_problem
from polarvault.storage.trees.pfs.library import LibraryMissing, PfsLibrary, Status, load_library
from polarvault.storage.trees.pfs.messages import (
    BLOCK_BYTES,
    WRITING,
    Call,
    ChannelClosed,
    Reply,
    Request,
    pack_entry,
    pack_status,
    receive_request,
    send_reply,
)

# How long threads get to come back from the library when the parent has gone; one that waits for a daemon that has
# gone never does.
_LEAVE_S = 5.0
_OPEN_FLAGS = os.O_RDONLY
_CREATE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL


class Helper:
    """One disk, one directory on it, one direction."""

    def __init__(self, library: PfsLibrary, memory: memoryview) -> None:
        self._library = library
        self._memory = memory
        self._disk = ""
        self._root = ""
        self._writable = False
        self._calls: dict[Call, Callable[[Request, memoryview], Reply]] = {
            Call.LIST: self._list,
            Call.STATUS: lambda request, _: Reply(payload=_packed(library.status(self._path(request.payload)))),
            Call.OPEN: self._open,
            Call.CREATE: lambda request, _: Reply(value=library.open(self._below(request.payload), _CREATE_FLAGS)),
            Call.FILE_STATUS: lambda request, _: Reply(payload=_packed(library.file_status(request.descriptor))),
            Call.READ: self._read,
            Call.WRITE: self._write,
            Call.TRUNCATE: self._truncate,
            Call.CLOSE: self._close,
            Call.MAKE_DIRECTORY: self._make_directory,
            Call.REMOVE_DIRECTORY: self._remove_directory,
            Call.REMOVE: self._remove,
            Call.RENAME: self._rename,
            Call.ROOM: self._room,
            Call.MAKE_ROOT: self._make_root,
            Call.REMOVE_ROOT: self._remove_root,
            Call.SET_LENGTH: self._set_length,
            Call.NOTHING: lambda *_: Reply(),
        }

    def mount(self, request: Request) -> None:
        """Mount what the first request names; raise OSError."""
        asked = json.loads(request.payload)
        self._disk, self._root, self._writable = asked["disk"], asked["root"], asked["writable"]
        if name_problem(self._root) is not None:
            raise OSError(errno.EINVAL, "no directory")
        began = time.monotonic()
        try:
            self._library.mount(
                asked["cluster"], self._disk, asked["host_id"],
                writable=self._writable, force=asked["force"], timeout_s=asked["timeout_s"],
            )  # fmt: skip
        except OSError as problem:
            # The library gives no number for a daemon that does not answer either.
            if problem.errno == errno.EACCES and time.monotonic() - began >= asked["timeout_s"]:
                raise OSError(errno.ETIMEDOUT, "no answer") from problem
            raise

    def serve(self, channel: socket.socket, number: int) -> None:
        """Answer requests until the channel ends."""
        block = self._memory[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES]
        with suppress(ChannelClosed, OSError):
            while True:
                request = receive_request(channel)
                try:
                    if request.call in WRITING and not self._writable:
                        raise OSError(errno.EROFS, "mounted for reading")
                    reply = self._calls[request.call](request, block)
                except OSError as problem:
                    reply = Reply(number=problem.errno or errno.EIO)
                send_reply(channel, reply, request.number)

    def leave(self) -> None:
        """Give the disk back."""
        self._library.unmount()

    def _path(self, payload: bytes) -> str:
        """Return the whole path of a name below the directory, or of the directory itself."""
        name = os.fsdecode(payload)
        if name and name_problem(name) is not None:
            raise OSError(errno.EINVAL, "not a name below the directory")
        base = f"/{self._disk}/{self._root}"
        return f"{base}/{name}" if name else base

    def _below(self, payload: bytes) -> str:
        """Return the whole path of a name below the directory, never of the directory itself."""
        if not payload:
            raise OSError(errno.EINVAL, "the directory itself")
        return self._path(payload)

    def _list(self, request: Request, _: memoryview) -> Reply:
        path = self._path(request.payload)
        if not self._library.status(path).is_directory:
            raise OSError(errno.ENOTDIR, path)
        packed = []
        for name in self._library.names(path):
            # What goes meanwhile is left out.
            with suppress(FileNotFoundError):
                packed.append(pack_entry(name, _packed(self._library.status(f"{path}/{name}"))))
        return Reply(payload=b"".join(packed))

    def _open(self, request: Request, _: memoryview) -> Reply:
        path = self._path(request.payload)
        descriptor = self._library.open(path, _OPEN_FLAGS)
        # The library opens a directory like a file.
        if self._library.file_status(descriptor).is_directory:
            self._library.close(descriptor)
            raise OSError(errno.EISDIR, path)
        return Reply(value=descriptor)

    def _read(self, request: Request, block: memoryview) -> Reply:
        done = 0
        while done < request.size:
            got = self._library.read(request.descriptor, request.offset + done, block[done : request.size])
            if not got:
                break
            done += got
        return Reply(value=done)

    def _write(self, request: Request, block: memoryview) -> Reply:
        done = 0
        while done < request.size:
            put = self._library.write(request.descriptor, request.offset + done, block[done : request.size])
            if not put:
                raise OSError(errno.ENOSPC, "nothing was written")
            done += put
        return Reply(value=done)

    def _truncate(self, request: Request, _: memoryview) -> Reply:
        self._library.truncate(request.descriptor, request.size)
        return Reply()

    def _set_length(self, request: Request, _: memoryview) -> Reply:
        path = self._below(request.payload)
        if self._library.status(path).is_directory:
            raise OSError(errno.EISDIR, path)
        descriptor = self._library.open(path, os.O_RDWR)
        try:
            self._library.truncate(descriptor, request.size)
        finally:
            self._library.close(descriptor)
        return Reply()

    def _close(self, request: Request, _: memoryview) -> Reply:
        self._library.close(request.descriptor)
        return Reply()

    def _make_directory(self, request: Request, _: memoryview) -> Reply:
        self._library.make_directory(self._below(request.payload))
        return Reply()

    def _remove_directory(self, request: Request, _: memoryview) -> Reply:
        self._library.remove_directory(self._below(request.payload))
        return Reply()

    def _remove(self, request: Request, _: memoryview) -> Reply:
        path = self._below(request.payload)
        if self._library.status(path).is_directory:
            raise OSError(errno.EISDIR, path)
        self._library.remove(path)
        return Reply()

    def _rename(self, request: Request, __: memoryview) -> Reply:
        old, _, new = request.payload.partition(b"\0")
        self._library.rename(self._below(old), self._below(new))
        return Reply()

    def _room(self, _: Request, __: memoryview) -> Reply:
        found = self._library.room()
        return Reply(value=0 if found is None else 1, payload=b"" if found is None else json.dumps(found).encode())

    def _make_root(self, _: Request, __: memoryview) -> Reply:
        """Make the directory and what is missing above it; return how many were made, innermost last."""
        names = self._root.split("/")
        made = 0
        for depth in range(1, len(names) + 1):
            with suppress(FileExistsError):
                self._library.make_directory(f"/{self._disk}/" + "/".join(names[:depth]))
                made += 1
        return Reply(value=made)

    def _remove_root(self, request: Request, _: memoryview) -> Reply:
        """Remove as many directories as were made, from the innermost; those that hold something stay."""
        names = self._root.split("/")
        for depth in range(len(names), len(names) - request.size, -1):
            self._library.remove_directory(f"/{self._disk}/" + "/".join(names[:depth]))
        return Reply()


def _packed(status: Status) -> bytes:
    return pack_status(status.is_directory, status.size_bytes, status.modified, status.allocated_bytes)


def serve(library: Callable[[], PfsLibrary], arguments: list[str]) -> None:
    """Run the helper: arguments are descriptors, of the memory, of a pipe that ends with the parent, of channels."""
    memory_descriptor, life, *numbers = map(int, arguments)
    channels = [socket.socket(fileno=number) for number in numbers]
    memory = memoryview(mmap.mmap(memory_descriptor, len(channels) * BLOCK_BYTES))
    try:
        first = receive_request(channels[0])
        helper = Helper(library(), memory)
        helper.mount(first)
    except ChannelClosed:
        return
    except LibraryMissing as problem:
        send_reply(channels[0], Reply(errno.ENOENT, payload=str(problem.strerror).encode()), first.number)
        return
    except OSError as problem:
        send_reply(channels[0], Reply(problem.errno or errno.EACCES), first.number)
        return
    send_reply(channels[0], Reply(), first.number)
    threads = [
        threading.Thread(target=helper.serve, args=(channel, number), daemon=True)
        for number, channel in enumerate(channels)
    ]
    for thread in threads:
        thread.start()
    # Ends when the parent closes its side, or is gone.
    os.read(life, 1)
    for channel in channels:
        with suppress(OSError):
            channel.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join(_LEAVE_S / len(threads))
    if not any(thread.is_alive() for thread in threads):
        helper.leave()
    # Not through the interpreter's end, which would wait for the library.
    os._exit(0)


def main() -> None:
    """Run the helper on the real library."""
    serve(lambda: load_library(os.environ), sys.argv[1:])
