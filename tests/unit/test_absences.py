"""What a server leaves out of a base backup: told from its notices in any language, and judged."""

from __future__ import annotations

import pytest

from polarvault.errors import BackupIncomplete, ServerError
from polarvault.server.connection import ConnectionSettings, Connector, PasswordPolicy
from polarvault.taking.guards.absences import Absences, explain_refusal, is_needed

# Nobody listens there: names of databases cannot be asked.
NOBODY = Connector(ConnectionSettings("host=/nonexistent port=1", password_policy=PasswordPolicy.NEVER))


def notice(message: str, routine: str = "sendDir") -> ServerError:
    return ServerError(message, severity="WARNING", routine=routine)


@pytest.mark.parametrize(
    ("message", "missing"),
    [
        ('skipping special file "./base/16385"', "base/16385"),
        ("überspringe besondere Datei »./global«", "global"),
        ("на специальный файл «./pg_xact» не обращается внимания", "pg_xact"),
        ('特別なファイル"./base/5/16400.1"をスキップしています', "base/5/16400.1"),
        ('skipping special file "./pg_multixact/members"', "pg_multixact/members"),
        ('skipping special file "./PG_VERSION"', "PG_VERSION"),
        ('skipping special file "./pg_tblspc"', "pg_tblspc"),
        ('skipping special file "/disk2/ts/PG_15_202209061/16385"', "/disk2/ts/PG_15_202209061/16385"),
        ('skipping special file "/a "b"/PG_18_202506291/5/16401_fsm"', '/a "b"/PG_18_202506291/5/16401_fsm'),
    ],
)
def test_a_backup_without_a_part_of_the_data_fails_and_names_it(message: str, missing: str) -> None:
    absences = Absences()
    absences.take_notice(notice(message))
    # The server walks twice when it is asked for the size of the backup.
    absences.take_notice(notice(message))
    assert absences.needed == [missing]
    with pytest.raises(BackupIncomplete, match="leaves data out") as caught:
        absences.raise_if_any(NOBODY)
    assert missing in caught.value.message
    assert "CREATE TABLESPACE" in (caught.value.hint or "")


@pytest.mark.parametrize("shared", ["file-dio:///shared/", "/shared", "file://./shared"])
def test_a_link_in_the_shared_half_ends_a_backup_of_polardb(shared: str) -> None:
    absences = Absences(shared)
    named = shared.rstrip("/") + "/base/16385"
    absences.take_notice(notice(f'skipping special file "{named}"'))
    # The local half holds caches and empty directories, which a restore makes anew.
    absences.take_notice(notice('skipping special file "./pg_xact"'))
    absences.take_notice(notice('skipping special file "./postgresql.conf"'))
    assert absences.needed == [named]
    assert absences.configuration == ["postgresql.conf"]
    with pytest.raises(BackupIncomplete) as caught:
        absences.raise_if_any(NOBODY)
    # Tablespaces are no way out there.
    assert "TABLESPACE" not in str(caught.value.hint)


@pytest.mark.parametrize(
    "path",
    [
        "./log",
        "./server.crt",
        "./.s.PGSQL.5432",
        "./fifo",
        "./base/5/core.link",
        "./base/README",
        "./pg_stat",
        "./my_base/5",
    ],
)
def test_a_link_that_no_copy_needs_does_not_end_a_backup(path: str) -> None:
    absences = Absences()
    absences.take_notice(notice(f'skipping special file "{path}"'))
    absences.raise_if_any(NOBODY)


def test_notices_of_other_parts_of_the_server_are_not_taken_for_it() -> None:
    absences = Absences()
    absences.take_notice(notice('could not verify checksum in file "./base/5/16400"', routine="sendFile"))
    absences.raise_if_any(NOBODY)


def test_configuration_that_is_a_link_is_remembered() -> None:
    absences = Absences()
    absences.take_notice(notice('skipping special file "./postgresql.conf"'))
    absences.take_notice(notice('skipping special file "./conf.d/memory.conf"'))
    absences.raise_if_any(NOBODY)
    assert absences.configuration == ["postgresql.conf", "conf.d/memory.conf"]


def test_what_a_tablespace_needs_is_told_by_the_names_of_databases_and_relations() -> None:
    assert is_needed("16385", in_tablespace=True)
    assert is_needed("16385/16400_vm.2", in_tablespace=True)
    assert not is_needed("16385/notes", in_tablespace=True)
    assert not is_needed("pgsql_tmp", in_tablespace=True)


@pytest.mark.parametrize(
    ("message", "advice", "never"),
    [
        ('could not open file "./server.key.bak": Permission denied', "move it out of the data directory", "mounted"),
        ('could not open directory "./lost+found": Permission denied', "one level deeper", "move it"),
        # What belongs to the database must not be moved anywhere.
        ('could not open file "./base/5/16400": Permission denied', "chown", "move"),
        ('could not open directory "./pg_xact": Permission denied', "chown", "move"),
        ('could not open file "/ts/PG_15_202209061/5/16400": Permission denied', "chown", "move"),
    ],
)
def test_a_file_that_the_server_may_not_read_gets_the_hint_that_fits_it(message: str, advice: str, never: str) -> None:
    hint = explain_refusal(ServerError(message, sqlstate="42501")).hint
    assert hint is not None
    assert advice in hint
    assert never not in hint


def test_other_refusals_are_left_as_they_are() -> None:
    assert explain_refusal(ServerError('permission denied for table "x"', sqlstate="42501")).hint is None
    assert explain_refusal(ServerError('could not open file "./x"', sqlstate="58P01")).hint is None
    assert explain_refusal(ServerError("must be superuser", sqlstate="42501")).hint is None
