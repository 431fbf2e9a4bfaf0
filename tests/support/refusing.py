"""Run as a script: refuse one thing to this process and to all that it starts, as a kernel or a container does.

usage: refusing.py unshare|seccomp|rewrite PROGRAM [ARGUMENT]...

unshare(2) as a whole; filters of system calls; opening a file to write it anew, by which the step after unshare(2)
fails as it does under AppArmor. Kernel numbers: see `polarvault.drill.place.behind_walls`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

_SET_SECCOMP, _SET_NO_NEW_PRIVS, _FILTER = 22, 38, 2
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_ERRNO, _ALLOW = 0x00050000, 0x7FFF0000
_NUMBER, _ARGUMENTS = 0, 16
# By machine: unshare, prctl, openat.
_CALLS = {"x86_64": (272, 157, 257), "aarch64": (97, 167, 56)}


def main(what: str, *words: str) -> None:
    """Put up the filter and become the program."""
    unshare, prctl, openat = _CALLS[platform.machine()]
    anew = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    # The call, which of its arguments counts, and the value of that which is refused.
    number, argument, value = {
        "unshare": (unshare, None, 0), "seccomp": (prctl, 0, _SET_SECCOMP), "rewrite": (openat, 2, anew)
    }[what]  # fmt: skip
    steps = [(_LOAD, 0, 0, _NUMBER), (_EQUAL, 0, 1 if argument is None else 3, number)]
    if argument is not None:
        steps += [(_LOAD, 0, 0, _ARGUMENTS + 8 * argument), (_EQUAL, 0, 1, value)]
    steps += [(_RETURN, 0, 0, _ERRNO | errno.EPERM), (_RETURN, 0, 0, _ALLOW)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(_SET_SECCOMP, _FILTER, program, 0, 0):
        sys.exit(77)
    os.execv(words[0], words)


if __name__ == "__main__":
    main(*sys.argv[1:])
