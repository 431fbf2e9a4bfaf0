"""What only PolarDB has: shared storage, replicas and their slots, large segments. Start reading here.

Each area asks (`read_...`) and judges (`judge_...`, pure), in a module of its own. The facts behind the judgements are
measured on PolarDB 15.8 unless a module says otherwise.
"""

from __future__ import annotations

from polarvault.check.polardb.node import check_polardb_node, judge_replica_settings, read_replica_settings
from polarvault.check.polardb.pages import check_torn_pages
from polarvault.check.polardb.pfs import check_pfs
from polarvault.check.polardb.replicas import check_replicas
from polarvault.check.polardb.storage import check_storage
from polarvault.check.polardb.tablespaces import check_tablespaces
from polarvault.check.polardb.wal import check_wal_costs, check_walsender_limit
from polarvault.check.session import CheckSession
from polarvault.model.finding import Finding, ok


def check_polardb(session: CheckSession) -> list[Finding]:
    """Return the findings about a PolarDB server; asked only of one."""
    shared = session.shared_storage
    findings = [_product(session, shared=shared)]
    is_replica = False
    if shared:
        node_type, found = check_polardb_node(session)
        is_replica = node_type == "replica"
        findings += found
    findings += check_walsender_limit(session)
    if is_replica:
        # Nothing else matters on a node that cannot be backed up, but for what makes the node itself crash.
        return findings + judge_replica_settings(read_replica_settings(session))
    if shared:
        findings += check_storage(session)
        findings += check_pfs(session)
        findings += check_replicas(session)
        findings += check_tablespaces(session)
    findings += check_torn_pages(session, shared=shared)
    findings += check_wal_costs(session)
    return findings


def _product(session: CheckSession, *, shared: bool) -> Finding:
    """Name the product: the server's version alone cannot be told from PostgreSQL's."""
    version = session.setting("polar_version") or "unknown"
    name = session.setting("polardb_version") or f"PolarDB {version}"
    base = f", on PostgreSQL {session.setting('server_version')}"
    storage = "two directories on shared storage" if shared else "one directory, without shared storage"
    return ok("polardb", "server", f"{name} (polar_version {version}{base}): {storage}")
