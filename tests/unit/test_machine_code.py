"""Compiled kernels: what is kept on disk, what is taken from there, and above all what is not."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from polarvault.machine_code import compiling
from polarvault.machine_code.cache import CodeCache, Key, cache_base
from polarvault.machine_code.compiling import KernelSource, load_kernel_code
from polarvault.machine_code.executable import LoadedImage
from polarvault.machine_code.image import Image, NotLinkable, linked, packed, unpacked
from polarvault.machine_code.processor import processor_identity
from polarvault.pgfiles import pages
from polarvault.repository.sums import definition
from polarvault.verify.files import looks
from polarvault.wal.block_maps import kernel as block_maps
from polarvault.wal.compiled import reader
from polarvault.wal.compiled.state import Crc32cMethod

pytest.importorskip("llvmlite.binding")
pytestmark = pytest.mark.skipif(processor_identity() is None, reason="code is kept for x86-64 on Linux only")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of another account")

KEY = Key([b"a processor", b"a kernel"])
# mov $7, %eax; ret
IMAGE = Image(b"\xb8\x07\x00\x00\x00\xc3", {"seven": 0}, {})
KERNELS = {
    "pages": (pages.KERNEL, "pgfiles.page_kernel"),
    "sums": (definition.KERNEL, "repository.sums.kernel"),
    "wal": (reader.kernel(None), "wal.compiled.walker"),
    "block maps": (block_maps.KERNEL, "wal.block_maps.emitting"),
    "looks": (looks.KERNEL, "verify.files.look_kernel"),
}
_ADD = """
define i64 @"add"(i64 %"a", i64 %"b") {
  %"sum" = add i64 %"a", %"b"
  ret i64 %"sum"
}
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    place = tmp_path / "cache"
    place.mkdir(mode=0o700)
    return place


@pytest.fixture
def entry(base: Path) -> Path:
    CodeCache(str(base)).store(KEY, IMAGE)
    return base / "polarvault" / "machine-code" / KEY.digest().hex()


def loaded(base: Path) -> Image | None:
    return CodeCache(str(base)).load(KEY)


def counting(text: str = _ADD, parameters: str = "") -> tuple[KernelSource, list[str]]:
    emitted: list[str] = []

    def emit() -> str:
        emitted.append(text)
        return text

    return KernelSource(emit, (), parameters), emitted


def call(code: compiling.MachineCode, name: str, *arguments: int) -> int:
    kind = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * len(arguments))
    return kind(code.address(name))(*arguments)


