"""The drill's server gets no network: the code of a backup (functions, libraries) must reach nobody.

Two walls, each as far as the kernel lets us; both hold for every process of the server from its first moment on.
  A network namespace of its own (network_namespaces(7)) with a loopback device and nothing else. root may make one; an
  ordinary user may inside of a user namespace of its own (user_namespaces(7)), where that is not switched off.
  A filter of system calls (seccomp(2)) that refuses connect(2), and io_uring, which can connect too: sockets in the
  file system, such as those of the source on the same host, know no network namespaces. It needs no rights.
The server itself never connects. The statistics collector of 13 and 14 does, to itself; without it the server runs on.

They are put up by `behind_walls` in a Python of its own, which then becomes pg_ctl: a process with threads cannot. As
root it begins as root and becomes the server's account, so that only root has to be able to run this Python.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

from polarvault.drill.place import behind_walls
from polarvault.instance.model import Account
from polarvault.instance.programs import run_program
from polarvault.model.finding import Finding, ok, warning

_PROBE_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Walls:
    """How the server is kept from the network; prefix: what pg_ctl is started through, empty where nothing helps."""

    prefix: tuple[str, ...]
    has_namespace: bool
    refuses_connect: bool
    why: str = ""

    def __str__(self) -> str:
        found = (["a network namespace of its own"] if self.has_namespace else []) + (
            ["no system call that connects"] if self.refuses_connect else []
        )
        return " and ".join(found) or "nothing"


def build_walls(account: Account, *, listens: bool = False) -> Walls:
    """Try what the kernel lets us, in a process that ends; never raises for what it does not.

    listens: others are to reach the server by TCP, so that it stays in the network and is only kept from connecting.
    """
    prefix: tuple[str, ...] = (sys.executable, "-I", "-S", behind_walls.__file__, str(account.uid), str(account.gid))
    prefix = (*prefix, behind_walls.LISTENS) if listens else prefix
    try:
        tried = run_program([*prefix, behind_walls.PROBE], account, timeout_s=_PROBE_TIMEOUT_S, keeps_user=True)
    except (OSError, subprocess.TimeoutExpired) as problem:
        return Walls((), False, False, str(problem))
    words = tried.stdout.split(" ", 2)
    if tried.returncode != 0 or len(words) < 3:
        return Walls((), False, False, " ".join(tried.stderr.split()[-20:]) or "no answer")
    has_net, refuses = words[0] == behind_walls.NAMESPACE, words[1] == behind_walls.CONNECT
    return Walls(prefix if has_net or refuses else (), has_net, refuses, words[2].strip())


def judge_walls(walls: Walls, subject: str) -> Finding:
    """Return the finding about what keeps the copy from the network."""
    if walls.has_namespace and walls.refuses_connect:
        return ok("network", subject, f"the server has {walls}")
    lacks = [] if walls.refuses_connect else ["code of the backup can connect to servers on this host"]
    lacks += [] if walls.has_namespace else ["and may send to the network"] if lacks else ["it may send datagrams"]
    return warning(
        "network", subject, f"the server has {walls} to keep it from the network ({walls.why})",
        f"{', '.join(lacks)}: functions in indexes, libraries that it preloads",
        "drill a backup that you do not trust on a machine without a network, or where the kernel allows both",
    )  # fmt: skip
