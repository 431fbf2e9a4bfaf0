"""Open what a stranger has named, below a directory and nowhere else. The one module that does.

Theory of operation. Names from a server, a stream, a manifest or a backup directory are paths relative to a root that
the user has named. Each component is opened by itself, relative to the descriptor of the one before, and never through
a symbolic link (openat with O_NOFOLLOW): so no link that the stranger has planted, before or meanwhile, leads out of
the root, whoever runs the program. New files are made with O_EXCL, files are read only if they are regular ones, so
that no FIFO or device is waited for. The links that a layout has on purpose (pg_wal, pg_tblspc/OID) are followed only
where `links` says so.

The descriptors of directories used lately are kept, so a million small files cost one openat each. An instance may be
used by several threads.
"""

from __future__ import annotations

import errno
import os
import stat
import threading

from polarvault.model import limits
from polarvault.model.names import name_problem

TYPE_CHECKING = False
if TYPE_CHECKING:  # `wal fetch` starts once for every WAL segment, and its start-up counts.
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import Self

_NAME_MAX = 255
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class NameRefused(OSError):
    """A name, or what has it, is not one that a stranger may have opened; says which component and why."""

    # For --json, as of the classes in errors.py; it is an OSError, because whoever opens files handles those.
    id = "name-refused"
    actor = "the operator"
    remedy = "see who has put a link or a special file there; nothing was read or written through it"

    def __init__(self, name: str, why: str, number: int = errno.ELOOP) -> None:
        super().__init__(number, why, name)


def follow_none(name: str) -> bool:
    """No symbolic link is part of the layout."""
    return False


