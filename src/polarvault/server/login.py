"""Log in: the hosts and their addresses one after the other, as libpq does, but without waiting inside of it.

libpq's own calls keep the GIL while they wait for a name or a server, so that no other thread would run; and they know
no deadline for one host of several. Each attempt here is one host and one address. What the user gave stays as it is:
the standby that `-R` writes gets names and lists, and not the address that happened to answer.
"""

from __future__ import annotations

import random
import select
import socket
import time
from collections.abc import Iterator, Mapping

from psycopg import pq

from polarvault.pgconf.grammar import decode, encode
from polarvault.server.conninfo import format_conninfo, resolved_options

# A server that is not heard of for so long will not be; the kernel gives up at about the same time.
_DEFAULT_TIMEOUT_S = 130
# libpq's, which takes less for a mistake (manual, "connect_timeout").
_SHORTEST_TIMEOUT_S = 2


class LoginFailed(Exception):
    """No host took us; words are libpq's, of every attempt."""

    def __init__(self, words: str, *, needs_password: bool) -> None:
        super().__init__(words)
        self.words = words
        self.needs_password = needs_password


def log_in(given: Mapping[str, str]) -> pq.abc.PGconn:
    """Return a logged-in libpq connection; raise LoginFailed."""
    options = {name: found.value for name, found in resolved_options(given).items()}
    timeout_s = _timeout(options.get("connect_timeout"))
    failures: list[str] = []
    needs_password = False
    for role in _roles(options.get("target_session_attrs")):
        for attempt in _attempts(options, failures):
            pgconn = pq.PGconn.connect_start(encode(format_conninfo({**given, **attempt, **role})))
            failure = _finish(pgconn, timeout_s)
            if failure is None:
                return pgconn
            needs_password = needs_password or bool(pgconn.needs_password)
            failures.append(failure)
            pgconn.finish()
    raise LoginFailed("\n".join(dict.fromkeys(failures)), needs_password=needs_password)


def _timeout(text: str | None) -> float:
    if text is None:
        return _DEFAULT_TIMEOUT_S
    try:
        wanted = int(text)
    except ValueError:
        raise LoginFailed(
            f'invalid integer value "{text}" for connection option "connect_timeout"', needs_password=False
        ) from None
    return max(wanted, _SHORTEST_TIMEOUT_S) if wanted > 0 else _DEFAULT_TIMEOUT_S


def _roles(target_session_attrs: str | None) -> list[dict[str, str]]:
    """Return what to ask of the servers: a standby is preferred among all hosts, not at each of them."""
    if target_session_attrs != "prefer-standby":
        return [{}]
    return [{"target_session_attrs": "standby"}, {"target_session_attrs": "any"}]


def _attempts(options: Mapping[str, str], failures: list[str]) -> Iterator[dict[str, str]]:
    """Yield host, port and address of every attempt; names that cannot be resolved are added to the failures."""
    hosts, addresses, ports = (_listed(options.get(name)) for name in ("host", "hostaddr", "port"))
    count = max(len(hosts), len(addresses), 1)
    if len(ports) not in (0, 1, count) or (hosts and addresses and len(hosts) != len(addresses)):
        yield {}  # libpq says what is wrong.
        return
    places = list(range(count))
    shuffles = options.get("load_balance_hosts") == "random"
    if shuffles:
        random.shuffle(places)
    for place in places:
        attempt: dict[str, str] = {}
        if ports:
            attempt["port"] = ports[place if len(ports) > 1 else 0]
        if hosts:
            attempt["host"] = hosts[place]
        if addresses:
            attempt["hostaddr"] = addresses[place]
        host = attempt.get("host", "")
        # A path is a socket's directory, @name a socket without a file (Linux), no host the default directory.
        if addresses or not host or host[0] in "/@":
            yield attempt
            continue
        found = _resolve(host, failures)
        if shuffles:
            random.shuffle(found)
        for address in found:
            yield {**attempt, "hostaddr": address}


def _listed(value: str | None) -> list[str]:
    return [] if value is None else value.split(",")


def _resolve(host: str, failures: list[str]) -> list[str]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    except (OSError, ValueError) as problem:
        # ValueError: a label that is empty or too long, or what Python knows to be no name.
        words = problem.strerror if isinstance(problem, OSError) and problem.strerror else "not a host name"
        failures.append(f'could not translate host name "{host}" to address: {words}')
        return []
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _finish(pgconn: pq.abc.PGconn, timeout_s: float) -> str | None:
    """Wait for the server; return libpq's words when it fails, None when we are in."""
    deadline = time.monotonic() + timeout_s
    while pgconn.status != pq.ConnStatus.BAD:
        wanted = pgconn.connect_poll()
        if wanted == pq.PollingStatus.OK:
            return None
        if wanted == pq.PollingStatus.FAILED:
            break
        poll = select.poll()
        poll.register(pgconn.socket, select.POLLIN if wanted == pq.PollingStatus.READING else select.POLLOUT)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000) and time.monotonic() >= deadline:
            where = f'"{decode(pgconn.host)}", port {decode(pgconn.port)}'
            return f"connection to server at {where} failed: timeout expired"
    return decode(pgconn.error_message).strip()