def test_an_image_comes_back_and_runs(base: Path, entry: Path):
    assert loaded(base) == IMAGE
    assert call(LoadedImage(IMAGE), "seven") == 7
    assert (entry.stat().st_mode & 0o777, entry.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert [path.name for path in entry.parent.iterdir()] == [entry.name]


def test_a_kernel_is_made_once(base: Path):
    cache = CodeCache(str(base))
    source, emitted = counting()
    for _ in range(3):
        assert call(load_kernel_code(source, cache), "add", 40, 2) == 42
    assert len(emitted) == 1


def test_another_source_parameter_compiler_or_processor_is_another_kernel(base: Path, monkeypatch):
    cache = CodeCache(str(base))
    source, emitted = counting()
    load_kernel_code(source, cache)
    load_kernel_code(replace(source, parameters="other"), cache)
    load_kernel_code(replace(source, modules=("model.lsn",)), cache)
    monkeypatch.setattr(compiling, "processor_identity", lambda: "flags: none")
    load_kernel_code(source, cache)
    monkeypatch.setattr("llvmlite.__version__", "0.0")
    load_kernel_code(source, cache)
    assert len(emitted) == 5
    assert len(os.listdir(base / "polarvault" / "machine-code")) == 5


def test_parts_of_a_key_cannot_be_taken_for_others():
    lists = [[b"ab", b"c"], [b"a", b"bc"], [b"abc"], [b"abc", b""], [b""], []]
    assert len({Key(parts).digest() for parts in lists}) == len(lists)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\x90")


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _take_another_key(path: Path) -> None:
    other = Key([b"another"])
    CodeCache(str(path.parents[2])).store(other, IMAGE)
    os.rename(path.parent / other.digest().hex(), path)


def _link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir(0o700)


DAMAGES: list[Callable[[Path], None]] = [
    _cut, _lengthen, _flip, _empty, _take_another_key, _link, _fifo, _directory,
    lambda path: path.chmod(0o620), lambda path: path.chmod(0o602),
    lambda path: path.parent.chmod(0o770), lambda path: path.parents[1].chmod(0o702),
    lambda path: path.parents[2].chmod(0o777),
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_or_open_to_others_is_not_taken(damage, base: Path, entry: Path):
    damage(entry)
    assert loaded(base) is None


@pytest.mark.parametrize("damage", DAMAGES[:7])
def test_what_is_damaged_is_made_anew(damage, base: Path, entry: Path):
    damage(entry)
    CodeCache(str(base)).store(KEY, IMAGE)
    assert loaded(base) == IMAGE


@needs_root
@pytest.mark.parametrize("number", [None, 0, 1, 2])
def test_nothing_of_another_account_is_taken_or_written(number: int | None, base: Path, entry: Path):
    path = entry if number is None else entry.parents[number]
    os.chown(path, 65534, 65534)
    assert loaded(base) is None
    if number is not None:
        before = sorted(os.listdir(entry.parent))
        CodeCache(str(base)).store(Key([b"new"]), IMAGE)
        assert sorted(os.listdir(entry.parent)) == before


@needs_root
def test_root_makes_nothing_in_the_home_of_another_account(tmp_path: Path):
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, 65534, 65534)
    base = cache_base({"HOME": str(home)})
    assert base is not None
    CodeCache(base).store(KEY, IMAGE)
    assert CodeCache(base).load(KEY) is None
    assert not (home / ".cache" / "polarvault").exists()


def test_the_directory_of_caches_may_be_reached_by_a_link_of_ours(tmp_path: Path, base: Path, entry: Path):
    (tmp_path / "link").symlink_to("cache")
    assert loaded(tmp_path / "link") == IMAGE


def test_a_link_in_the_place_of_our_directory_is_not_followed(tmp_path: Path, base: Path, entry: Path):
    (base / "polarvault").rename(tmp_path / "moved")
    (base / "polarvault").symlink_to(tmp_path / "moved")
    assert loaded(base) is None


def test_directories_that_everybody_may_write_have_no_say_if_they_are_sticky(tmp_path: Path):
    shared = tmp_path / "shared"
    (shared / "mine").mkdir(parents=True, mode=0o700)
    CodeCache(str(shared / "mine")).store(KEY, IMAGE)
    shared.chmod(0o777)
    assert loaded(shared / "mine") is None
    shared.chmod(0o1777)
    assert loaded(shared / "mine") == IMAGE


def test_without_a_place_everything_works(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    places = [None, str(tmp_path / "not" / "there"), str(tmp_path / "file"), "/proc/nothing"]
    for place in places:
        source, emitted = counting()
        for _ in range(2):
            assert call(load_kernel_code(source, CodeCache(place)), "add", 1, 2) == 3
        assert len(emitted) == 2


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"XDG_CACHE_HOME": "/c", "HOME": "/h"}, "/c"),
        ({"XDG_CACHE_HOME": "c", "HOME": "/h"}, "/h/.cache"),
        ({"HOME": "/h"}, "/h/.cache"),
        ({"HOME": "h"}, None),
    ],
)
def test_the_place_is_that_of_the_xdg_specification(environment, expected):
    assert cache_base(environment) == expected


def test_entries_of_other_versions_do_not_pile_up(base: Path):
    cache = CodeCache(str(base))
    for number in range(40):
        cache.store(Key([b"%d" % number]), IMAGE)
        os.utime(base / "polarvault" / "machine-code" / Key([b"%d" % number]).digest().hex(), (number, number))
    cache.store(KEY, IMAGE)
    assert len(os.listdir(base / "polarvault" / "machine-code")) == 32
    assert cache.load(KEY) == IMAGE
    assert cache.load(Key([b"0"])) is None


