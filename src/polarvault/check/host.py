"""This machine against the server: programs that could start a restored copy, and the two clocks."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

from polarvault.check.session import CheckSession
from polarvault.errors import UsageError
from polarvault.instance.host import Host
from polarvault.instance.model import Account, Binaries
from polarvault.instance.programs import find_binaries
from polarvault.model.finding import Finding, ok, warning

_CLOCKS_DIFFER_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramFacts:
    """The server's version and the programs of the same kind on this machine; rejected: what others were found."""

    product: str
    major: int
    version: str
    found: Binaries | None
    rejected: Sequence[str]


def check_programs(session: CheckSession) -> list[Finding]:
    """Return the finding about programs."""
    if not session.version_num:
        return []
    return judge_programs(read_programs(session))


def read_programs(session: CheckSession) -> ProgramFacts:
    """Look for server programs as `polarvault restore` will."""
    major = session.version_num // 10000
    found, rejected = find_binaries(major, _account(), polardb=session.is_polardb, bindir=None, environment=os.environ)
    version = session.identity.version if session.identity else str(session.setting("server_version"))
    product = "PolarDB for PostgreSQL" if session.is_polardb else "PostgreSQL"
    return ProgramFacts(product=product, major=major, version=version, found=found, rejected=rejected)


def _account() -> Account:
    """Return who runs the programs that are asked for their version: never root, where there is somebody else."""
    try:
        return Host().account(None, "/")
    except UsageError:
        return Account("root", 0, 0)


def judge_programs(facts: ProgramFacts) -> list[Finding]:
    """Return the finding about programs."""
    server = f"the server is {facts.product} {facts.version.split()[0]}"
    if facts.found is not None:
        message = f"{server}; {facts.found.directory} has {facts.found.version}, which starts a restored copy here"
        return [ok("programs", facts.found.directory, message)]
    variable = "POLARDB_BIN" if facts.product.startswith("PolarDB") else "PATH"
    wanted = f"{facts.product} {facts.major}"
    message = f"{server}, and no programs of {wanted} were found on this machine"
    meaning = "backups can be taken and stored here, but not be started or drilled"
    advice = f"install {wanted} here or on the host that restores are for, and name its programs in {variable} or with "
    advice += "polarvault restore --bindir DIRECTORY"
    if facts.rejected:
        # Whoever installed a server here means to start something on this host.
        return [warning("programs", wanted, f"{message} (found: {'; '.join(facts.rejected)})", meaning, advice)]
    # A host that only keeps backups has none, and needs none.
    return [ok("programs", wanted, f"{message}: {meaning}")]


def check_clock(session: CheckSession) -> list[Finding]:
    """Return the finding about clocks; none where SQL is refused."""
    started = time.time()
    answer = session.value("SELECT extract(epoch FROM pg_catalog.clock_timestamp())")
    ended = time.time()
    if answer is None:
        return []
    # The server looked at its clock between the two; half the round trip is how exactly we can know.
    return judge_clock(difference_s=float(answer) - (started + ended) / 2, uncertainty_s=(ended - started) / 2)


def judge_clock(*, difference_s: float, uncertainty_s: float) -> list[Finding]:
    """Return the finding about clocks. difference_s: the server's minus ours."""
    direction = "ahead of" if difference_s > 0 else "behind"
    amount = f"{abs(difference_s):.1f} s"
    if abs(difference_s) <= _CLOCKS_DIFFER_S + uncertainty_s:
        return [ok("clock", "clock", f"the server's clock agrees with this machine's within {amount}")]
    return [
        warning(
            "clock",
            "clock",
            f"the server's clock is {amount} {direction} this machine's",
            meaning="recovery to a time compares with the commit times that the server's clock gave: a time read off a "
            "clock here misses by as much",
            advice="look at both: timedatectl status, chronyc tracking; synchronise them with NTP",
        )
    ]
