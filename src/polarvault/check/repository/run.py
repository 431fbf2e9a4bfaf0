"""One repository of a cluster, from opening it to the WAL that arrives there: an area of the check."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from polarvault.check.repository.archive import check_archive, check_switch
from polarvault.check.repository.policy import check_policy
from polarvault.check.repository.store import StoreFacts, judge_room, judge_store, read_room, read_store
from polarvault.check.session import CheckSession
from polarvault.check.target import read_size
from polarvault.config.model import RepositoryConfiguration, Retention
from polarvault.errors import PolarvaultError
from polarvault.model.finding import Finding, ok, problem
from polarvault.repository.catalogue.opening import OpenedRepository, open_repository
from polarvault.repository.catalogue.overview import look_over
from polarvault.repository.catalogue.repository import Repository


@dataclass(frozen=True, slots=True)
class RepositoryCheck:
    """What is asked for. switch_s: how long a segment that is switched may take to arrive; None: none is switched."""

    cluster: str
    repository: RepositoryConfiguration
    retention: Retention = field(default_factory=Retention)
    switch_s: float | None = None

    @property
    def place(self) -> str:
        """As findings name it, and as --repo takes it."""
        return self.repository.name or self.repository.address


def repository_area(asked: RepositoryCheck) -> Callable[[CheckSession], list[Finding]]:
    """Return the area that checks one repository."""

    def check_repository(session: CheckSession) -> list[Finding]:
        try:
            opened = open_repository(asked.repository, os.environ)
        except PolarvaultError as refused:
            return [
                problem(
                    "repository", asked.place, refused.message,
                    meaning="no backup and no WAL gets there, and nothing is restored from there",
                    advice=refused.hint or "polarvault repo info",
                )
            ]  # fmt: skip
        try:
            return _opened(asked, opened, session)
        finally:
            opened.close()

    return check_repository


def _opened(asked: RepositoryCheck, opened: OpenedRepository, session: CheckSession) -> list[Finding]:
    repository = opened.repository
    encrypted = "encrypted" if opened.data_keys else "not encrypted"
    findings = [ok("repository", asked.place, f"{asked.repository.address} is the repository {opened.id}, {encrypted}")]
    facts = read_store(repository.store)
    findings += judge_store(facts, asked.place)
    findings += _guarded(lambda: _room(asked, repository, session), session, f"room in {asked.place}")
    findings += _guarded(lambda: check_archive(asked.cluster, asked.place, repository, session), session, "WAL")
    if asked.switch_s is not None:
        limit_s = asked.switch_s
        findings += _guarded(
            lambda: check_switch(asked.cluster, asked.place, repository, session, limit_s=limit_s), session, "a switch"
        )
    findings += _guarded(lambda: _policy(asked, repository, facts), session, f"expiry in {asked.place}")
    return findings


def _guarded(look: Callable[[], list[Finding]], session: CheckSession, what: str) -> list[Finding]:
    """Look at one thing; what stops it must not hide the others."""
    try:
        return look()
    except PolarvaultError as stopped:
        session.miss(what, stopped.message)
        return []


def _room(asked: RepositoryCheck, repository: Repository, session: CheckSession) -> list[Finding]:
    available = read_room(asked.repository.address)
    if available is None:
        return []
    found = look_over(repository, asked.cluster, datetime.now(UTC))
    size = read_size(session)
    return judge_room(
        asked.place, available,
        week_bytes=None if found is None or found.last is None else found.week_bytes,
        cluster_bytes=None if size is None else size.total_bytes,
    )  # fmt: skip


def _policy(asked: RepositoryCheck, repository: Repository, facts: StoreFacts) -> list[Finding]:
    return check_policy(asked.cluster, asked.place, repository, asked.retention, may_write=facts.may_delete)
