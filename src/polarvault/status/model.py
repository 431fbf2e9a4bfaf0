"""Values of a status: which clusters are meant, and how each stands. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from polarvault.config.model import Limits, RepositoryConfiguration
from polarvault.errors import PolarvaultError
from polarvault.model.finding import Finding, Severity, worst
from polarvault.repository.catalogue.overview import Overview


class Level(Enum):
    """How a cluster stands; the value is the exit status, as plugins of Nagios have it."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3


_LEVELS = {Severity.OK: Level.OK, Severity.WARNING: Level.WARNING, Severity.PROBLEM: Level.CRITICAL}
# What is known to be wrong must not hide behind what is not known.
_WORST_FIRST = (Level.CRITICAL, Level.UNKNOWN, Level.WARNING, Level.OK)


@dataclass(frozen=True, slots=True)
class Target:
    """A cluster in a repository that is to be looked at; cluster None: all that the repository has.

    configured: whether the configuration names the cluster, so that it must have backups.
    """

    cluster: str | None
    repository: RepositoryConfiguration
    configured: bool = True


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """A cluster in a repository. overview: None where nothing is there, or where error says why it is not known."""

    cluster: str
    repository: str
    address: str
    limits: Limits
    overview: Overview | None
    error: PolarvaultError | None = None
    findings: Sequence[Finding] = ()

    @property
    def level(self) -> Level:
        """The worst of what was found."""
        return Level.UNKNOWN if self.error is not None else _LEVELS[worst(list(self.findings))]

    @property
    def name(self) -> str:
        """The cluster and its repository, as findings name it; the cluster may be that of a repository that is away."""
        place = self.repository or self.address
        return f"{self.cluster} in {place}" if self.cluster else place


@dataclass(frozen=True, slots=True)
class Status:
    """All clusters, in the order in which they were asked for. now: the moment that ages are counted to."""

    now: datetime
    clusters: Sequence[ClusterStatus]

    @property
    def level(self) -> Level:
        """The worst level; of no cluster nothing is known."""
        levels = {one.level for one in self.clusters}
        return next((level for level in _WORST_FIRST if level in levels), Level.UNKNOWN)

    @property
    def worst_first(self) -> list[ClusterStatus]:
        """The clusters, those with the worst level first."""
        return sorted(self.clusters, key=lambda one: _WORST_FIRST.index(one.level))
