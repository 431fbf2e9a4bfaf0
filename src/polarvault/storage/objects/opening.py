"""Open a store by its address, with the wrappers that belong around it."""

from __future__ import annotations

import os
from collections.abc import Mapping

from polarvault.errors import UsageError
from polarvault.model.secrets import hide_secrets
from polarvault.storage.files import storage_failed
from polarvault.storage.objects.address import Scheme, StoreAddress, parse_address
from polarvault.storage.objects.local import LocalStore
from polarvault.storage.objects.settings import StoreSettings
from polarvault.storage.objects.store import ObjectStore
from polarvault.storage.objects.write_once import WriteOnce


def open_store(
    address: str,
    settings: StoreSettings | None = None,
    *,
    create: bool = False,
    environment: Mapping[str, str] = os.environ,
) -> ObjectStore:
    """Open the store that an address names; the caller closes it.

    create: make the directory of a local one where it is missing; buckets are made by their owners. Of a bucket nothing
    is asked yet.
    """
    settings = settings or StoreSettings()
    parsed = parse_address(address)
    store: ObjectStore
    if parsed.scheme is Scheme.FILE:
        if create:
            LocalStore.make_root(parsed.place)
        store = LocalStore(parsed.place)
    else:
        from polarvault.storage.objects.retrying import Retrying

        store = Retrying(_open_cloud(parsed, settings, environment), deadline_s=settings.deadline_s)
    if settings.max_rate is not None:
        from polarvault.storage.objects.throttled import Throttled

        store = Throttled(store, bytes_per_s=settings.max_rate)
    return WriteOnce(store)


def _open_cloud(address: StoreAddress, settings: StoreSettings, environment: Mapping[str, str]) -> ObjectStore:
    # The libraries of a cloud are imported only for those who use one.
    from obstore.exceptions import BaseError

    from polarvault.storage.objects.cloud.azure import open_azure
    from polarvault.storage.objects.cloud.google import open_google
    from polarvault.storage.objects.cloud.s3 import open_s3

    opener = {Scheme.S3: open_s3, Scheme.GOOGLE: open_google, Scheme.AZURE: open_azure}[address.scheme]
    try:
        return opener(address, settings, environment)
    except OSError as problem:
        raise storage_failed(problem, "read the certificates in", settings.ca_file or "") from problem
    except (BaseError, ValueError) as problem:
        reason = str(problem).partition("Debug source:")[0].strip()
        raise UsageError(
            f"{address} cannot be opened: {hide_secrets(reason)}",
            hint="see the credentials, and the settings of the store in the configuration and the environment",
        ) from problem
