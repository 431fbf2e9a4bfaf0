"""This process's side of a helper: started, asked from any thread, given up when it or pfsd does not answer."""

from __future__ import annotations

import errno
import json
import mmap
import os
import queue
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import polarvault
from polarvault.storage.trees.pfs.daemon import is_served, lock_path
from polarvault.storage.trees.pfs.host_ids import free_host_ids, used_host_ids
from polarvault.storage.trees.pfs.messages import (
    BLOCK_BYTES,
    Call,
    ChannelClosed,
    Reply,
    Request,
    receive_reply,
    send_request,
)
from polarvault.storage.trees.pfs.mount import LIBRARY_VARIABLE, TOOLS, PfsMount
from polarvault.storage.trees.pfs.problems import RUN_DIRECTORY, TOO_FEW_HOSTS, PfsProblem, pfsd_hint, problem_of

# The interpreter that runs now and our own files, whatever the environment and the directory; it needs nothing else.
_PACKAGES = os.path.dirname(os.path.dirname(os.path.abspath(polarvault.__file__)))
_PROGRAM = "import sys; sys.path.insert(0, {!r}); from polarvault.storage.trees.pfs.helper import main; main()"
HELPER = (sys.executable, "-I", "-S", "-c", _PROGRAM.format(_PACKAGES))
CHANNELS = 8
# While an answer is waited for: is the daemon still there?
_LOOK_S = 0.5
# The library waits for its lock for half a minute before it mounts for writing.
_MOUNT_MORE_S = 35.0
_LEAVE_S = 8.0
# What the library writes to standard error; the end of it explains a failure.
_KEPT_WORDS = 4000


class Channel:
    """A socket to one thread of the helper, and the block of shared memory that goes with it."""

    def __init__(self, connection: socket.socket, block: memoryview) -> None:
        self.socket = connection
        self.block = block
        self.number = 0
        self.is_settled = True


