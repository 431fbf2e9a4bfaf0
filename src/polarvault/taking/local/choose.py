"""Which source a backup comes from, by what was asked, and what is said of it."""

from __future__ import annotations

from polarvault.errors import ServerRefused
from polarvault.model.pfs_address import is_pfs_address
from polarvault.server.connection import Connection, Connector
from polarvault.server.identity import ServerIdentity
from polarvault.taking.local.place import LocalPlace, NotHere, find_place
from polarvault.taking.reporter import BackupReporter
from polarvault.taking.request import ServerRequest, SourceKind

_STREAM = "--source stream"


def choose_place(
    request: ServerRequest, identity: ServerIdentity, connector: Connector, connection: Connection,
    reporter: BackupReporter,
) -> LocalPlace | None:  # fmt: skip
    """Return the server's directories on this host, None if its stream is to be taken; the caller closes them.

    Raises ServerRefused where only the local source was asked for. What is chosen, and why, is told in one line.
    """
    try:
        reason = _refusal(request, identity)
        if reason is not None:
            # What was asked for makes it so; nothing is strange about it.
            raise NotHere(reason, what_to_do="", is_plain=True)
        place = find_place(connector, connection, identity)
        if request.source is SourceKind.PFS and (place.shared is None or not is_pfs_address(place.shared.address)):
            place.close()
            raise NotHere(f"{identity.product} keeps nothing in PFS", what_to_do="--source local")
    except NotHere as problem:
        if request.source in (SourceKind.LOCAL, SourceKind.PFS):
            hint = f"{problem.what_to_do}; or {_STREAM}" if problem.what_to_do else _STREAM
            raise ServerRefused(f"--source {request.source.value}: {problem.why}", hint=hint) from None
        tell = reporter.step if problem.is_plain else reporter.note
        tell(f"source: the server's stream, because {problem.why}")
        return None
    tell = reporter.note if request.source is SourceKind.AUTO else reporter.step
    tell(f"source: the files of {place.addresses} themselves")
    return place


def _refusal(request: ServerRequest, identity: ServerIdentity) -> str | None:
    """Say why the files cannot be read here instead of asking the server for them, as far as the request tells."""
    if request.incremental is not None:
        return "the server knows what has changed since the earlier backup, and sends nothing else"
    if request.target is not None:
        return "a backup that stays on the server is made by the server"
    if request.compression.location == "server" and request.compression.algorithm != "none":
        return "compression on the server was asked for"
    if identity.is_newer:
        return f"{identity.product} is newer than what is known of data directories"
    if request.wal_method == "fetch" and not identity.shared_storage:
        return "WAL inside of the backup (-X fetch) comes with the stream only"
    return None
