"""An image: machine code that runs wherever in memory it is put, and its functions' places. x86-64 only.

`linked` makes one of the object file that LLVM emits (ELF64, System V ABI, x86-64 supplement), which has its code in
one section, constants in others, and relative references between them. All are put one behind the other, once and for
all, so that loading is copying. What a kernel may call outside of itself are a few functions of the C library: each
through a slot, which the loader fills in. An object that needs anything else is no image; it raises NotLinkable, and
LLVM itself has to load it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

# No kernel has more than 20 kB.
MOST_IMAGE_BYTES = 1 << 20
_MOST_FUNCTIONS = 64
_NAME_BYTES = 64
EXTERNALS = ("close", "memcpy", "openat", "read")

_ELF_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QQq")
_MAGIC = b"\x7fELF\x02\x01\x01"
_RELOCATABLE, _X86_64 = 1, 62
_PROGBITS, _SYMTAB, _STRTAB, _RELA, _UNWIND = 1, 2, 3, 4, 0x70000001
_WRITE, _ALLOC = 1, 2
_FUNCTION, _GLOBAL = 2, 1
_PC32, _PLT32 = 2, 4
_MOST_ALIGNED = 4096
# jmp *slot(%rip)
_JUMP = b"\xff\x25"
_STUB_BYTES = 8
_SLOT_BYTES = 8


class NotLinkable(Exception):
    """The object holds something that an image cannot have."""


@dataclass(frozen=True, slots=True)
class Image:
    """Code with its constants; offsets count from its first byte, which has to lie on a page boundary.

    functions: where each begins. slots: where the address of each function outside of it has to be stored (8 bytes,
    little-endian) before it runs.
    """

    code: bytes
    functions: dict[str, int]
    slots: dict[str, int]


@dataclass(frozen=True, slots=True)
class _Section:
    name: str
    kind: int
    flags: int
    content: bytes
    link: int
    applies_to: int
    alignment: int


def linked(elf: bytes) -> Image:
    """Return the image of an x86-64 object file; raise NotLinkable."""
    try:
        return _link(elf)
    except (struct.error, IndexError, ValueError) as problem:
        raise NotLinkable(f"it cannot be read: {problem}") from problem


def _link(elf: bytes) -> Image:
    sections = _sections(elf)
    memory = bytearray()
    places: dict[int, int] = {}
    for number, section in enumerate(sections):
        # The unwinder's tables are for exceptions and debuggers: nothing is thrown here.
        if not section.flags & _ALLOC or section.kind == _UNWIND or section.name == ".eh_frame":
            continue
        if section.kind != _PROGBITS or section.flags & _WRITE or not 0 < section.alignment <= _MOST_ALIGNED:
            raise NotLinkable(f"section {section.name}")
        memory += bytes(-len(memory) % section.alignment)
        places[number] = len(memory)
        memory += section.content
    [(number_of_table, table)] = [(n, s) for n, s in enumerate(sections) if s.kind == _SYMTAB]
    symbols = [_SYMBOL.unpack_from(table.content, at) for at in range(0, len(table.content), _SYMBOL.size)]
    names = sections[table.link].content
    stubs, slots = _add_stubs(memory, sorted({_text(names, s[0]) for s in symbols[1:] if not s[3]}))

    def place_of(symbol: int) -> int:
        name, _, _, section, value, _ = symbols[symbol]
        if not section:
            return stubs[_text(names, name)]
        if section not in places:
            raise NotLinkable(f"symbol {_text(names, name)!r}")
        return places[section] + int(value)

    for section in sections:
        if section.kind != _RELA or section.applies_to not in places:
            continue
        if section.link != number_of_table:
            raise NotLinkable(f"section {section.name}")
        base = places[section.applies_to]
        for at in range(0, len(section.content), _RELOCATION.size):
            offset, what, addend = _RELOCATION.unpack_from(section.content, at)
            if what & 0xFFFFFFFF not in (_PC32, _PLT32):
                raise NotLinkable(f"relocation of type {what & 0xFFFFFFFF}")
            if offset + 4 > len(sections[section.applies_to].content):
                raise NotLinkable("a relocation outside of its section")
            place = base + offset
            struct.pack_into("<i", memory, place, place_of(what >> 32) + addend - place)
    functions = {
        _text(names, name): places[section] + value
        for name, how, _, section, value, _ in symbols
        if how & 0xF == _FUNCTION and how >> 4 == _GLOBAL and section in places
    }
    return Image(bytes(memory), functions, slots)


def _sections(elf: bytes) -> list[_Section]:
    (identity, kind, machine, _, _, _, table, _, _, _, _, entry_bytes, count, names_at) = _ELF_HEADER.unpack_from(elf)
    if identity[: len(_MAGIC)] != _MAGIC or (kind, machine, entry_bytes) != (_RELOCATABLE, _X86_64, _SECTION.size):
        raise NotLinkable("it is no object file for x86-64")
    rows = [_SECTION.unpack_from(elf, table + number * _SECTION.size) for number in range(count)]
    contents = [elf[offset : offset + size] for _, _, _, _, offset, size, *_ in rows]
    return [
        _Section(_text(contents[names_at], name), kind, flags, content, link, applies_to, alignment)
        for (name, kind, flags, _, _, _, link, applies_to, alignment, _), content in zip(rows, contents, strict=True)
    ]


def _text(table: bytes, at: int) -> str:
    return table[at : table.index(0, at)].decode("ascii")


def _add_stubs(memory: bytearray, names: list[str]) -> tuple[dict[str, int], dict[str, int]]:
    """Append a jump for each function outside, and the slot with its address; return where both are."""
    unknown = [name for name in names if name not in EXTERNALS]
    if unknown:
        raise NotLinkable(f"it needs {', '.join(unknown)}")
    memory += bytes(-len(memory) % 16)
    stubs, slots = {}, {}
    for number, name in enumerate(names):
        stubs[name] = len(memory) + number * _STUB_BYTES
        slots[name] = len(memory) + len(names) * _STUB_BYTES + number * _SLOT_BYTES
    for name in names:
        # Relative to the next instruction.
        distance = slots[name] - (stubs[name] + len(_JUMP) + 4)
        memory += (_JUMP + struct.pack("<i", distance)).ljust(_STUB_BYTES, b"\xcc")
    memory += bytes(len(names) * _SLOT_BYTES)
    return stubs, slots


_COUNTS = struct.Struct("<IHH")
_PLACE = struct.Struct(f"<I{_NAME_BYTES}s")


def packed(image: Image) -> bytes:
    """Return an image as bytes."""
    places = [*image.functions.items(), *image.slots.items()]
    if len(image.code) > MOST_IMAGE_BYTES or len(places) > _MOST_FUNCTIONS:
        raise NotLinkable(f"{len(image.code)} bytes of code, {len(places)} names")
    if any(len(name) > _NAME_BYTES for name, _ in places):
        raise NotLinkable("a name that is too long")
    head = _COUNTS.pack(len(image.code), len(image.functions), len(image.slots))
    return head + b"".join(_PLACE.pack(at, name.encode()) for name, at in places) + image.code


def unpacked(content: bytes) -> Image:
    """Return the image that `packed` made bytes of; raise ValueError for anything else."""
    try:
        size, function_count, slot_count = _COUNTS.unpack_from(content)
        end = _COUNTS.size + (function_count + slot_count) * _PLACE.size
        rows = list(_PLACE.iter_unpack(content[_COUNTS.size : end]))
        places = [(name.rstrip(b"\0").decode("ascii"), at) for at, name in rows]
    except (struct.error, UnicodeDecodeError) as problem:
        raise ValueError(str(problem)) from problem
    code = content[end:]
    functions, slots = dict(places[:function_count]), dict(places[function_count:])
    if len(code) != size or not 0 < size <= MOST_IMAGE_BYTES or len(places) != function_count + slot_count:
        raise ValueError("lengths differ")
    if any(at >= size for at in functions.values()) or any(at + _SLOT_BYTES > size for at in slots.values()):
        raise ValueError("a place outside of the code")
    if any(name not in EXTERNALS for name in slots):
        raise ValueError("an unknown function outside")
    return Image(code, functions, slots)