class PfsConnection:
    """A disk that is mounted in a helper of its own. Methods may be called by several threads; they raise OSError."""

    def __init__(
        self,
        mount: PfsMount,
        *,
        writable: bool,
        helper: Sequence[str] = HELPER,
        channels: int = CHANNELS,
        run_directory: str = RUN_DIRECTORY,
    ) -> None:
        self.mount = mount
        self.disk = mount.address.disk
        self._run_directory = run_directory
        self.host_id = 0
        self._has_daemon = is_served(self.disk, run_directory) is True
        self._dead: OSError | None = None
        self._lock = threading.Lock()
        self._life = -1
        self._said = b""
        *others, last = self._host_ids(writable=writable)
        for host_id in others:
            if self._connect(host_id, writable=writable, helper=helper, channels=channels, is_last=False):
                return
        self._connect(last, writable=writable, helper=helper, channels=channels, is_last=True)

    def _connect(self, host_id: int, *, writable: bool, helper: Sequence[str], channels: int, is_last: bool) -> bool:
        """Mount as this host; return False if the disk was made for fewer hosts, and another number is to be tried."""
        self.host_id = host_id
        self._free: queue.LifoQueue[Channel] = queue.LifoQueue()
        self._start(helper, channels)
        try:
            self._mount(writable=writable)
        except BaseException as problem:
            self.close()
            self._dead = None
            if isinstance(problem, PfsProblem) and problem.errno == TOO_FEW_HOSTS and not is_last:
                return False
            raise
        return True

    def _host_ids(self, *, writable: bool) -> list[int]:
        """Return the number to mount as, or for reading some that are free, to be tried one after the other."""
        used = used_host_ids(self.disk, run_directory=self._run_directory)
        wanted = self.mount.host_id
        free = free_host_ids(used)
        if wanted is None and not writable and free:
            return free
        if wanted == TOOLS:
            return [TOOLS]
        if wanted is None or wanted in used:
            by = f"{wanted} is in use on this machine, by {used[wanted]}" if wanted in used else "has to be named"
            example = f"for example {free[-1]}" if free else "all are in use here"
            raise PfsProblem(
                errno.EACCES, f"the host id for disk {self.disk} {by}", str(self.mount.address),
                hint=f"name one that no server on this disk has, on whichever host ({example}): --polar_host_id N",
            )  # fmt: skip
        return [wanted]

    def _start(self, helper: Sequence[str], channels: int) -> None:
        memory = os.memfd_create("polarvault-pfs", os.MFD_CLOEXEC)
        life, self._life = os.pipe()
        ours, theirs = zip(*(socket.socketpair() for _ in range(channels)), strict=True)
        try:
            os.ftruncate(memory, channels * BLOCK_BYTES)
            blocks = memoryview(mmap.mmap(memory, channels * BLOCK_BYTES))
            passed = (memory, life, *(one.fileno() for one in theirs))
            # A session of its own: an interrupt at the terminal is for this process, which then ends it in order.
            self._process = subprocess.Popen(
                [*helper, *map(str, passed)], pass_fds=passed, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE, start_new_session=True,
            )  # fmt: skip
        except BaseException:
            os.close(self._life)
            for one in ours:
                one.close()
            raise
        finally:
            os.close(memory)
            os.close(life)
            for one in theirs:
                one.close()
        self._channels = [
            Channel(one, blocks[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES]) for number, one in enumerate(ours)
        ]
        self._listener = threading.Thread(target=self._listen, name="pfs-helper", daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        """Take what the library says, so that it never waits for a full pipe; keep the end."""
        assert self._process.stderr is not None
        descriptor = self._process.stderr.fileno()
        with suppress(OSError, ValueError):
            while said := os.read(descriptor, 1 << 16):
                self._said = (self._said + said)[-_KEPT_WORDS:]

    def _mount(self, *, writable: bool) -> None:
        mount = self.mount
        asked = {
            "disk": self.disk, "root": mount.address.directory, "cluster": mount.cluster, "host_id": self.host_id,
            "writable": writable, "force": mount.force, "timeout_s": mount.connect_timeout_s,
        }  # fmt: skip
        channel = self._channels[0]
        request = Request(Call.MOUNT, payload=json.dumps(asked).encode())
        reply = self._ask(channel, request, mount.connect_timeout_s + _MOUNT_MORE_S, "mount")
        if reply.payload:
            raise PfsProblem(
                errno.ENOENT, "libpfsd, the library for PFS, was not found", str(mount.address),
                hint=f"name it: {LIBRARY_VARIABLE}=/PATH/libpfsd_test.so (docs/pfs.md says how to make one; tried: "
                f"{reply.payload.decode('utf-8', 'replace')})",
            )  # fmt: skip
        if reply.number:
            raise self._not_mounted(reply.number)
        for one in self._channels:
            self._free.put(one)

    def _not_mounted(self, number: int) -> PfsProblem:
        if number == TOO_FEW_HOSTS:
            return PfsProblem(
                number, f"host id {self.host_id} is larger than disk {self.disk} was made for", str(self.mount.address),
                hint="give a smaller one, which no server on this disk has: --polar_host_id N (how many there can be "
                "was said with pfs mkfs -u; 30 in PFS's own examples)",
            )  # fmt: skip
        if is_served(self.disk, self._run_directory) is False:
            return PfsProblem(
                errno.ENODEV, f"no pfsd serves disk {self.disk} on this machine", str(self.mount.address),
                hint=f"start it as its documentation says (start_pfsd.sh -p {self.disk}); it then holds a lock on "
                f"{lock_path(self.disk, self._run_directory)}",
            )  # fmt: skip
        if number == errno.ETIMEDOUT:
            return self._silent(self.mount.connect_timeout_s)
        return PfsProblem(
            number,
            f"pfsd refused to mount disk {self.disk} of storage {self.mount.cluster!r} as host {self.host_id} "
            f"({os.strerror(number)})",
            str(self.mount.address),
            hint=f"the number may be in use, or the storage have another name (--polar_storage_cluster_name NAME); "
            f"{pfsd_hint(self.disk)}",
        )

    def ask(self, request: Request, name: str) -> Reply:
        """Ask for something that needs no block; name: what it is about, for messages. Raise OSError for a refusal."""
        with self.channel() as channel:
            return self.exchange(channel, request, name)

    def exchange(self, channel: Channel, request: Request, name: str) -> Reply:
        """Send a request over a channel that the caller has, and wait for the reply."""
        reply = self._ask(channel, request, self.mount.call_timeout_s, name)
        if reply.number:
            raise problem_of(reply.number, self.disk, name)
        return reply

    @contextmanager
    def channel(self) -> Iterator[Channel]:
        """Have a channel, once one is free."""
        channel = self._free.get()
        try:
            if self._dead is not None:
                raise self._dead
            if not channel.is_settled:
                # An interrupt came between a request and its reply: the block may still be written to.
                self._ask(channel, Request(Call.NOTHING), self.mount.call_timeout_s, self.disk)
            yield channel
        finally:
            self._free.put(channel)

    def _ask(self, channel: Channel, request: Request, timeout_s: float, name: str) -> Reply:
        deadline = time.monotonic() + timeout_s
        channel.socket.settimeout(timeout_s)
        channel.number = (channel.number + 1) & 0xFFFFFFFF
        channel.is_settled = False
        try:
            send_request(channel.socket, request, channel.number)
            while (reply := self._next_reply(channel, request, deadline, timeout_s, name)).answers != channel.number:
                pass  # What was asked before an interrupt.
        except (ChannelClosed, ConnectionError, TimeoutError, ValueError) as problem:
            if self._dead is not None:
                raise self._dead from problem
            raise self._give_up(self._helper_gone(name)) from problem
        channel.is_settled = True
        return reply

    def _next_reply(self, channel: Channel, request: Request, deadline: float, timeout_s: float, name: str) -> Reply:
        """Wait for what comes next on a channel."""
        while not select.select([channel.socket], [], [], _LOOK_S)[0]:
            if time.monotonic() > deadline:
                raise self._give_up(self._silent(timeout_s))
            if request.call is not Call.MOUNT and self._daemon_has_gone():
                words = f"pfsd of disk {self.disk} has gone"
                raise self._give_up(PfsProblem(errno.ECONNRESET, words, name, hint=pfsd_hint(self.disk)))
        return receive_reply(channel.socket)

    def _daemon_has_gone(self) -> bool:
        return self._has_daemon and is_served(self.disk, self._run_directory) is False

    def _silent(self, timeout_s: float) -> PfsProblem:
        return PfsProblem(
            errno.ETIMEDOUT, f"pfsd of disk {self.disk} did not answer within {timeout_s:g} s",
            str(self.mount.address), hint=pfsd_hint(self.disk),
        )  # fmt: skip

    def _helper_gone(self, name: str) -> PfsProblem:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        self._listener.join(1.0)
        status = self._process.poll()
        how = f"by signal {-status}" if status is not None and status < 0 else f"with status {status}"
        words = self._said.decode("utf-8", "replace").strip().splitlines()
        said = f"; its last words: {words[-1]}" if words else ""
        return PfsProblem(
            errno.ECONNRESET, f"the helper process for disk {self.disk} has ended {how}{said}", name,
            hint=f"run the command again; {pfsd_hint(self.disk)}",
        )  # fmt: skip

    def _give_up(self, problem: OSError) -> OSError:
        """Let all other calls fail as this one does: what hangs in the library never comes back."""
        with self._lock:
            if self._dead is None:
                self._dead = problem
        self._process.kill()
        return problem

    def close(self) -> None:
        """Give the disk back and end the helper; safe to call twice."""
        with self._lock:
            life, self._life = self._life, -1
        if life < 0:
            return
        os.close(life)
        try:
            self._process.wait(_LEAVE_S if self._dead is None else 0.5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for one in self._channels:
            one.socket.close()
        self._listener.join(1.0)
        if self._process.stderr is not None:
            self._process.stderr.close()
        if self._dead is None:
            self._dead = OSError(errno.EBADF, "closed", str(self.mount.address))
