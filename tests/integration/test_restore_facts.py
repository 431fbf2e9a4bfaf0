"""A restore asks each thing once, and makes one plan of the answers; a second one only of what was unpacked since."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from polarvault.instance.account import server_account
from polarvault.instance.host import Host
from polarvault.restore import run
from polarvault.restore.model import RestorePlan, RestoreRequest
from polarvault.restore.plan.plan import plan_restore
from support.made_backups import MadeBackup

CONF = b"""ssl = on
ssl_cert_file = '/nowhere/c'
unix_socket_directories = '/nowhere, /tmp'
include_if_exists '/nowhere/x'
"""
QUESTIONS = (
    "account", "available_bytes", "debian_cluster", "enclosing_occupant", "exists", "is_writable_directory", "occupant",
    "port_is_taken", "read", "real_path", "shares_extents", "takes_direct_io",
)  # fmt: skip


class CountingHost(Host):
    """This machine, and what it was asked."""

    def __init__(self) -> None:
        self.asked: Counter[tuple[object, ...]] = Counter()
        self.is_answering = False

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name not in QUESTIONS:
            return found

        def counted(*given: object) -> object:
            # What an answer is made of is no question of the caller's.
            if self.is_answering:
                return found(*given)
            self.asked[name, *given] += 1
            self.is_answering = True
            try:
                return found(*given)
            finally:
                self.is_answering = False

        return counted


@pytest.mark.parametrize(("form", "plans"), [("plain", 1), ("tar", 1), ("gz", 2)])
def test_each_question_is_asked_once_and_the_plan_is_made_once(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, form: str, plans: int
) -> None:
    made = MadeBackup()
    made.content["postgresql.conf"] = CONF
    made.seal()
    backup = (
        made.plain(workspace / "b") if form == "plain" else made.tar(workspace / "b", ".gz" if form == "gz" else "")
    )
    request = RestoreRequest(
        str(backup), str(workspace / "r"), sync=False, owner=server_account().name if os.geteuid() == 0 else None
    )
    seen: list[RestorePlan] = []

    def noted(*given: Any) -> RestorePlan:
        seen.append(plan_restore(*given))
        return seen[-1]

    monkeypatch.setattr(run, "plan_restore", noted)
    host = CountingHost()
    plan = run.prepare(request, host)
    assert {question: times for question, times in host.asked.items() if times > 1} == {}
    assert {question for question, *_ in host.asked} >= {"account", "occupant", "port_is_taken", "read"}
    host.asked.clear()
    run.restore_backup(plan, host, lambda size: None)
    assert len(seen) == plans
    # Of a tar that could not be read to its end only what its settings name is asked for again.
    again = {question for question, *_ in host.asked}
    assert again <= ({"exists", "is_writable_directory", "read"} if form == "gz" else set())
    assert seen[-1].inventory.control is not None
