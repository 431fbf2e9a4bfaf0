"""Stream WAL of a cluster into its repositories: the use case behind `polarvault wal stream`. Start reading here.

The receiver is that of `receivewal`; here is what it streams into, and what has to be known before it begins.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from polarvault.errors import ConnectionFailed, PolarvaultError, StorageFailed
from polarvault.repository.catalogue.repository import Generation
from polarvault.server.connection import Connector
from polarvault.server.identity import ServerIdentity, read_identity
from polarvault.storage.state_directory import state_directory
from polarvault.walarchive.receive.request import ReceiveRequest
from polarvault.walarchive.receive.run import receive_wal
from polarvault.walarchive.receive.session import ReceiveReporter
from polarvault.walarchive.receive.stop import StopRequest
from polarvault.walarchive.streaming.leftovers import upload_leftovers
from polarvault.walarchive.streaming.places import OpenRepositories, Places
from polarvault.walarchive.streaming.spool import Spool
from polarvault.walarchive.streaming.store import RepositoryStore, StreamSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamJob:
    """What is streamed where. state_path: the directory for lock and status; spool: None for none."""

    cluster: str
    open_repositories: OpenRepositories
    state_path: str
    settings: StreamSettings = field(default_factory=StreamSettings)
    make_spool: Callable[[], Spool] | None = None


def stream_wal(
    job: StreamJob, request: ReceiveRequest, connector: Connector, reporter: ReceiveReporter, stop: StopRequest
) -> None:
    """Stream until a stop is requested or the end LSN is reached; both are success.

    Raises what `receive_wal` raises. What an earlier run has left in the spool is uploaded in any case, also when the
    server does not answer.
    """
    spool = job.make_spool() if job.make_spool is not None else None
    try:
        identity = _ask(connector, stop)
    except ConnectionFailed:
        if spool is not None:
            _upload(job, spool, reporter)
        raise
    store = RepositoryStore(
        Places(job.cluster, job.open_repositories), _generation(identity),
        spool=spool, state_path=job.state_path, settings=job.settings, stop=stop, on_note=reporter.note,
    )  # fmt: skip
    try:
        receive_wal(request, store, connector, reporter, stop)
    finally:
        store.close()


def flush_spool(job: StreamJob) -> int:
    """Upload what waits in the spool, without a server; return how many slices that were."""
    if job.make_spool is None:
        raise ValueError("there is no spool")
    spool = job.make_spool()
    try:
        return upload_leftovers(Places(job.cluster, job.open_repositories), spool)
    finally:
        spool.close()


def status_directory(cluster: str, addresses: Sequence[str], environment: Mapping[str, str]) -> str:
    """Return the directory in which a receiver keeps its lock and its status; made if it is missing.

    One for each cluster and set of repositories, so that two receivers of this machine do not take turns.
    """
    told = hashlib.blake2b("\n".join(sorted(addresses)).encode(), digest_size=4).hexdigest()
    found = None
    for _ in range(3):
        # Whoever makes it at the same moment, `--status` perhaps, leaves the other one without.
        found = found or state_directory(environment, "wal-stream", f"{cluster}-{told}", outside=())
    if found is None:
        raise StorageFailed(
            "there is no place for the receiver's lock and status",
            hint="name a directory that only this account may write: XDG_STATE_HOME=/path; or make "
            "/var/lib/polarvault for this account",
        )
    return os.path.abspath(found)


def _ask(connector: Connector, stop: StopRequest) -> ServerIdentity:
    with stop.interruptible():
        connection = connector.replication()
        try:
            return read_identity(connection)
        finally:
            connection.close()


def _generation(identity: ServerIdentity) -> Generation:
    return Generation(
        int(identity.system_identifier),
        identity.version_num,
        identity.shared_storage,
        identity.segment_size_bytes,
        identity.relation_segment_bytes,
        identity.data_checksums,
    )


def _upload(job: StreamJob, spool: Spool, reporter: ReceiveReporter) -> None:
    try:
        done = upload_leftovers(Places(job.cluster, job.open_repositories), spool)
    except PolarvaultError as problem:
        reporter.problem(problem)
    else:
        if done:
            reporter.note(f"uploaded {done} slices that waited in the spool")
