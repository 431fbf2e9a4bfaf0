"""Ask a receiver to stop, from a signal handler or another thread, whatever it is waiting for."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from polarvault.server.readable import wait_readable


class StopRequest:
    """A flag and a pipe: setting the flag also ends every wait on the pipe."""

    def __init__(self) -> None:
        self.requested = False
        # Set while a byte waits in the pipe.
        self.woken = False
        self.wake_descriptor, self._writer = os.pipe()
        os.set_blocking(self.wake_descriptor, False)
        os.set_blocking(self._writer, False)
        self._interruptible = False

    def __del__(self) -> None:
        for descriptor in (self.wake_descriptor, self._writer):
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def request(self) -> None:
        """Stop as soon as what was received is safe; in the middle of connecting, at once."""
        self.requested = True
        self.wake()
        if self._interruptible:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Mark a stretch that waits inside of a library and leaves nothing behind when it is interrupted."""
        if self.requested:
            raise KeyboardInterrupt
        self._interruptible = True
        try:
            yield
        finally:
            self._interruptible = False

    def wake(self) -> None:
        """End the present wait, or the next one."""
        # A full pipe wakes as well as a new byte.
        with contextlib.suppress(BlockingIOError):
            os.write(self._writer, b"!")
        # After the byte: before it, a `drain` in between would leave a byte that nobody looks for.
        self.woken = True

    def drain(self) -> None:
        """Forget earlier calls of `wake`; a requested stop stays."""
        self.woken = False
        with contextlib.suppress(BlockingIOError):
            while len(os.read(self.wake_descriptor, 64)) == 64:
                pass

    def wait(self, timeout_s: float) -> bool:
        """Sleep until a stop is requested or the time is over; return whether it was requested."""
        if not self.requested:
            wait_readable(self.wake_descriptor, timeout_s)
            self.drain()
        return self.requested
