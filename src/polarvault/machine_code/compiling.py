"""Code compiled in memory by llvmlite, which is imported on first use only: it costs 50 ms and 60 MB."""

from __future__ import annotations

import functools
import platform
import re
import sys

# What compiling raises where it is not possible: no llvmlite, no library for it, no executable memory.
CANNOT_COMPILE = (ImportError, OSError, RuntimeError)

_TYPED_POINTER = re.compile(r"(?:<\d+ x i\d+>|\[\d+ x i\d+\]|\bi\d+)\*")
# The builder of IR writes "unknown"; the compiler knows better.
_TARGET_LINES = re.compile(r"^target .*$", re.MULTILINE)


class CompiledModule:
    """Machine code of one LLVM module; it lives as long as this object.

    LLVM crashes the process when two threads compile at the same time, or when the program ends meanwhile: compile in
    one thread, and join it if it is not the main one.
    """

    def __init__(self, source: str) -> None:
        """Compile LLVM IR with typed pointers for this CPU; raise one of CANNOT_COMPILE where that is impossible."""
        import llvmlite.binding as llvm

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        machine = llvm.Target.from_default_triple().create_target_machine(
            cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
        )
        module = llvm.parse_assembly(accepted_source(source))
        module.verify()
        self._engine = llvm.create_mcjit_compiler(module, machine)
        self._engine.finalize_object()

    def address(self, function: str) -> int:
        """Return where a function's code begins; call it with ctypes, which releases the GIL meanwhile."""
        address: int = self._engine.get_function_address(function)
        return address


def accepted_source(source: str) -> str:
    """Return LLVM IR with typed pointers as the installed LLVM spells it."""
    import llvmlite.binding as llvm

    # Up to LLVM 16 a pointer says what it points to; 17 has only "ptr".
    spelled: str = _TYPED_POINTER.sub("ptr", source) if llvm.llvm_version_info >= (17,) else source
    return _TARGET_LINES.sub("", spelled)


@functools.cache
def has_cpu_feature(name: str) -> bool:
    """Tell whether this CPU has a feature, by LLVM's name for it."""
    import llvmlite.binding as llvm

    return bool(llvm.get_host_cpu_features().get(name, False))


def cpu_family() -> str:
    """Return ``x86`` or ``arm`` for their 64-bit kinds, which have instructions for CRC-32C, else ``other``."""
    if sys.byteorder != "little" or sys.maxsize < 1 << 32:
        return "other"
    return {"x86_64": "x86", "AMD64": "x86", "aarch64": "arm", "arm64": "arm"}.get(platform.machine(), "other")
