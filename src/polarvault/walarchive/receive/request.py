"""What a receiver is asked to do, and what of it is impossible; option names and words are pg_receivewal's."""

from __future__ import annotations

from dataclasses import dataclass

from polarvault.errors import UsageError
from polarvault.model.compression import Compression
from polarvault.model.lsn import Lsn

_ASK_AFTER_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiveRequest:
    """The options of one run; status_interval_s 0 means: answer only when the server asks.

    sync_every_s: how often an unfinished segment becomes durable, also without status messages. create_slot: make the
    slot where it is missing, on whatever server is streamed from. command: what starts such a receiver again. A server
    that is silent for silence_limit_s, although it was asked for a sign of life, counts as lost; the default is the
    server's own wal_receiver_timeout.
    """

    slot: str | None = None
    end_lsn: Lsn | None = None
    loop: bool = True
    synchronous: bool = False
    status_interval_s: float = 10.0
    silence_limit_s: float = 60.0
    sync_every_s: float = 10.0
    create_slot: bool = False
    command: str | None = None

    @property
    def ask_after_s(self) -> float:
        """How long a server may be silent before it is asked for a sign of life; 0 for never.

        Often enough that monitoring knows how far the server is.
        """
        return min(_ASK_AFTER_S, self.silence_limit_s / 2) if self.status_interval_s > 0 else 0.0

    @property
    def reports_flush(self) -> bool:
        """Tell whether the server hears what is durable here.

        As pg_receivewal: only with a slot, which needs it, or when asked to be synchronous. Who reports it becomes the
        synchronous standby under synchronous_standby_names = '*', and every commit would wait for the next status.
        """
        return self.slot is not None or self.synchronous


def check_compression(compression: Compression) -> None:
    """Refuse what makes no sense for WAL segments."""
    if compression.location is not None:
        raise UsageError(
            f"receivewal compresses itself: {compression.location}-{compression.algorithm} is not possible",
            hint=f"give -Z {compression.algorithm}",
        )
    if compression.workers or compression.long:
        raise UsageError("workers and long-distance mode are of no use for WAL segments", hint="give -Z zstd:LEVEL")
