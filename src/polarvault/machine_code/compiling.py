"""Code from kernels: out of the cache, else compiled by llvmlite, which is imported only then (40 ms and 60 MB)."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Protocol

from polarvault.machine_code.cache import CodeCache, Key, cache_base
from polarvault.machine_code.executable import LoadedImage
from polarvault.machine_code.image import NotLinkable, linked
from polarvault.machine_code.processor import processor_identity

# What compiling raises where it is not possible: no llvmlite, no library for it, no executable memory.
CANNOT_COMPILE = (ImportError, OSError, RuntimeError)

_TYPED_POINTER = re.compile(r"(?:<\d+ x i\d+>|\[\d+ x i\d+\]|\bi\d+)\*")
# The builder of IR writes "unknown"; the compiler knows better.
_TARGET_LINES = re.compile(r"^target .*$", re.MULTILINE)
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# The modules of this package that have a say in what code comes out.
_COMPILER_MODULES = ("machine_code.compiling", "machine_code.image", "machine_code.language")


class MachineCode(Protocol):
    """Functions that can be called; they live as long as this object."""

    def address(self, function: str) -> int:
        """Return where a function's code begins; call it with ctypes, which releases the GIL meanwhile."""
        ...


@dataclass(frozen=True, slots=True)
class KernelSource:
    """How a kernel is made.

    emit returns it as LLVM IR with typed pointers; it is not called when there is code already, so it may import what
    is expensive. modules: all modules of `polarvault` whose text has a say in what it emits, by their names without
    "polarvault."; parameters: what else does.
    """

    emit: Callable[[], str]
    modules: Sequence[str]
    parameters: str = ""


class CompiledModule:
    """Machine code of one LLVM module, made and kept by LLVM itself.

    LLVM crashes the process when two threads compile at the same time, or when the program ends meanwhile: compile in
    one thread, and join it if it is not the main one.
    """

    def __init__(self, source: str) -> None:
        """Compile LLVM IR with typed pointers for this CPU; raise one of CANNOT_COMPILE where that is impossible."""
        import llvmlite.binding as llvm

        module = _parsed(source)
        self._engine = llvm.create_mcjit_compiler(module, _target_machine())
        self._engine.finalize_object()

    def address(self, function: str) -> int:
        """Return where a function's code begins; call it with ctypes, which releases the GIL meanwhile."""
        address: int = self._engine.get_function_address(function)
        return address


def load_kernel_code(source: KernelSource, cache: CodeCache | None = None) -> MachineCode:
    """Return a kernel's code: that of an earlier run, else compiled; raise one of CANNOT_COMPILE.

    cache: None is that of this account (see `cache`). Compile in one thread, as `CompiledModule` says.
    """
    key = _key(source)
    if key is None:
        # For a processor that is not known no code is kept.
        return CompiledModule(source.emit())
    cache = cache or CodeCache(cache_base(os.environ))
    image = cache.load(key)
    if image is None:
        text = source.emit()
        try:
            image = linked(_object_file(text))
        except NotLinkable:
            return CompiledModule(text)
        cache.store(key, image)
    return LoadedImage(image)


def _key(source: KernelSource) -> Key | None:
    """Return all that the code depends on; None if something of it cannot be known, raise ImportError for no compiler.

    The compiler is known by its version and by its library's size and time: distributions build it with LLVMs of
    their own.
    """
    processor = processor_identity()
    if processor is None:
        return None
    import llvmlite

    found = find_spec("llvmlite")
    if found is None or found.origin is None:
        return None
    try:
        library = os.stat(os.path.join(os.path.dirname(found.origin), "binding", "libllvmlite.so"))
        texts = [_text(name) for name in (*_COMPILER_MODULES, *source.modules)]
    except OSError:
        return None
    compiler = f"{llvmlite.__version__} {library.st_size} {library.st_mtime_ns}"
    return Key([processor.encode(), compiler.encode(), source.parameters.encode(), *texts])


def _text(module: str) -> bytes:
    path = os.path.join(_PACKAGE, *module.split("."))
    with open(path + ".py", "rb", buffering=0) as file:
        return file.read()


def _parsed(source: str) -> object:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(accepted_source(source))
    module.verify()
    return module


def _target_machine(**options: str) -> object:
    import llvmlite.binding as llvm

    machine: object = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3, **options
    )
    return machine


def _object_file(source: str) -> bytes:
    # Position-independent, all within 2 GB: no reference needs to know where the code will lie.
    module = _parsed(source)
    emitted: bytes = _target_machine(reloc="pic", codemodel="small").emit_object(module)  # type: ignore[attr-defined]
    return emitted


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
