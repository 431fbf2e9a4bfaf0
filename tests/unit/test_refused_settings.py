"""What is said when the server programs do not accept the restored settings, and when nobody can log in to a copy."""

from __future__ import annotations

import pytest

from polarvault.drill.place.server import way_in
from polarvault.instance.model import Binaries
from polarvault.instance.programs import refused_settings

STACK = """2026-11-23 06:57:24.796 UTC [18477] LOG:  invalid value for parameter "max_stack_depth": 7168
2026-11-23 06:57:24.796 UTC [18477] DETAIL:  "max_stack_depth" must not exceed 2560kB.
06:57 UTC [18477] HINT:  Increase the platform's stack depth limit via "ulimit -s" or local equivalent.
2026-11-23 06:57:24.796 UTC [18477] FATAL:  configuration file "/r/postgresql.conf" contains errors"""
UNKNOWN = """LOG:  unrecognized configuration parameter "citus.x" in file "/r/postgresql.conf" line 7
FATAL:  configuration file "/r/postgresql.conf" contains errors"""


@pytest.mark.parametrize(
    ("said", "words", "hint"),
    [
        (STACK, 'invalid value for parameter "max_stack_depth": 7168', "--set max_stack_depth=VALUE, such as 2MB"),
        (UNKNOWN, 'unrecognized configuration parameter "citus.x" in file', "--set citus.x=VALUE"),
        ("postgres: error while loading\nshared libraries", "postgres: error while loading shared libraries", "--set"),
        ("", "no message", "--set"),
    ],
)
def test_refused_settings_are_named_in_one_line_with_what_to_type(said: str, words: str, hint: str) -> None:
    failed = refused_settings(Binaries("/bin15", 15, "15.8", is_polardb=False), "postgres -C port", said)
    assert words in failed.message
    assert "\n" not in failed.message
    assert hint in (failed.hint or "")
    assert failed.detail == (said or None)


@pytest.mark.parametrize(
    ("refusal", "wanted"),
    [
        ('FATAL: role "bob" does not exist', "--username"),
        ('FATAL: could not access file "auth_delay": No such file or directory', "session_preload_libraries"),
        ('FATAL: could not open file "global/pg_filenode.map": No such file or directory', "verifybackup /b"),
        ('FATAL: database "template1" does not exist DETAIL: The database subdirectory "base/1" is missing.', "/b"),
    ],
)
def test_what_keeps_everybody_from_logging_in_decides_about_the_advice(refusal: str, wanted: str) -> None:
    assert wanted in way_in(refusal, "/b")
