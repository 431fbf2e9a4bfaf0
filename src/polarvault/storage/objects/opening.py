"""Open a store by its address, with the wrappers that belong around it."""

from __future__ import annotations

from dataclasses import dataclass

from polarvault.storage.objects.address import parse_address
from polarvault.storage.objects.local import LocalStore
from polarvault.storage.objects.store import ObjectStore
from polarvault.storage.objects.throttled import Throttled
from polarvault.storage.objects.write_once import WriteOnce


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """What an address does not say. max_rate: bytes per second in each direction; None for no limit."""

    max_rate: int | None = None


def open_store(address: str, settings: StoreSettings | None = None, *, create: bool = False) -> ObjectStore:
    """Open the store that an address names; the caller closes it.

    create: make the directory of a local one where it is missing; buckets are made by their owners.
    """
    settings = settings or StoreSettings()
    parsed = parse_address(address)
    if create:
        LocalStore.make_root(parsed.place)
    store: ObjectStore = LocalStore(parsed.place)
    if settings.max_rate is not None:
        store = Throttled(store, bytes_per_s=settings.max_rate)
    return WriteOnce(store)
