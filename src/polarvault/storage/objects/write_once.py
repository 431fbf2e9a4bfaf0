"""What "it is there already" means: it is read and compared.

A store says so when another writer was first; when we were, and the answer to the first try was lost; and some say so
by mistake, of an object that never came to be (two conditional writes at a time, S3's status 409). The same bytes are a
success whoever wrote them; others are an error that names both; nothing at all is written once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from polarvault.errors import ObjectDiffers, ObjectExists, ObjectMissing, StorageFailed, StoreForbidden
from polarvault.storage.objects.store import ObjectStore
from polarvault.storage.objects.wrapper import Wrapper

_TRIES = 4


class WriteOnce(Wrapper):
    """Makes `put_new` of a bare store safe to repeat."""

    def put_new(self, name: str, views: Sequence[bytes | memoryview], *, from_reserve: bool = False) -> None:
        """Write a new object; the same bytes that are there already are a success, others ObjectDiffers."""
        for _ in range(_TRIES):
            try:
                self._inner.put_new(name, views, from_reserve=from_reserve)
            except ObjectExists:
                if self._is_same(name, views):
                    return
            else:
                return
        raise StorageFailed(
            f'{self.address} says {_TRIES} times that "{name}" is there already, and shows no such object',
            hint="run the command again; if it stays so, the store cannot make objects safely",
        )

    def _is_same(self, name: str, views: Sequence[bytes | memoryview]) -> bool:
        """Tell whether an object has these bytes; False if there is none. ObjectDiffers if it has others."""
        size = sum(map(len, views))
        try:
            there = self._inner.stat(name)
            content = self._inner.get(name, most_bytes=size) if there.size_bytes == size else None
        except ObjectMissing:
            return False
        if content is not None and content == b"".join(views):
            return True
        found = f"{there.size_bytes} bytes of {there.modified:%Y-%m-%d %H:%M:%S} UTC"
        if content is not None:
            found += f", BLAKE3 {_digest([content])}"
        raise ObjectDiffers(
            f'"{name}" in {self.address} is there already and is another one: {found}; '
            f"to be written were {size} bytes, BLAKE3 {_digest(views)}",
            hint="see what else writes to this repository under this name; nothing was changed",
        )


def _digest(views: Sequence[bytes | memoryview]) -> str:
    from blake3 import blake3

    digest = blake3()
    for view in views:
        digest.update(view)
    return digest.hexdigest()


def prove_write_once(store: ObjectStore, name: str) -> None:
    """See that a store refuses a second object of a name; raise StorageFailed if it replaces the first one.

    Some that speak S3's protocol ignore the condition, or do so once a bucket keeps versions; others answer 501, which
    is an error already. name: one that nothing has; the object is removed where that is allowed.
    """
    store.put_new(name, [b"the first"])
    try:
        store.put_new(name, [b"the second"])
    except ObjectDiffers:
        kept = store.get(name, most_bytes=64) == b"the first"
    else:
        kept = False
    # Objects may be locked here, and who may write need not have the right to remove: the few bytes do no harm.
    with suppress(StoreForbidden):
        store.delete(name)
    if not kept:
        raise StorageFailed(
            f"{store.address} replaces objects that are there already: it ignores the condition If-None-Match",
            hint="use a store, or a release of it, that has conditional writes; two writers would lose data here",
        )
