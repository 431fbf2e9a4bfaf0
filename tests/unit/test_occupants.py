"""What stands in a directory, and that a refusal to use it never leads to its loss."""

from __future__ import annotations

from pathlib import Path

import pytest

from polarvault.basebackup.created_paths import CreatedPaths
from polarvault.errors import TargetNotEmpty, UsageError
from polarvault.storage.occupants import Occupancy, enclosing_occupant, not_empty, occupant_of

LIVE = {
    "server": (["PG_VERSION", "postmaster.pid"], Occupancy.SERVER),
    # A server in a container can keep its pid file elsewhere; a standby made of a backup still has the manifest.
    "server made of a backup": (["PG_VERSION", "backup_manifest", "postmaster.pid"], Occupancy.SERVER),
    "stopped server": (["PG_VERSION", "base"], Occupancy.CLUSTER),
    "shared half": (["global/pg_control", "pg_wal"], Occupancy.SHARED_HALF),
    "tablespace": (["PG_15_202209061"], Occupancy.TABLESPACE),
    "tablespace of two versions": (["PG_14_202107181", "PG_15_202209061", "README"], Occupancy.TABLESPACE),
}


def occupied(directory: Path, names: list[str]) -> Path:
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).touch()
    return directory


def test_an_absent_and_an_empty_directory_hold_nothing(tmp_path: Path) -> None:
    assert occupant_of(str(tmp_path)) is None
    assert occupant_of(str(tmp_path / "absent")) is None


@pytest.mark.parametrize(("names", "expected"), LIVE.values(), ids=LIVE)
def test_what_a_server_may_be_using_is_recognised(tmp_path: Path, names: list[str], expected: Occupancy) -> None:
    found = occupant_of(str(occupied(tmp_path / "there", names)))
    assert found is not None
    assert found.occupancy is expected
    assert found.occupancy.may_be_live


@pytest.mark.parametrize(("names", "expected"), LIVE.values(), ids=LIVE)
@pytest.mark.parametrize("replaceable", [False, True])
def test_no_refusal_tells_anybody_to_empty_what_is_there(
    tmp_path: Path, names: list[str], expected: Occupancy, replaceable: bool
) -> None:
    found = occupant_of(str(occupied(tmp_path / "there", names)))
    assert found is not None
    for refusal in (
        not_empty(found, replaceable=replaceable),
        not_empty(found, tablespace="/its/place", replaceable=replaceable),
    ):
        said = f"{refusal.message} {refusal.hint}"
        assert expected.value in said
        assert not {"rm", "remove", "delete", "empty it"} & set(said.split())


def test_the_way_out_for_a_tablespace_is_another_place_for_the_copy(tmp_path: Path) -> None:
    found = occupant_of(str(occupied(tmp_path / "there", ["PG_15_202209061"])))
    assert found is not None
    assert "-T '/a \\= b=NEW_DIRECTORY'" in str(not_empty(found, tablespace="/a = b").hint)


@pytest.mark.parametrize(("names", "expected"), LIVE.values(), ids=LIVE)
def test_a_backup_inside_of_what_a_server_uses_is_refused(
    tmp_path: Path, names: list[str], expected: Occupancy
) -> None:
    live = occupied(tmp_path / "live", names)
    (tmp_path / "link").symlink_to(live)
    for inside in (live / "backup", live / "deep" / "er", tmp_path / "link" / "backup"):
        with pytest.raises(UsageError, match="lies inside of"):
            CreatedPaths(0o700, sync=False).claim(str(inside))
        assert not inside.exists()
    found = enclosing_occupant(str(live / "backup"))
    assert found is not None
    assert found.occupancy is expected


def test_a_backup_beside_the_files_of_an_older_one_is_taken(tmp_path: Path) -> None:
    older = occupied(tmp_path / "older", ["PG_VERSION", "backup_label", "backup_manifest"])
    CreatedPaths(0o700, sync=False).claim(str(older / "newer"))
    assert (older / "newer").is_dir()


def test_a_directory_with_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    taken = occupied(tmp_path / "taken", ["notes.txt"])
    with pytest.raises(TargetNotEmpty, match="exists but is not empty"):
        CreatedPaths(0o700, sync=False).claim(str(taken))
    assert [path.name for path in taken.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    "names", [["PG_VERSION", "backup_label", "backup_manifest"], ["pg_wal"], []], ids=["data", "shared", "begun"]
)
@pytest.mark.parametrize("sign", ["global/pg_control.polarvault", "polarvault_restore_in_progress"])
def test_what_a_killed_restore_left_behind_is_called_that(tmp_path: Path, names: list[str], sign: str) -> None:
    found = occupant_of(str(occupied(tmp_path / "there", [*names, sign])))
    assert found is not None
    assert found.occupancy is Occupancy.CUT_OFF_RESTORE
    refusal = not_empty(found, replaceable=True)
    assert "a restore that was cut off" in refusal.message
    assert refusal.hint == "choose another directory"