class Below:
    """A directory that the user has named, and everything below it.

    Names are relative to it, without `.` and `..`; "" is the directory itself. Methods raise OSError: NameRefused for
    what must not be opened. links tells of which names a symbolic link may be followed. With owner (uid, gid) all that
    is made belongs to that account from its first moment on; mode bits are set as given, whatever the umask.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        links: Callable[[str], bool] = follow_none,
        owner: tuple[int, int] | None = None,
    ) -> None:
        self.root = os.fspath(root)
        self.owner = owner
        self._links = links
        self._lock = threading.RLock()
        # The root's own path is the user's: links in it are followed.
        self._root = os.open(self.root, _DIRECTORY)
        # By name, the least recently used first.
        self._open: dict[str, int] = {}
        # The directory, and the mode, of which it was seen last that umask and default ACLs take nothing away.
        self._keeps_mode: tuple[str, int] = ("", -1)
        # The one used last: a stream fills directory after directory.
        self._recent: tuple[str, int] = ("", self._root)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every descriptor that this object owns; safe to call twice. Those it has handed out stay open."""
        with self._lock:
            descriptors = [*self._open.values(), self._root]
            self._open, self._root, self._recent = {}, -1, ("/", -1)
            for descriptor in descriptors:
                if descriptor >= 0:
                    os.close(descriptor)

    def __del__(self) -> None:
        # Whoever was ended in the middle has closed nothing; where the root could not be opened there is nothing.
        if hasattr(self, "_recent"):
            self.close()

    def path(self, name: str) -> str:
        """Return what to call a name in messages; never to be opened."""
        return os.path.join(self.root, name) if name else self.root

    # Reading

    def open_regular(self, name: str) -> int:
        """Open a regular file for reading; return its descriptor, which the caller owns.

        Anything else is refused: a FIFO would be waited for without end, a device may do anything when it is opened.
        """
        # On a FIFO this returns at once; on a regular file the flag changes nothing (open(2)).
        descriptor = self._open_last(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISREG(mode):
            return descriptor
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self.path(name))
        raise NameRefused(self.path(name), "it is not a regular file", errno.EINVAL)

    def read(self, name: str, most_bytes: int = limits.SMALL_FILE_BYTES) -> bytes:
        """Return the content of a small regular file; NameRefused if it is longer than most_bytes."""
        descriptor = self.open_regular(name)
        try:
            size = os.fstat(descriptor).st_size
            parts: list[bytes] = []
            left = most_bytes + 1
            # A file that grows, or one of /proc, has another size than it says.
            while left and (part := os.read(descriptor, min(left, max(size + 1, 1 << 16)))):
                parts.append(part)
                left -= len(part)
        finally:
            os.close(descriptor)
        if not left:
            raise NameRefused(self.path(name), f"it is longer than {most_bytes} bytes", errno.EFBIG)
        return b"".join(parts)

    def status(self, name: str) -> os.stat_result:
        """Return the status of what has the name; of a link itself, unless it may be followed."""
        if not name:
            return os.fstat(self._root)
        with self._lock:
            parent, last = self._parent(name)
            return os.stat(last, dir_fd=parent, follow_symlinks=self._links(name))

    def exists(self, name: str) -> bool:
        """Tell whether something has the name, a link that leads nowhere included."""
        with self._lock:
            try:
                parent, last = self._parent(name)
                os.stat(last, dir_fd=parent, follow_symlinks=False)
            except (FileNotFoundError, NotADirectoryError):
                return False
            return True

    def link_target(self, name: str) -> str | None:
        """Return where a symbolic link points; None for anything else."""
        with self._lock:
            parent, last = self._parent(name)
            try:
                return os.readlink(last, dir_fd=parent)
            except OSError as problem:
                if problem.errno == errno.EINVAL:
                    return None
                raise

    def names(self, name: str = "") -> list[str]:
        """Return the names in a directory."""
        with self._lock:
            return os.listdir(self._directory(name))

    def walk(self, name: str = "") -> Iterator[tuple[str, os.stat_result]]:
        """Yield everything below a directory, a directory before what is in it, with its own status.

        Links that may be followed are: what lies behind them is yielded below their name.
        """
        for entry in sorted(self.names(name)):
            found = f"{name}/{entry}" if name else entry
            try:
                status = self.status(found)
            except FileNotFoundError:
                continue  # Removed since it was listed.
            yield found, status
            if stat.S_ISDIR(status.st_mode):
                yield from self.walk(found)

    # Writing

    def create(self, name: str, mode: int, *, replace: bool = False) -> int:
        """Make a file for writing; return its descriptor, which the caller owns. It must not exist.

        replace: a regular file or a link of that name is removed first; what the link points to is not touched.
        The mode is set as given: the umask is the caller's shell's, and the same for all threads of the process.
        """
        with self._lock:
            parent, last = self._parent(name)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                descriptor = os.open(last, flags, mode, dir_fd=parent)
            except FileExistsError:
                if not replace:
                    raise
                os.unlink(last, dir_fd=parent)
                descriptor = os.open(last, flags, mode, dir_fd=parent)
        try:
            if self.owner is not None:
                os.fchown(descriptor, *self.owner)
            where = name.rpartition("/")[0], mode
            if where != self._keeps_mode:
                if stat.S_IMODE(os.fstat(descriptor).st_mode) == mode:
                    self._keeps_mode = where
                else:
                    os.fchmod(descriptor, mode)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def open_for_writing(self, name: str, *, append: bool = False) -> int:
        """Open a regular file that exists for reading and writing; return its descriptor, which the caller owns."""
        flags = os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | (os.O_APPEND if append else 0)
        descriptor = self._open_last(name, flags, follow=False)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise NameRefused(self.path(name), "it is not a regular file", errno.EINVAL)
        return descriptor

    def write(self, name: str, content: bytes, mode: int, *, sync: bool, replace: bool = False) -> None:
        """Write a small new file; with sync its content is durable on return, its name is not: see `sync_directory`."""
        descriptor = self.create(name, mode, replace=replace)
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(descriptor, view) :]
            if sync:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def make_directory(self, name: str, mode: int, *, sync: bool = False) -> bool:
        """Make a directory; False if there is one already. NameRefused if something else has the name.

        With sync the name of one that was made is durable on return.
        """
        with self._lock:
            parent, last = self._parent(name)
            try:
                os.mkdir(last, mode, dir_fd=parent)
            except FileExistsError:
                self._directory(name)
                return False
            os.fchmod(self._directory(name), mode)
            if self.owner is not None:
                os.chown(last, *self.owner, dir_fd=parent, follow_symlinks=False)
        if sync:
            self.sync_parent(name)
        return True

    def make_directories(self, name: str, mode: int, *, sync: bool = False) -> None:
        """Make a directory and those above it that are missing."""
        if not name:
            return
        with self._lock:
            try:
                self._directory(name)
                return
            except FileNotFoundError:
                pass
            self.make_directories(name.rpartition("/")[0], mode, sync=sync)
            self.make_directory(name, mode, sync=sync)

    def make_parents(self, name: str, mode: int, *, sync: bool = False) -> None:
        """Make the directories that a name lies in, where they are missing."""
        parent = name.rpartition("/")[0]
        if parent != self._recent[0] and parent:
            self.make_directories(parent, mode, sync=sync)

    def change_mode(self, name: str, mode: int) -> None:
        """Change the mode of a directory."""
        with self._lock:
            os.fchmod(self._directory(name), mode)

    def symlink(self, target: str, name: str) -> None:
        """Make a symbolic link; nothing must have the name."""
        with self._lock:
            parent, last = self._parent(name)
            os.symlink(target, last, dir_fd=parent)
            if self.owner is not None:
                os.chown(last, *self.owner, dir_fd=parent, follow_symlinks=False)

    def rename(self, old: str, new: str) -> None:
        """Rename a file; what has the new name is replaced."""
        with self._lock:
            old_parent, old_last = self._parent(old)
            # Asking for the second may close the first where many directories are open.
            old_parent = os.dup(old_parent)
            try:
                new_parent, new_last = self._parent(new)
                os.rename(old_last, new_last, src_dir_fd=old_parent, dst_dir_fd=new_parent)
            finally:
                os.close(old_parent)

    def link(self, old: str, new: str) -> None:
        """Give a file a second name; FileExistsError if something has it: nothing is ever replaced (link(2))."""
        with self._lock:
            old_parent, old_last = self._parent(old)
            # Asking for the second may close the first where many directories are open.
            old_parent = os.dup(old_parent)
            try:
                new_parent, new_last = self._parent(new)
                os.link(old_last, new_last, src_dir_fd=old_parent, dst_dir_fd=new_parent, follow_symlinks=False)
            finally:
                os.close(old_parent)

    def unlink(self, name: str, *, missing_ok: bool = False) -> None:
        """Remove a file or a link, never what a link points to."""
        with self._lock:
            try:
                parent, last = self._parent(name)
                os.unlink(last, dir_fd=parent)
            except FileNotFoundError:
                if not missing_ok:
                    raise

    def remove_directory(self, name: str) -> None:
        """Remove an empty directory."""
        with self._lock:
            parent, last = self._parent(name)
            os.rmdir(last, dir_fd=parent)
            descriptor = self._open.pop(name, None)
            if descriptor is not None:
                os.close(descriptor)
            self._recent = "", self._root

    def sync_file(self, name: str) -> None:
        """Make the content of a regular file durable."""
        descriptor = self.open_regular(name)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def sync_directory(self, name: str = "") -> None:
        """Make the names in a directory durable."""
        with self._lock:
            descriptor = os.dup(self._directory(name))
        try:
            os.fsync(descriptor)
        except OSError as problem:
            # Some file systems cannot sync a directory and say so; PostgreSQL ignores exactly these two as well.
            if problem.errno not in (errno.EBADF, errno.EINVAL):
                raise
        finally:
            os.close(descriptor)

    def sync_parent(self, name: str) -> None:
        """Make a name durable."""
        self.sync_directory(name.rpartition("/")[0])

    # Descriptors

    def open_directory(self, name: str = "") -> int:
        """Return a descriptor of a directory, which the caller owns."""
        with self._lock:
            return os.dup(self._directory(name))

    def _open_last(self, name: str, flags: int, *, follow: bool = True) -> int:
        with self._lock:
            parent, last = self._parent(name)
            if not (follow and self._links(name)):
                flags |= os.O_NOFOLLOW
            try:
                return os.open(last, flags | os.O_CLOEXEC, dir_fd=parent)
            except OSError as problem:
                raise self._explained(problem, name, parent, last) from problem

    def _parent(self, name: str) -> tuple[int, str]:
        """Return the directory that a name lies in, and its last component."""
        directory, _, last = name.rpartition("/")
        # A directory that is open was checked; what remains is the last component, nearly always an ordinary one.
        is_plain = last.isascii() and last.isprintable() and len(last) <= _NAME_MAX and last not in ("", ".", "..")
        if directory == self._recent[0] and is_plain:
            return self._recent[1], last
        if (why := name_problem(name)) is not None:
            raise NameRefused(self.path(name), f"the name is refused: {why}", errno.EINVAL)
        return self._directory(directory), last

    def _directory(self, name: str) -> int:
        """Return the descriptor of a directory; it is valid until the next one is asked for."""
        if not name:
            if self._root < 0:
                raise ValueError("the directory has been closed")
            self._recent = "", self._root
            return self._root
        found = self._open.pop(name, None)
        if found is None:
            if (why := name_problem(name)) is not None:
                raise NameRefused(self.path(name), f"the name is refused: {why}", errno.EINVAL)
            parent_name, _, last = name.rpartition("/")
            parent = self._directory(parent_name)
            flags = _DIRECTORY if self._links(name) else _DIRECTORY | os.O_NOFOLLOW
            try:
                found = os.open(last, flags, dir_fd=parent)
            except OSError as problem:
                raise self._explained(problem, name, parent, last) from problem
            while len(self._open) >= limits.OPEN_DIRECTORIES:
                os.close(self._open.pop(next(iter(self._open))))
        self._open[name] = found
        self._recent = name, found
        return found

    def _explained(self, problem: OSError, name: str, parent: int, last: str) -> OSError:
        """Name the component that could not be opened; say of a link that it is one (the kernel says ENOTDIR)."""
        if problem.errno in (errno.ELOOP, errno.ENOTDIR):
            try:
                is_link = stat.S_ISLNK(os.stat(last, dir_fd=parent, follow_symlinks=False).st_mode)
            except OSError:
                is_link = False
            if is_link and not self._links(name):
                return NameRefused(self.path(name), "it is a symbolic link, which is not followed")
        kind = type(problem)
        return kind(problem.errno, problem.strerror, self.path(name))
