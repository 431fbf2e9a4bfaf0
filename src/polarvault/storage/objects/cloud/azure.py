"""Objects in a container of Azure Blob Storage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from polarvault.storage.objects.address import StoreAddress
from polarvault.storage.objects.cloud.store import CloudStore, client_options, no_retries
from polarvault.storage.objects.settings import StoreSettings

if TYPE_CHECKING:
    from obstore.store import AzureConfig


def open_azure(address: StoreAddress, settings: StoreSettings, environment: Mapping[str, str]) -> CloudStore:
    """Return the store; nothing is asked of it yet. obstore reads AZURE_... variables by itself, ours go first."""
    from obstore.store import AzureStore

    endpoint = (
        settings.endpoint or environment.get("AZURE_STORAGE_ENDPOINT") or environment.get("AZURE_ENDPOINT") or None
    )
    config: AzureConfig = {}
    if endpoint is not None:
        config["endpoint"] = endpoint
    if settings.account is not None:
        config["account_name"] = settings.account
    if settings.account_key is not None:
        config["account_key"] = settings.account_key
    backend = AzureStore(
        address.place,
        prefix=address.folder or None,
        config=config,
        client_options=client_options(settings, endpoint),
        retry_config=no_retries(),
    )
    return CloudStore(backend, str(address), storage_class=settings.storage_class)
