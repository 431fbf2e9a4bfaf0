"""TCP ports for tests: each belongs to one server or proxy, also while that one does not listen."""

from __future__ import annotations

import socket
import weakref


def hold_port(owner: object) -> int:
    """Return a port of 127.0.0.1 that nobody else is given while the owner exists; connecting to it is refused.

    A server that listens later, or is stopped and started again, would else find its port taken by another test's.
    """
    held = socket.socket()
    held.bind(("127.0.0.1", 0))
    # Only now: whoever looks for a free port is refused this one, but a server that names it, and sets the same
    # option as all servers do, may listen on it beside a socket that does not (Linux: ip(7), socket(7)).
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    weakref.finalize(owner, held.close)
    return int(held.getsockname()[1])