@pytest.mark.parametrize("name", KERNELS)
def test_the_key_of_a_kernel_has_every_module_that_emits_it(name: str):
    source, emitting = KERNELS[name]
    program = (
        f"import sys, polarvault.{emitting}\n"
        "print(*(n[11:] for n, m in sys.modules.items() if n[:11] == 'polarvault.' and not hasattr(m, '__path__')))"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    # What keeps code, loads it, or makes classes of values has no say in what it is.
    storing = {"machine_code.cache", "machine_code.executable", "model.dataclass", "model.ownership"}
    listed = {*source.modules, "machine_code.compiling", "machine_code.image", "machine_code.language"}
    assert set(said.stdout.split()) - storing - listed == set()


@pytest.mark.parametrize("name", KERNELS)
def test_every_kernel_is_kept(name: str, base: Path):
    source, _ = KERNELS[name]
    load_kernel_code(source, CodeCache(str(base)))
    no_compiler = replace(source, emit=lambda: pytest.fail("it was compiled again"))
    load_kernel_code(no_compiler, CodeCache(str(base)))


def test_the_tables_of_a_processor_without_crc_instructions_are_kept_too(base: Path):
    source = reader.kernel(Crc32cMethod.TABLES)
    code = [load_kernel_code(one, CodeCache(str(base))) for one in (source, replace(source, emit=pytest.fail))]
    memory = ctypes.create_string_buffer(b"123456789")
    # The check value of CRC-32C (RFC 3720, appendix B.4, has others of its kind).
    sums = [call(one, "crc32c", 0xFFFFFFFF, ctypes.addressof(memory), 9) ^ 0xFFFFFFFF for one in code]
    assert sums == [0xE3069283] * 2


def test_a_second_program_needs_no_compiler(base: Path):
    program = (
        "import sys\n"
        "from polarvault.pgfiles.pages import load_kernel, numpy_kernel\n"
        "print(load_kernel() is numpy_kernel, 'llvmlite.binding' in sys.modules)"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(base)}
    said = [subprocess.check_output([sys.executable, "-c", program], env=environment, text=True) for _ in range(2)]
    assert said == ["False True\n", "False False\n"]


@pytest.mark.parametrize(
    "source",
    [
        # Something that is no function of the C library that we know.
        'declare i64 @"strlen"(i64)\n'
        'define i64 @"f"(i64 %"a") {\n  %"n" = call i64 @"strlen"(i64 %"a")\n  ret i64 %"n"\n}',
        # A variable, which would have to be writable.
        '@"v" = global i64 5\ndefine i64 @"f"() {\n  %"n" = load i64, i64* @"v"\n  ret i64 %"n"\n}',
    ],
)
def test_what_cannot_be_linked_is_left_to_llvm(source: str, base: Path):
    with pytest.raises(NotLinkable):
        linked(compiling._object_file(source))
    kernel, _ = counting(source)
    load_kernel_code(kernel, CodeCache(str(base)))
    assert not (base / "polarvault").exists()


def test_an_object_that_was_cut_is_refused():
    whole = compiling._object_file(KERNELS["wal"][0].emit())
    for size in range(0, len(whole) - 1, 97):
        with pytest.raises(NotLinkable):
            linked(whole[:size])


def test_only_what_was_packed_is_unpacked():
    image = linked(compiling._object_file(KERNELS["wal"][0].emit()))
    whole = packed(image)
    assert unpacked(whole) == image
    assert image.slots.keys() == {"memcpy"}
    for size in range(len(whole)):
        with pytest.raises(ValueError, match=r"."):
            unpacked(whole[:size])
    for place in range(300):
        spoilt = bytearray(whole)
        spoilt[place] ^= 0x80
        try:
            found = unpacked(bytes(spoilt))
        except ValueError:
            continue
        # A name or a place within the code may differ: against that there is the digest.
        assert all(at < len(found.code) for at in (*found.functions.values(), *found.slots.values()))


def test_code_is_not_writable_once_it_can_run():
    start = LoadedImage(IMAGE).address("seven")
    ranges = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    [rights] = [
        fields[1] for fields in ranges if int(fields[0].split("-")[0], 16) <= start < int(fields[0].split("-")[1], 16)
    ]
    assert rights == "r-xp"


def test_a_processor_is_known_by_all_its_features(tmp_path: Path):
    described = tmp_path / "cpuinfo"
    text = (
        "vendor_id\t: A\ncpu family\t: 6\nmodel\t\t: 1\nstepping\t: 2\nflags\t\t: fpu avx\n"
        "cpu MHz\t\t: 1.5\n\nprocessor : 1\n"
    )
    described.write_text(text)
    known = processor_identity(str(described))
    assert known is not None
    described.write_text(text.replace("1.5", "2.5"))
    assert processor_identity(str(described)) == known
    described.write_text(text.replace("avx", "avx2"))
    assert processor_identity(str(described)) not in (None, known)
    described.write_text(text.replace("stepping", "steps"))
    assert processor_identity(str(described)) is None
    described.write_text(text.partition("\n\n")[0])
    assert processor_identity(str(described)) is None
    assert processor_identity(str(tmp_path / "missing")) is None
