"""What only PolarDB has: findings about shared storage, replicas and their slots."""

from __future__ import annotations

from polarvault.check.session import CheckSession
from polarvault.model.finding import Finding


def check_polardb(session: CheckSession) -> list[Finding]:
    """Return the findings about a PolarDB server; asked only of one."""
    return []
