"""What our sessions are begun with, and what is said when a connection cannot be made at all."""

from __future__ import annotations

import pytest
from psycopg import pq
from psycopg.conninfo import make_conninfo

from polarvault.errors import ConnectionFailed
from polarvault.server.connection import ConnectionSettings, Connector
from polarvault.server.login_hints import connection_failed
from polarvault.server.session_settings import (
    SESSION_SETTINGS,
    later_statement,
    replication_options,
    startup_options,
)


def test_values_with_blanks_are_one_word_for_the_server() -> None:
    options = startup_options({"a": "read committed", "b": "C:\\x y"}, before="-c own=1")
    assert options == "-c own=1 -c a=read\\ committed -c b=C:\\\\x\\ y"
    # And libpq takes the whole for one value.
    words = pq.Conninfo.parse(make_conninfo(options=options).encode())
    assert next(word.val for word in words if word.keyword == b"options") == options.encode()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, "-c client_min_messages=notice"),
        ("-c geqo=off", "-c geqo=off -c client_min_messages=notice"),
        ("-c client_min_messages=error", "-c client_min_messages=error -c client_min_messages=notice"),
        ("--client-min-messages=warning", "--client-min-messages=warning -c client_min_messages=notice"),
        ("-cclient_min_messages=DEBUG1", "-cclient_min_messages=DEBUG1"),
        ("--client_min_messages=log", "--client_min_messages=log"),
        (
            "-c client_min_messages=log -c client_min_messages=error",
            "-c client_min_messages=log -c client_min_messages=error -c client_min_messages=notice",
        ),
    ],
)
def test_a_replication_connection_hears_warnings_and_whatever_more_was_asked_for(
    given: str | None, expected: str
) -> None:
    assert replication_options(given) == expected


def test_a_server_gets_only_settings_that_it_knows() -> None:
    assert later_statement(130023) is None
    assert later_statement(160000) == "SET idle_session_timeout = '0'"
    assert later_statement(180004) == "SET idle_session_timeout = '0'; SET transaction_timeout = '0'"
    assert {"idle_session_timeout", "transaction_timeout"}.isdisjoint(SESSION_SETTINGS)


@pytest.mark.parametrize("host", [".", "..", "a..b", "x" * 70 + ".example", "\udcff", "b\u00fccher..", "sock", "a\0b"])
@pytest.mark.parametrize("way", ["sql", "replication"])
def test_a_host_that_nobody_can_have_is_an_error_and_no_traceback(host: str, way: str) -> None:
    connector = Connector(ConnectionSettings(host=host, port="1"))
    with pytest.raises(ConnectionFailed) as caught:
        getattr(connector, way)()
    assert "codec" not in caught.value.message


def test_a_pooler_is_told_from_a_server() -> None:
    problem = connection_failed('FATAL:  unsupported startup parameter: "replication"', {})
    assert "connection pooler" in (problem.hint or "")
    assert "-h and -p" in (problem.hint or "")


def test_a_trigger_on_login_that_refuses_or_hangs_is_thought_of() -> None:
    refused = "FATAL:  not at this hour\nCONTEXT:  PL/pgSQL function f() line 1 at RAISE"
    for words in (refused, 'connection to server at "db", port 5432 failed: timeout expired'):
        assert "PGOPTIONS='-c event_triggers=off'" in (connection_failed(words, {}).hint or "")
