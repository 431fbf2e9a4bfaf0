"""A replica is laid out so that nothing can start it as a second writer; the primary's answers are made up here."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from polarvault.errors import PolarvaultError, ServerRefused, StartFailed, TargetNotEmpty, UsageError
from polarvault.instance.account import server_account
from polarvault.instance.host import Host
from polarvault.instance.model import Role
from polarvault.pgconf.configuration import Configuration
from polarvault.report.restore import plan_json, plan_text
from polarvault.restore.model import RestorePlan, RestoreRequest
from polarvault.restore.run import prepare, restore_backup
from polarvault.restore.standby import asking
from polarvault.restore.standby.primary import Primary
from polarvault.restore.write import replica
from polarvault.restore.write.lay_out import LayOut
from support.made_backups import SYSTEM_IDENTIFIER, MadeBackup
from support.small_files import control_bytes
from unit.test_standby_checks import IDENTITY, PRIMARY, SLOT


class Made:
    """A local half, the storage of its primary, and where the replica goes."""

    def __init__(self, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.storage = workspace / "storage"
        (self.storage / "global").mkdir(parents=True)
        (self.storage / "global/pg_control").write_bytes(control_bytes(system=SYSTEM_IDENTIFIER))
        (self.storage / "pg_replslot/ro1").mkdir(parents=True)
        made = MadeBackup()
        made.content = {
            "PG_VERSION": b"15\n",
            "backup_label": b"of no use to a replica\n",
            "postgresql.conf": f"polar_enable_shared_storage_mode = on\npolar_datadir = 'file-dio://{self.storage}'\n"
            "polar_vfs.localfs_mode = on\nrestore_command = 'cp'\narchive_mode = on\n".encode(),
            "pg_hba.conf": b"local all @nowhere trust\n",
            "base/5/PG_VERSION": b"15\n",
            "pg_xact/0000": bytes(8192),
        }
        self.backup = made.plain(workspace / "b")
        # WAL lies in the shared half.
        shutil.rmtree(self.backup / "pg_wal")
        self.target = workspace / "r"
        self.primary = replace(
            PRIMARY,
            conninfo="host=p port=5432",
            slots=(replace(SLOT, name="ro1"),),
            identity=replace(
                IDENTITY, system_identifier=str(SYSTEM_IDENTIFIER), polar_version="2.0",
                shared_data_directory=f"file-dio://{self.storage}",
            ),
        )  # fmt: skip
        monkeypatch.setattr(asking, "ask_primary", self._ask)

    def _ask(self, given: str, *, application_name: str, user: str) -> Primary:
        assert (given, application_name) == ("host=p", "ro1")
        return self.primary

    def plan(self, **more: Any) -> RestorePlan:
        fields = {
            "role": Role.REPLICA, "primary_conninfo": "host=p", "slot": "ro1", "sync": False,
            "owner": server_account().name if os.geteuid() == 0 else None, **more,
        }  # fmt: skip
        return prepare(RestoreRequest(str(self.backup), str(self.target), **fields), Host())

    def snapshot(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in self.storage.rglob("*") if path.is_file()}


@pytest.fixture
def made(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    return Made(workspace, monkeypatch)


def test_the_local_half_alone_becomes_a_replica_and_the_storage_stays_as_it_is(made: Made) -> None:
    plan, before = made.plan(), made.snapshot()
    text = "\n".join(plan_text(plan))
    assert f"storage           file-dio://{made.storage}, the primary's own; nothing is written there" in text
    assert plan_json(plan)["storage"] == f"file-dio://{made.storage}"
    result = restore_backup(plan, Host(), lambda size: None)
    names = {str(path.relative_to(made.target)) for path in made.target.rglob("*") if path.is_file()}
    # No label, no pg_control, no cache of the storage, and nothing that only waits to be put in place.
    assert names == {"PG_VERSION", "base/5/PG_VERSION", "pg_hba.conf", "postgresql.conf", "replica.signal"}
    found = Configuration(str(made.target), Host())
    wanted = {
        "polar_datadir": f"file-dio://{made.storage}", "polar_enable_shared_storage_mode": "on", "archive_mode": "off",
        "restore_command": None, "primary_conninfo": "host=p port=5432", "primary_slot_name": "ro1",
    }  # fmt: skip
    assert {name: found.value(name) for name in wanted} == wanted
    assert (made.target / "pg_hba.conf").read_bytes() == b"local all @nowhere trust\n"
    assert made.snapshot() == before
    assert any("no fitting server programs" in warning for warning in result.warnings)


@pytest.mark.parametrize("step", ["laying", "checking"])
def test_nothing_is_left_of_one_that_failed_and_no_server_could_have_started_from_it(
    made: Made, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    plan, seen = made.plan(), []

    def fail(*of_what: object) -> None:
        seen.append({path.name for path in made.target.iterdir()})
        raise StartFailed("as the test wants it")

    if step == "laying":
        monkeypatch.setattr(LayOut, "run", fail)
    else:
        monkeypatch.setattr(replica, "_check_settings", fail)
    with pytest.raises(StartFailed):
        restore_backup(plan, Host(), lambda size: None)
    assert "replica.signal" in seen[0]
    assert "postgresql.conf" not in seen[0]
    assert not made.target.exists()


def test_what_is_no_storage_of_the_primary_is_never_opened(made: Made) -> None:
    (made.storage / "pg_replslot/ro1").rmdir()
    with pytest.raises(ServerRefused, match="not the storage that the primary writes to"):
        made.plan()
    # A slot that is to be made cannot be there yet, and is looked for before anything is laid out.
    made.primary = replace(made.primary, slots=())
    plan = made.plan(create_slot=True)
    plan = replace(plan, request=replace(plan.request, create_slot=False))
    with pytest.raises(ServerRefused, match="not the storage that the primary writes to"):
        restore_backup(plan, Host(), lambda size: None)
    assert not made.target.exists()


@pytest.mark.parametrize(
    ("more", "error", "words"),
    [
        ({"shared_target": "/elsewhere"}, ServerRefused, "and the replica would open"),
        ({"settings": (("polar_datadir", "/x"),)}, UsageError, "decided by the primary"),
        ({"slot": "other"}, ServerRefused, "has no slot"),
    ],
)
def test_what_would_open_another_storage_is_refused(
    made: Made, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any], error: type[PolarvaultError], words: str
) -> None:
    monkeypatch.setattr(asking, "ask_primary", lambda *given, **named: made.primary)
    with pytest.raises(error, match=words):
        made.plan(**more)


def test_a_target_inside_of_the_live_storage_is_refused_and_one_that_is_not_empty(made: Made) -> None:
    target = made.target
    made.target = made.storage / "new"
    with pytest.raises(UsageError, match=r"lie inside one another|lies inside of"):
        made.plan()
    made.target = target
    target.mkdir()
    (target / "x").touch()
    with pytest.raises(TargetNotEmpty):
        made.plan()
