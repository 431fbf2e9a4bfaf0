"""What the next expire would remove."""

from __future__ import annotations

from polarvault.config.model import Retention
from polarvault.model.finding import Finding, ok, warning
from polarvault.model.units import format_bytes
from polarvault.repository.catalogue.repository import Repository
from polarvault.retention.expire import ExpireReport, ExpireRequest, expire


def check_policy(
    cluster: str, place: str, repository: Repository, retention: Retention, *, may_write: bool
) -> list[Finding]:
    """Return the finding about the next expire. may_write: whether its mark could be taken back where it is decided."""
    if retention == Retention():
        return [
            warning(
                "next-expiry", place, f"no policy says which backups of {cluster} are kept",
                "nothing is ever removed: the repository grows until somebody runs out of room or money",
                f'[cluster.{cluster}.retention] in the configuration, as window = "14d"',
            )
        ]  # fmt: skip
    if not repository.labels(cluster):
        return [ok("next-expiry", place, "there is no backup yet that could expire")]
    if not may_write:
        return [ok("next-expiry", place, "expire cannot run here: this role may not remove objects")]
    return [judge_expiry(place, expire(repository, ExpireRequest(cluster, retention, dry_run=True)))]


def judge_expiry(place: str, report: ExpireReport) -> Finding:
    """Return the finding about a dry run."""
    removed, kept = report.removed, sum(verdict.is_kept for _, verdict in report.backups)
    message = (
        f"the next expire keeps {kept} backups and removes {removed.backups}: {removed.packs} packs, "
        f"{format_bytes(removed.pack_bytes)}; {removed.wal_ranges} ranges of WAL, {format_bytes(removed.wal_bytes)}"
    )
    if removed.refused:
        return warning(
            "next-expiry", place, f"{message}; it cannot go on: {removed.refused[0]}",
            "what nobody needs stays", f"polarvault expire {report.request.cluster} --dry-run",
        )  # fmt: skip
    return ok("next-expiry", place, message)
