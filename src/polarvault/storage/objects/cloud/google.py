"""Objects in a bucket of Google Cloud Storage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from polarvault.storage.objects.address import StoreAddress
from polarvault.storage.objects.cloud.store import CloudStore, client_options, no_retries
from polarvault.storage.objects.settings import StoreSettings

if TYPE_CHECKING:
    from obstore.store import GCSConfig


def open_google(address: StoreAddress, settings: StoreSettings, environment: Mapping[str, str]) -> CloudStore:
    """Return the store; nothing is asked of it yet. GOOGLE_... variables are read by obstore, ours go first."""
    from obstore.store import GCSStore

    endpoint = settings.endpoint or environment.get("STORAGE_EMULATOR_HOST")
    config: GCSConfig = {}
    if endpoint is not None:
        config["base_url"] = endpoint
    if settings.endpoint is None and endpoint is not None:
        # What stands in for the service asks for no credentials (Google's own libraries do the same).
        config["bearer_token"] = "emulator"
    elif settings.credentials_file is not None:
        config["application_credentials"] = settings.credentials_file
    backend = GCSStore(
        address.place,
        prefix=address.folder or None,
        config=config,
        client_options=client_options(settings, endpoint),
        retry_config=no_retries(),
    )
    return CloudStore(backend, str(address), storage_class=settings.storage_class)
