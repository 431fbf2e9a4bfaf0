"""Page sums: three implementations, one of them naive, give the same bits."""

from __future__ import annotations

import os
import random

import pytest
from blake3 import blake3

from polarvault.repository.sums.definition import PAGE_BYTES, PageSums

KEY = bytes(range(32))


def naive_sum(page: bytes) -> bytes:
    """Return the sum as the format's page defines it, with Python's own numbers."""
    words = [int.from_bytes(page.ljust(PAGE_BYTES, b"\0")[at : at + 4], "little") for at in range(0, PAGE_BYTES, 4)]
    words += [len(page), 0]
    stream = blake3(KEY, derive_key_context="polarvault repository format 1 page sums").digest(length=2056 * 4 + 160)
    key = [int.from_bytes(stream[at : at + 4], "little") for at in range(0, 2056 * 4, 4)]
    last = [int.from_bytes(stream[at : at + 8], "little") for at in range(2056 * 4, len(stream), 8)]
    total = b""
    for number in range(4):
        nh = 0
        for at in range(0, len(words), 2):
            left = (words[at] + key[at + 2 * number]) % 2**32
            nh += left * ((words[at + 1] + key[at + 1 + 2 * number]) % 2**32)
        parts = [nh % 2**64 >> 16 * part & 0xFFFF for part in range(4)]
        folded = sum(part * (factor % (2**36 - 5)) for part, factor in zip(parts, last[5 * number :], strict=False))
        total += ((folded % (2**36 - 5)) % 2**32 ^ last[5 * number + 4] % 2**32).to_bytes(4, "little")
    return total


@pytest.mark.parametrize("compiled", [True, False])
def test_a_sum_is_what_the_page_about_the_format_says(compiled: bool) -> None:
    content = os.urandom(2 * PAGE_BYTES + 1000)
    sums = PageSums(KEY, compiled=compiled).of(bytearray(content))
    pages = [content[at : at + PAGE_BYTES] for at in range(0, len(content), PAGE_BYTES)]
    assert [bytes(one) for one in sums] == [naive_sum(page) for page in pages]


@pytest.mark.parametrize(
    "size", [0, 1, 511, PAGE_BYTES - 1, PAGE_BYTES, PAGE_BYTES + 1, 9 * PAGE_BYTES, 20 * PAGE_BYTES + 3]
)
def test_compiled_and_plain_sums_are_the_same(size: int) -> None:
    content = bytearray(os.urandom(size))
    compiled, plain = PageSums(KEY).of(content), PageSums(KEY, compiled=False).of(content)
    assert compiled.tobytes() == plain.tobytes()
    assert compiled.shape == (-(-size // PAGE_BYTES), 16)


def test_every_bit_the_length_and_the_key_count() -> None:
    chance = random.Random(1)
    page = bytearray(os.urandom(PAGE_BYTES))
    sums = PageSums(KEY)
    seen = {sums.of(page).tobytes(), PageSums(KEY[::-1]).of(page).tobytes()}
    for _ in range(200):
        changed = bytearray(page)
        changed[chance.randrange(PAGE_BYTES)] ^= 1 << chance.randrange(8)
        seen.add(sums.of(changed).tobytes())
    assert len(seen) > 195
    ended = bytearray(PAGE_BYTES)
    assert len({sums.of(ended[:length]).tobytes() for length in (1, 2, 4096, 8191, 8192)}) == 5


def test_swapped_words_are_another_page() -> None:
    page = bytearray(os.urandom(PAGE_BYTES))
    swapped = page[4:8] + page[:4] + page[8:]
    assert PageSums(KEY).of(page).tobytes() != PageSums(KEY).of(swapped).tobytes()
