"""CRC-32C in the compiled reader: one instruction for 8 bytes where the CPU has it, else tables.

The emitted function takes and returns the raw register, all ones at the start; its complement is the checksum.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from polarvault.machine_code.compiling import has_cpu_feature
from polarvault.machine_code.language import I64, Code, Value
from polarvault.machine_code.processor import cpu_family
from polarvault.wal.compiled.state import Crc32cMethod

I32 = ir.IntType(32)
# The Castagnoli polynomial, bits reversed.
_POLYNOMIAL = 0x82F63B78
_TABLES = 8


def host_method() -> Crc32cMethod:
    """Return the fastest method that this CPU has."""
    if cpu_family() == "x86" and has_cpu_feature("sse4.2"):
        return Crc32cMethod.X86
    if cpu_family() == "arm" and has_cpu_feature("crc"):
        return Crc32cMethod.ARM
    return Crc32cMethod.TABLES


def add_crc32c(module: Any, method: Crc32cMethod) -> Any:
    """Add the function ``crc32c(register, address, length)`` to the module and return it."""
    code = Code(module, "crc32c", 3)
    steps = _TableSteps(module, code) if method is Crc32cMethod.TABLES else _InstructionSteps(module, code, method)
    register, address, length = code.parameters
    # Eight bytes a step as long as there are as many, then one by one: records have any length.
    register, address = code.fold(address, address + (length & ~7), 8, register, steps.eight_bytes)
    register, _ = code.fold(address, address + (length & 7), 1, register, steps.one_byte)
    code.give(register)
    return code.function


class _InstructionSteps:
    """Steps by the CPU's own instructions."""

    def __init__(self, module: Any, code: Code, method: Crc32cMethod) -> None:
        self._code = code
        self._is_x86 = method is Crc32cMethod.X86
        if self._is_x86:
            eight = ir.FunctionType(I64, [I64, I64]), "llvm.x86.sse42.crc32.64.64"
            one = ir.FunctionType(I32, [I32, ir.IntType(8)]), "llvm.x86.sse42.crc32.32.8"
        else:
            eight = ir.FunctionType(I32, [I32, I64]), "llvm.aarch64.crc32cx"
            one = ir.FunctionType(I32, [I32, I32]), "llvm.aarch64.crc32cb"
        self._eight, self._one = ir.Function(module, *eight), ir.Function(module, *one)

    def eight_bytes(self, register: Value, address: Value) -> Value:
        return self._call(self._eight, register, self._code.load(address))

    def one_byte(self, register: Value, address: Value) -> Value:
        return self._call(self._one, register, self._code.load(address, 8))

    def _call(self, instruction: Any, register: Value, loaded: Value) -> Value:
        builder = self._code.builder
        arguments = [
            value.emitted if kind == I64 else builder.trunc(value.emitted, kind)
            for value, kind in zip((register, loaded), instruction.function_type.args, strict=True)
        ]
        result = builder.call(instruction, arguments)
        return Value(builder, result if result.type == I64 else builder.zext(result, I64))


class _TableSteps:
    """Steps by eight tables, one for each byte of a word ("slicing by 8", Kounavis and Berry 2005)."""

    def __init__(self, module: Any, code: Code) -> None:
        entries = [entry for table in _tables() for entry in table]
        content = ir.ArrayType(I32, len(entries))
        self._tables = ir.GlobalVariable(module, content, "crc32c_tables")
        self._tables.global_constant = True
        # So that the code refers to it by its distance.
        self._tables.linkage = "internal"
        self._tables.initializer = ir.Constant(content, entries)
        self._code = code
        self._address = Value(code.builder, code.builder.ptrtoint(self._tables, I64))

    def eight_bytes(self, register: Value, address: Value) -> Value:
        mixed = self._code.load(address) ^ register
        result = self._look_up(_TABLES - 1, mixed & 255)
        for number in range(1, _TABLES):
            result = result ^ self._look_up(_TABLES - 1 - number, mixed >> 8 * number & 255)
        return result

    def one_byte(self, register: Value, address: Value) -> Value:
        return self._look_up(0, (self._code.load(address, 8) ^ register) & 255) ^ (register >> 8)

    def _look_up(self, table: int, index: Value) -> Value:
        return self._code.load(self._address + table * 1024 + (index << 2), 32)


def _tables() -> list[list[int]]:
    """Return, for each place of a byte in a word, what each value of that byte adds to the checksum."""
    first = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        first.append(value)
    tables = [first]
    while len(tables) < _TABLES:
        tables.append([first[entry & 255] ^ entry >> 8 for entry in tables[-1]])
    return tables
