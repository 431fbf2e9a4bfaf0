"""Memory that the processor may run code in: written first, then executable and not writable any more."""

from __future__ import annotations

import ctypes
import mmap

from polarvault.machine_code.image import Image

_FAILED = ctypes.c_void_p(-1).value


class LoadedImage:
    """An image in memory, where it stays until the process ends: threads may still run it while Python shuts down."""

    def __init__(self, image: Image) -> None:
        """Copy the image; raise OSError where the system lets no program make code (SELinux: execmem, PaX)."""
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        size = ctypes.c_size_t(len(image.code))
        # Not of Python's own mmap: an object of it unmaps the memory when it goes.
        start = libc.mmap(
            None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, ctypes.c_long(0)
        )
        if start == _FAILED:
            raise OSError(ctypes.get_errno(), "no memory for code")
        content = bytearray(image.code)
        for name, at in image.slots.items():
            address = ctypes.cast(getattr(libc, name), ctypes.c_void_p).value or 0
            content[at : at + 8] = address.to_bytes(8, "little")
        ctypes.memmove(start, bytes(content), len(content))
        if libc.mprotect(ctypes.c_void_p(start), size, mmap.PROT_READ | mmap.PROT_EXEC) != 0:
            number = ctypes.get_errno()
            libc.munmap(ctypes.c_void_p(start), size)
            raise OSError(number, "no memory can be made executable")
        self._start: int = start
        self._functions = image.functions

    def address(self, function: str) -> int:
        """Return where a function's code begins; call it with ctypes, which releases the GIL meanwhile."""
        return self._start + self._functions[function]
