"""What goes wrong when one table is brought back, by who must act."""

from __future__ import annotations

from polarvault.errors import PolarvaultError


class FlashbackRefused(PolarvaultError):
    """What was asked for would overwrite something, or means nothing there; nothing was changed."""

    id = "flashback-refused"
    actor = "the operator"
    remedy = "do what the hint says"


class TableNotFound(PolarvaultError):
    """At that moment there was no such table."""

    id = "table-not-found"
    actor = "the operator"
    remedy = "look when it was changed or dropped: polarvault flashback find"


class DumpFailed(PolarvaultError):
    """pg_dump or pg_restore failed; its own words are the detail. Nothing of a dump or of a restored table is left."""

    id = "dump-failed"
    actor = "the operator"
    remedy = "read what the program said"
