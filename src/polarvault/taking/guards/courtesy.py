"""Slow down while the server is slow for others: `--nice-to-server`.

A thread with a session of its own measures, about twice a second, how long a tiny transaction takes to commit (on a
standby: how far its replay is behind), and how far the server's other standbys are behind. While one of them is above
its limit the backup takes less and less, down to a floor: one that never ends helps nobody. When all is well again it
takes more and more. The server is slowed down by not reading: it sends no more than the socket holds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from polarvault.errors import PolarvaultError
from polarvault.server.connection import Connection, Connector
from polarvault.taking.reporter import BackupReporter
from polarvault.taking.request import CourtesyLimits

FLOOR_BYTES_PER_S = 1 << 20
_BETWEEN_LOOKS_S = 0.5
_LONGEST_SLEEP_S = 0.1
# Emitted in a transaction, it is a record and a flush, as every commit of an application (any role may call it).
_COMMIT = "SELECT pg_catalog.pg_logical_emit_message(true, 'polarvault', '')"
# Standbys, but for base backups and for us; seconds; null for what the role may not see, or what has nothing to replay.
_LAG = """
SELECT coalesce(max(extract(epoch FROM replay_lag)), 0) FROM pg_catalog.pg_stat_replication
WHERE state <> 'backup' AND application_name <> pg_catalog.current_setting('application_name')
"""
_BEHIND = """
SELECT CASE WHEN pg_catalog.pg_last_wal_receive_lsn() IS NOT DISTINCT FROM pg_catalog.pg_last_wal_replay_lsn() THEN 0
ELSE coalesce(extract(epoch FROM pg_catalog.now() - pg_catalog.pg_last_xact_replay_timestamp()), 0) END
"""


@dataclass(frozen=True, slots=True)
class Seen:
    """What was measured; seconds."""

    commit_s: float = 0.0
    lag_s: float = 0.0

    def is_over(self, limits: CourtesyLimits) -> bool:
        """Tell whether the server needs a rest."""
        return self.commit_s > limits.commit_s or self.lag_s > limits.lag_s


class Pace:
    """How fast the backup may be. Pure: times are given, in seconds; rate: bytes a second, None for no limit."""

    def __init__(self, now: float) -> None:
        self.rate: float | None = None
        # The first measurement counts at once.
        self.looked, self._since = now - _BETWEEN_LOOKS_S, now
        """When a measurement was taken note of."""
        self._counted = self._looked_bytes = 0
        self._unhindered = 0.0

    def look(self, now: float, done_bytes: int, *, is_over: bool) -> None:
        """Take note of a measurement; halves the rate, or raises it by half, once for each."""
        speed = (done_bytes - self._looked_bytes) / max(now - self.looked, 0.001)
        self.looked, self._looked_bytes = now, done_bytes
        if self.rate is None:
            self._unhindered = speed
            if not is_over:
                return
            self.rate = max(FLOOR_BYTES_PER_S, speed / 2)
        elif is_over:
            self.rate = max(FLOOR_BYTES_PER_S, self.rate / 2)
        else:
            self.rate *= 1.5
            if self.rate > 2 * self._unhindered:
                self.rate = None
        self._since, self._counted = now, done_bytes

    def wait_s(self, now: float, done_bytes: int) -> float:
        """Return how long to wait before more is read."""
        if self.rate is None:
            return 0.0
        return max(0.0, (done_bytes - self._counted) / self.rate - (now - self._since))


class Courtesy:
    """Measures in a thread of its own from `start` to `close`; `pause` is called by whoever reads, and waits."""

    def __init__(self, connector: Connector, reporter: BackupReporter, limits: CourtesyLimits) -> None:
        self._connector = connector.without_prompt()
        self._reporter = reporter
        self._limits = limits
        self._pace = Pace(time.monotonic())
        self._thread = threading.Thread(target=self._run, name="courtesy", daemon=True)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._sql: Connection | None = None
        self._seen: Seen | None = None
        self._worst = Seen()
        self._asked: float | None = None
        self._problem = ""
        self._waited_s = 0.0
        self._fresh = False

    def start(self) -> None:
        """Begin to measure."""
        self._thread.start()

    def pause(self, done_bytes: int, tick: Callable[[], None]) -> None:
        """Wait as long as the server needs; tick is called meanwhile, and may raise."""
        while True:
            now = time.monotonic()
            seen = self._newest(now)
            if seen is not None:
                self._pace.look(now, done_bytes, is_over=seen.is_over(self._limits))
            wait = self._pace.wait_s(now, done_bytes)
            if wait <= 0:
                return
            time.sleep(min(wait, _LONGEST_SLEEP_S))
            self._waited_s += time.monotonic() - now
            tick()

    def close(self) -> None:
        """Stop measuring, and say what came of it."""
        self._stop.set()
        with self._lock:
            sql = self._sql
        if sql is not None and self._thread.is_alive():
            sql.cancel()
        if self._thread.ident is not None:
            self._thread.join(timeout=5)
        if self._problem:
            self._reporter.warning(f"the server's latency could not be measured any more: {self._problem}")
        elif self._waited_s >= 0.1:
            self._reporter.note(
                f"waited {self._waited_s:.1f} s to be nice to the server: a commit took up to "
                f"{self._worst.commit_s * 1000:.0f} ms, standbys were up to {self._worst.lag_s:.1f} s behind"
            )

    def _newest(self, now: float) -> Seen | None:
        """Return a measurement that was not looked at yet; a commit that does not come back counts as it lasts."""
        with self._lock:
            lasting = now - self._asked if self._asked is not None else 0.0
            if lasting > self._limits.commit_s:
                self._worst = Seen(max(self._worst.commit_s, lasting), self._worst.lag_s)
                return Seen(lasting, 0.0) if now - self._pace.looked >= _BETWEEN_LOOKS_S else None
            if not self._fresh:
                return None
            self._fresh = False
            return self._seen

    def _run(self) -> None:
        try:
            sql = self._connector.sql()
            with self._lock:
                self._sql = sql
            try:
                is_standby = sql.query("SELECT pg_catalog.pg_is_in_recovery()").rows[0][0] == "t"
                # Our sessions do not wait for synchronous standbys; what applications do, this one is to feel.
                sql.query("SET synchronous_commit TO on")
                while not self._stop.is_set():
                    self._measure(sql, is_standby=is_standby)
                    self._stop.wait(_BETWEEN_LOOKS_S)
            finally:
                sql.close()
        except PolarvaultError as problem:
            if not self._stop.is_set():
                # Without a measurement it goes on at full speed: a backup is worth more than courtesy.
                with self._lock:
                    self._problem, self._seen, self._fresh, self._asked = problem.message, Seen(), True, None

    def _measure(self, sql: Connection, *, is_standby: bool) -> None:
        commit = 0.0
        if not is_standby:
            with self._lock:
                started = self._asked = time.monotonic()
            sql.query(_COMMIT)
            commit = time.monotonic() - started
        lag = float(sql.query(_LAG).rows[0][0] or 0)
        if is_standby:
            lag = max(lag, float(sql.query(_BEHIND).rows[0][0] or 0))
        with self._lock:
            self._asked = None
            self._seen, self._fresh = Seen(commit, lag), True
            self._worst = Seen(max(self._worst.commit_s, commit), max(self._worst.lag_s, lag))
