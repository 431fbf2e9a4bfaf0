"""Run as a script: put up the walls of `network` around this process, then become the program of the arguments.

usage: behind_walls.py USER-ID GROUP-ID PROGRAM [ARGUMENT]...   or: behind_walls.py USER-ID GROUP-ID probe
With `listens` in front of the program there is no namespace of its own, because others are to reach it by TCP.

Only the standard library: it runs in an isolated Python, as root at first if the caller is root. `probe` says in one
line which walls stand and what kept the others from it. Kernel numbers: sched.h, linux/prctl.h, linux/seccomp.h,
linux/filter.h, linux/audit.h, asm/unistd.h.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import socket
import struct
import sys

NAMESPACE, CONNECT, PROBE, LISTENS = "namespace", "connect", "probe", "listens"
_NEW_NET, _NEW_USER = 0x40000000, 0x10000000
_SET_DUMPABLE, _SET_SECCOMP, _SET_NO_NEW_PRIVS, _SECCOMP_FILTER = 4, 22, 38, 2
_SET_INTERFACE_FLAGS, _IS_UP = 0x8914, 1
# By machine: what the kernel calls it in a filter, and its number of connect(2).
_MACHINES = {"x86_64": (0xC000003E, 42), "aarch64": (0xC00000B7, 203)}
# One number everywhere; its rings can connect, too.
_IO_URING_SETUP = 425
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_REFUSE, _ALLOW = 0x00050000 | 1, 0x7FFF0000


def main(arguments: list[str]) -> None:
    """Put up what the kernel lets us, become the account, and go on as the program."""
    user, group, words = int(arguments[0]), int(arguments[1]), arguments[2:]
    libc = ctypes.CDLL(None, use_errno=True)
    why: list[str] = []
    is_root = os.geteuid() == 0
    listens = words[0] == LISTENS
    words = words[1:] if listens else words
    has_namespace = is_root and not listens and libc.unshare(_NEW_NET) == 0
    if has_namespace:
        _bring_up_loopback()
    elif is_root and not listens:
        why.append(f"a network namespace: {os.strerror(ctypes.get_errno())}")
    if is_root:
        os.setgroups([])
        os.setgid(group)
        os.setuid(user)
        # Else the files in /proc/self, which the next step writes, belong to root.
        libc.prctl(_SET_DUMPABLE, 1, 0, 0, 0)
    if not has_namespace and not listens and _enter_own_user_namespace(libc, why):
        has_namespace = True
        _bring_up_loopback()
    refuses_connect = _refuse_connecting(libc, why)
    if words == [PROBE]:
        print(NAMESPACE if has_namespace else "-", CONNECT if refuses_connect else "-", "; ".join(why))
    else:
        os.execv(words[0], words)


def _enter_own_user_namespace(libc: ctypes.CDLL, why: list[str]) -> bool:
    """Get the right to a network namespace from a user namespace, in which we are who we were.

    There is no way back from a first step whose second is refused (as AppArmor does it), so a child goes first.
    """
    child = os.fork()
    if child == 0:
        os._exit(_try_user_namespace(libc))
    refused = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) or _try_user_namespace(libc)
    if refused:
        why.append(f"a user namespace: {os.strerror(abs(refused))}")
    return not refused


def _try_user_namespace(libc: ctypes.CDLL) -> int:
    """Enter it; return the number of the error, 0 for none."""
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(_NEW_USER | _NEW_NET) != 0:
        return ctypes.get_errno()
    try:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
    except OSError as refused:
        return refused.errno or errno.EPERM
    return 0


def _bring_up_loopback() -> None:
    """Make 127.0.0.1 work, which leads nowhere but to the server itself."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as device:
            fcntl.ioctl(device, _SET_INTERFACE_FLAGS, struct.pack("16sh14x", b"lo", _IS_UP))
    except OSError:
        pass  # Without IPv4 there is nothing to bring up, and the server does without.


def _refuse_connecting(libc: ctypes.CDLL, why: list[str]) -> bool:
    machine = platform.machine()
    if machine not in _MACHINES or struct.calcsize("P") != 8:
        why.append(f"seccomp: the calls of {machine} are not known")
        return False
    audit, connect = _MACHINES[machine]
    # Operation, steps to pass over if so and if not, operand. The call's number is at 0, its architecture at 4.
    steps = (
        (_LOAD, 0, 0, 4),
        (_EQUAL, 0, 4, audit),  # Calls of another architecture are refused.
        (_LOAD, 0, 0, 0),
        (_AT_LEAST, 2, 0, 0x40000000),  # And so are those of x32, which have numbers of their own.
        (_EQUAL, 1, 0, connect),
        (_EQUAL, 0, 1, _IO_URING_SETUP),
        (_RETURN, 0, 0, _REFUSE),
        (_RETURN, 0, 0, _ALLOW),
    )
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code)))
    # The filter needs no rights of whoever can gain none any more.
    if libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 and libc.prctl(_SET_SECCOMP, _SECCOMP_FILTER, program, 0, 0) == 0:
        return True
    why.append(f"seccomp: {os.strerror(ctypes.get_errno())}")
    return False


if __name__ == "__main__":
    main(sys.argv[1:])
