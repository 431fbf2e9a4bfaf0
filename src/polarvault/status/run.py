"""Ask all repositories at once, and judge what they say. One that does not answer is unknown, and delays nobody."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from polarvault.config.model import Configuration, Limits, RepositoryConfiguration
from polarvault.errors import PolarvaultError, RepositoryNotFound, StoreUnreachable
from polarvault.repository.catalogue.opening import OpenedRepository, open_repository
from polarvault.repository.catalogue.overview import look_over
from polarvault.repository.catalogue.repository import Repository
from polarvault.status.judge import judge
from polarvault.status.model import ClusterStatus, Status, Target

# Of one repository, at the same time.
_CLUSTERS_AT_A_TIME = 8
Open = Callable[[RepositoryConfiguration, Mapping[str, str]], OpenedRepository]


def look_at_status(
    configuration: Configuration,
    targets: Sequence[Target],
    environment: Mapping[str, str],
    *,
    now: datetime,
    timeout_s: float,
    opener: Open = open_repository,
) -> Status:
    """Return how clusters stand, in the order of the targets. What is away is unknown, and no error.

    timeout_s: how long is waited for all repositories together; requests are tried again no longer than that.
    """
    places: dict[RepositoryConfiguration, _Place] = {}
    for target in targets:
        key = target.repository
        if key not in places:
            places[key] = _Place(key, configuration, environment, now, timeout_s, opener)
        places[key].targets.append(target)
    deadline = time.monotonic() + timeout_s
    for place in places.values():
        place.begin()
    for place in places.values():
        place.done.wait(max(0.0, deadline - time.monotonic()))
    found: dict[tuple[RepositoryConfiguration, str], ClusterStatus] = {}
    for target in targets:
        for one in places[target.repository].results(target):
            found.setdefault((target.repository, one.cluster), one)
    return Status(now, list(found.values()))


@dataclass(eq=False)
class _Place:
    """One repository, asked in threads of its own. They are daemons: a request that hangs must not hold up the exit."""

    repository: RepositoryConfiguration
    configuration: Configuration
    environment: Mapping[str, str]
    now: datetime
    timeout_s: float
    opener: Open
    targets: list[Target] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)
    _names: list[str] | None = None
    _found: dict[str, ClusterStatus] = field(default_factory=dict)
    _error: PolarvaultError | None = None
    _fault: BaseException | None = None
    """What nobody foresaw; it is raised where the results are asked for."""

    def begin(self) -> None:
        """Begin to ask."""
        threading.Thread(target=self._ask, name=f"status {self.repository.address}", daemon=True).start()

    def results(self, target: Target) -> list[ClusterStatus]:
        """Return what has come of a target by now."""
        if self._fault is not None:
            raise self._fault
        found = dict(self._found)
        if target.cluster is None:
            return [found.get(name) or self._unknown(name) for name in self._names or ()] or [self._unknown("")]
        return [found.get(target.cluster) or self._unknown(target.cluster)]

    def _ask(self) -> None:
        try:
            store = self.repository.store
            hasty = replace(store, deadline_s=min(store.deadline_s, self.timeout_s))
            opened = self.opener(replace(self.repository, store=hasty), self.environment)
            try:
                self._look(opened.repository)
            finally:
                opened.close()
        except PolarvaultError as problem:
            self._error = problem
        except BaseException as fault:
            self._fault = fault
        finally:
            self.done.set()

    def _look(self, repository: Repository) -> None:
        named = {one.cluster: one.configured for one in self.targets if one.cluster is not None}
        if any(one.cluster is None for one in self.targets):
            self._names = repository.clusters()
            if not self._names:
                raise RepositoryNotFound(
                    f"{self.repository.address} holds no cluster", hint="polarvault backup CLUSTER"
                )
        wanted = dict.fromkeys(self._names or (), False) | named
        at_a_time = threading.Semaphore(_CLUSTERS_AT_A_TIME)

        def look(cluster: str, configured: bool) -> None:
            with at_a_time:
                try:
                    self._found[cluster] = self._cluster(repository, cluster, configured=configured)
                except BaseException as fault:
                    self._fault = fault

        threads = [threading.Thread(target=look, args=one, daemon=True) for one in wanted.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _cluster(self, repository: Repository, cluster: str, *, configured: bool) -> ClusterStatus:
        try:
            found = look_over(repository, cluster, self.now)
            if found is None and not configured:
                raise RepositoryNotFound(
                    f"{self.repository.address} holds nothing of a cluster {cluster}",
                    hint="polarvault list shows what is there",
                )
        except PolarvaultError as problem:
            return self._status(cluster, error=problem)
        limits = self._limits(cluster)
        name = self.repository.name or self.repository.address
        findings = judge(cluster, name, found, limits, self.now)
        status = self._status(cluster)
        return replace(status, overview=found, findings=findings)

    def _unknown(self, cluster: str) -> ClusterStatus:
        error = self._error or StoreUnreachable(
            f"{self.repository.address} has not answered within {self.timeout_s:g} s",
            hint="see whether it can be reached: polarvault repo info; or wait longer: --timeout",
        )
        return self._status(cluster, error=error)

    def _status(self, cluster: str, *, error: PolarvaultError | None = None) -> ClusterStatus:
        where = self.repository
        return ClusterStatus(cluster, where.name, where.address, self._limits(cluster), None, error)

    def _limits(self, cluster: str) -> Limits:
        return self.configuration.limits_of(cluster)
