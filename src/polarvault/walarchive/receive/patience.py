"""When a receiver leaves a server that waits for it.

A server that shuts down sends all of its WAL to every receiver, and does not end before each has confirmed it (server:
replication/walsender.c, WalSndDone), however long that takes, as long as the receiver answers. A receiver that cannot
confirm, because its repository is away or its disk hangs, would keep the server from ever stopping. So it leaves: what
was not confirmed is held by the slot and sent again.
"""

from __future__ import annotations

from polarvault.errors import ConnectionLost

# Well within the minute that pg_ctl waits; and long enough for a slice over a slow line.
LIMIT_S = 30.0
# A server that shuts down asks again as soon as it is answered, which takes a second at most.
_AGAIN_S = 3.0
_HINT = "see what --status says of the repository, or of the disk; receiving goes on by itself"


class Patience:
    """Measures how long a server has been kept waiting. now: seconds by time.monotonic()."""

    def __init__(self) -> None:
        self._full_since: float | None = None
        self._asked_since: float | None = None
        self._asked_at = 0.0

    def took(self) -> None:
        """Note that WAL was taken."""
        self._full_since = None

    def full(self, now: float) -> None:
        """Note that no WAL can be taken; raise ConnectionLost when for long there was no room for any.

        What the server says, that it shuts down for example, is not read meanwhile.
        """
        if self._full_since is None:
            self._full_since = now
        if now - self._full_since >= LIMIT_S:
            raise ConnectionLost(
                f"for {LIMIT_S:g} s there was no room for more WAL: the server is left, so that it can be stopped "
                "meanwhile",
                hint=_HINT,
            )

    def asked(self, now: float, *, is_durable: bool) -> None:
        """Note that the server wants an answer; raise ConnectionLost when for long it could not be that all is safe."""
        if is_durable:
            self._asked_since = None
            return
        if self._asked_since is None or now - self._asked_at > _AGAIN_S:
            self._asked_since = now
        self._asked_at = now
        if now - self._asked_since >= LIMIT_S:
            raise ConnectionLost(
                f"for {LIMIT_S:g} s the server has asked for what could not be made durable here: it is left, so that "
                "it can shut down",
                hint=_HINT,
            )
