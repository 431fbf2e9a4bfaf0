"""--configuration: kept files go back where the restored server reads them, and over nobody else's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from polarvault.backupset.saved_configuration import (
    SavedConfiguration,
    read_configuration,
    saved_beside,
    write_configuration,
)
from polarvault.errors import StorageFailed, TargetNotEmpty, UsageError
from polarvault.instance.debian import DebianCluster
from polarvault.instance.model import Account
from polarvault.restore.model import RestorePlan, RestoreRequest
from polarvault.restore.plan.configuration import PutBack, check_put_back, plan_put_back
from polarvault.restore.plan.plan import plan_restore
from polarvault.restore.write.configuration import PutConfiguration
from unit.test_restore_plan import FakeHost, auto_file, facts, inventory, with_files
from unit.test_restore_plan import plan as plan_of

MAIN = b"""data_directory = '/var/lib/postgresql/15/main'  # the source's
hba_file = '/etc/postgresql/15/main/pg_hba.conf'
external_pid_file = '/var/run/postgresql/15-main.pid'
cluster_name = '15/main'
work_mem = 7MB
include_dir 'conf.d'
include_if_exists '/opt/site/tuning.conf'
"""
SAVED = SavedConfiguration(
    data_directory="/var/lib/postgresql/15/main",
    places={
        "config_file": "/etc/postgresql/15/main/postgresql.conf",
        "hba_file": "/etc/postgresql/15/main/pg_hba.conf",
        "ident_file": "/opt/site/idents",
    },
    files={
        "/etc/postgresql/15/main/postgresql.conf": MAIN,
        "/etc/postgresql/15/main/pg_hba.conf": b"local all @admins peer\n",
        "/etc/postgresql/15/main/admins": b"me\n",
        "/etc/postgresql/15/main/conf.d/a.conf": b"port = 5499\n",
        "/opt/site/idents": b"m a b\n",
        "/srv/elsewhere/x.conf": b"",
    },
    directories=("/etc/postgresql/15/main/conf.d",),
)
OWNER = DebianCluster("15", "main", "/etc/postgresql/15/main")


def kept(tmp_path: Path) -> str:
    backup = str(tmp_path / "backup")
    Path(saved_beside(backup)).mkdir()
    write_configuration(saved_beside(backup), SAVED, sync=False)
    return backup


def put(
    tmp_path: Path, place: str, *, owner: DebianCluster | None = None, files: Mapping[str, bytes] | None = None
) -> PutBack:
    saved = read_configuration(saved_beside(kept(tmp_path)))
    found = plan_put_back(place, saved, data_directory="/t", major=15, owner=owner)
    check_put_back(found, files or {})
    return found


def test_in_the_data_directory_each_file_gets_the_name_that_the_server_reads(tmp_path: Path) -> None:
    made = put(tmp_path, "data")
    assert set(made.files) == {
        "/t/postgresql.conf", "/t/pg_hba.conf", "/t/admins", "/t/conf.d/a.conf", "/t/pg_ident.conf"
    }  # fmt: skip
    assert made.directories == ("/t/conf.d",)
    assert made.left_out == ("/srv/elsewhere/x.conf",)


def test_in_etc_only_what_names_the_sources_places_is_changed(tmp_path: Path) -> None:
    made = put(tmp_path, "/etc/postgresql/15/copy/")
    main = made.files["/etc/postgresql/15/copy/postgresql.conf"].decode()
    assert "data_directory = '/t'  # the source's" in main
    assert "hba_file = '/etc/postgresql/15/copy/pg_hba.conf'" in main
    assert "external_pid_file = '/var/run/postgresql/15-copy.pid'" in main
    assert "cluster_name = '15/copy'" in main
    assert "work_mem = 7MB" in main
    assert made.cluster == DebianCluster("15", "copy", "/etc/postgresql/15/copy")


def test_files_that_are_there_are_never_overwritten(tmp_path: Path) -> None:
    there = "/etc/postgresql/15/copy/pg_hba.conf"
    with pytest.raises(TargetNotEmpty) as caught:
        put(tmp_path, "/etc/postgresql/15/copy", files={there: b"somebody else's\n"})
    assert there in caught.value.message
    assert "mv -t" in str(caught.value.hint)
    assert "rm" not in str(caught.value.hint).split()


def test_files_that_are_there_with_the_same_content_are_in_nobodys_way(tmp_path: Path) -> None:
    assert put(
        tmp_path, "/etc/postgresql/15/copy", files={"/etc/postgresql/15/copy/pg_hba.conf": b"local all @admins peer\n"}
    )


@pytest.mark.parametrize(
    ("place", "owner"),
    [("data", OWNER), ("/etc/postgresql/15/other", OWNER), ("/srv/conf", None), ("/etc/postgresql/16/main", None)],
)
def test_a_place_that_the_server_would_not_read_is_refused(
    tmp_path: Path, place: str, owner: DebianCluster | None
) -> None:
    with pytest.raises(UsageError) as caught:
        put(tmp_path, place, owner=owner)
    assert "--configuration" in str(caught.value.hint)


def planned(tmp_path: Path, place: str | None) -> RestorePlan:
    backup = kept(tmp_path)
    asked = RestoreRequest(backup=backup, target="/t", configuration=place)
    found = with_files(inventory(None), pg_hba_conf=None)
    return plan_restore(asked, facts(asked, found, FakeHost(files={saved_beside(backup): b""})))


def test_settings_that_are_put_back_are_settled_like_the_backups_own(tmp_path: Path) -> None:
    made = planned(tmp_path, "data")
    main = made.files["/t/postgresql.conf"].decode()
    assert "#data_directory" in main
    assert "#hba_file" in main
    assert made.files["/t/conf.d/a.conf"] == b"port = 5499\n"
    assert made.files["/t/pg_hba.conf"] == b"local all @admins peer\n"
    assert "archive_mode = off" in auto_file(made).splitlines()
    assert any("/srv/elsewhere/x.conf" in warning for warning in made.warnings)


def test_in_etc_the_data_directory_gets_only_what_overrides(tmp_path: Path) -> None:
    made = planned(tmp_path, "/etc/postgresql/15/copy")
    assert set(made.files) == {"/t/postgresql.auto.conf"}
    assert made.instance.debian == DebianCluster("15", "copy", "/etc/postgresql/15/copy")


def test_configuration_that_was_kept_is_offered(tmp_path: Path) -> None:
    made = planned(tmp_path, None)
    assert any("--configuration data" in warning for warning in made.warnings)
    # And not where there is none.
    assert not any("--configuration" in warning for warning in plan_of(inventory(None)).warnings)


def account() -> Account:
    import os

    return Account("me", os.geteuid(), os.getegid())


def test_what_was_put_back_can_be_taken_back_and_nothing_else(tmp_path: Path) -> None:
    root = tmp_path / "15/copy"
    root.mkdir(parents=True)
    (root / "environment").write_text("LANG=C\n")
    there = root / "pg_hba.conf"
    there.write_bytes(b"same\n")
    files = {str(root / "postgresql.conf"): b"a = 1\n", str(root / "conf.d/b.conf"): b"", str(there): b"same\n"}
    wanted = PutBack(str(root), files, (str(root / "empty.d"),), (), None)
    made = PutConfiguration(wanted, account(), sync=True)
    made.write()
    assert (root / "postgresql.conf").read_bytes() == b"a = 1\n"
    assert (root / "empty.d").is_dir()
    made.undo()
    made.undo()
    assert not (root / "postgresql.conf").exists()
    assert {path.name for path in root.iterdir() if path.is_file()} == {"environment", "pg_hba.conf"}


def test_a_link_in_the_way_is_not_written_through(tmp_path: Path) -> None:
    root, outside = tmp_path / "15/copy", tmp_path / "outside"
    root.mkdir(parents=True)
    outside.mkdir()
    (root / "conf.d").symlink_to(outside)
    wanted = PutBack(str(root), {str(root / "conf.d/b.conf"): b"x"}, (), (), None)
    with pytest.raises(StorageFailed):
        PutConfiguration(wanted, account(), sync=False).write()
    assert list(outside.iterdir()) == []
