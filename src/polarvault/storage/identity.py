"""Whose rights files are opened and made with. Nothing happens here unless the program runs as root.

Theory of operation. What root writes into a directory that another account owns, that account can redirect: a link
planted at the right moment, and root writes elsewhere. So the whole process takes the account's identity (effective
user, group, groups; all threads), and no name that the account can change leads anywhere the account could not go
itself. Its files then belong to it from their first byte. Two things are the exception: a backup that only root can
read, and our own modules, which may lie below a home that nobody else can enter. There one thread takes root's rights
to files back, by setfsuid(2), for the moment of opening a file or of an import, and no longer.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ctypes
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

# setresuid(2) by kernel architecture, 64-bit (kernel: arch/*/include/uapi/asm/unistd*.h and syscall tables).
_SETRESUID = {"x86_64": 117, "aarch64": 147, "riscv64": 147, "loongarch64": 147, "ppc64le": 164, "s390x": 208}


@contextmanager
def working_as(uid: int, gid: int, groups: Sequence[int] = ()) -> Iterator[None]:
    """Give the whole process an account's identity, if it is root's now; programs are not to be started meanwhile.

    The real user stays root's, so that the identity can be put back, and PostgreSQL's programs refuse such a mixture.
    """
    if os.geteuid() != 0 or uid == 0:
        yield
        return
    group, all_groups = os.getegid(), os.getgroups()
    finder = _FinderAsRoot()
    sys.meta_path.insert(0, finder)
    try:
        # The user last: without root's rights the groups can no longer be changed.
        os.setgroups([*dict.fromkeys((gid, *groups))])
        os.setegid(gid)
        os.seteuid(uid)
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(all_groups)
        sys.meta_path.remove(finder)


@contextmanager
def thread_working_as(uid: int) -> Iterator[None]:
    """Give this thread alone another effective user, if it is root's; what it connects to sees that one.

    The kernel keeps an identity for each thread; it is the C library that changes all of them, so that it is passed by.
    On a CPU whose number of the call is not known here, the whole process changes.
    """
    if os.geteuid() != 0 or uid == 0:
        yield
        return
    _set_effective_user(uid)
    try:
        yield
    finally:
        _set_effective_user(0)


def _set_effective_user(uid: int) -> None:
    number = _SETRESUID.get(os.uname().machine) if sys.maxsize > 1 << 32 else None
    if number is None:
        os.seteuid(uid)
        return
    import ctypes

    unchanged = ctypes.c_long(-1)
    if _libc().syscall(ctypes.c_long(number), unchanged, ctypes.c_long(uid), unchanged) != 0:
        problem = ctypes.get_errno()
        raise OSError(problem, os.strerror(problem))


def can_read_as_root() -> bool:
    """Tell whether `reading_as_root` has any effect: root runs the program, as somebody else at the moment."""
    return os.getuid() == 0 and os.geteuid() != 0


@contextmanager
def reading_as_root() -> Iterator[None]:
    """Give this thread root's rights to files, for opening one to read; raise PermissionError if the kernel refuses."""
    libc = _libc()
    before = libc.setfsuid(0)
    try:
        # It returns the value before, also when it fails: only asking again tells (setfsuid(2)).
        if libc.setfsuid(0xFFFFFFFF) != 0:
            raise PermissionError("root's rights to files could not be taken")
        yield
    finally:
        libc.setfsuid(before)


# Neither derives from what importlib.abc has for it, whose import costs every command 10 ms.
class _FinderAsRoot:
    """Finds modules with root's rights: what is imported late (a decoder, a table of rich) is ours, wherever it is."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        """Ask the other finders."""
        with rights_to_read():
            for finder in [other for other in sys.meta_path if not isinstance(other, _FinderAsRoot)]:
                spec = finder.find_spec(fullname, path, target)
                if spec is not None:
                    if spec.loader is not None:
                        loader: Any = _LoaderAsRoot(spec.loader)
                        spec.loader = loader
                    return spec
        return None


class _LoaderAsRoot:
    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        with rights_to_read():
            module: ModuleType | None = self._loader.create_module(spec)
            return module

    def exec_module(self, module: ModuleType) -> None:
        with rights_to_read():
            self._loader.exec_module(module)


@contextmanager
def rights_to_read() -> Iterator[None]:
    """Take root's rights to files if root runs the program as somebody else; what is opened is checked by itself."""
    # Of a module that was found before and is loaded, or loaded again, when root is root again.
    if can_read_as_root():
        with reading_as_root():
            yield
    else:
        yield


@cache
def _libc() -> ctypes.CDLL:
    # Only where root works for another account: it takes longer to import than a store takes to open.
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.setfsuid.argtypes = [ctypes.c_uint32]
    libc.setfsuid.restype = ctypes.c_int
    return libc
