"""Objects in a bucket of S3, or of what speaks its protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from polarvault.storage.objects.address import StoreAddress
from polarvault.storage.objects.cloud.store import CloudStore, client_options, no_retries
from polarvault.storage.objects.settings import StoreSettings

if TYPE_CHECKING:
    from obstore.store import S3Config

_DEFAULT_REGION = "us-east-1"


def open_s3(address: StoreAddress, settings: StoreSettings, environment: Mapping[str, str]) -> CloudStore:
    """Return the store; nothing is asked of it yet. obstore reads AWS_... variables by itself, ours go first."""
    from obstore.store import S3Store

    endpoint = settings.endpoint or environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
    region = settings.region or environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
    # Path style wherever an endpoint is named: look-alikes know no names of hosts for buckets.
    path_style = settings.path_style if settings.path_style is not None else endpoint is not None
    config: S3Config = {
        "region": region or _DEFAULT_REGION,
        "virtual_hosted_style_request": not path_style,
        # Every look-alike knows the simple request; not every one the other.
        "disable_bulk_delete": True,
        "conditional_put": "etag",
    }
    if endpoint is not None:
        # obstore takes the name of a host with the bucket in it as it is.
        scheme, _, host = endpoint.partition("://")
        config["endpoint"] = endpoint if path_style else f"{scheme}://{address.place}.{host}"
    if settings.access_key is not None:
        config["access_key_id"] = settings.access_key
    if settings.secret_key is not None:
        config["secret_access_key"] = settings.secret_key
    if settings.session_token is not None:
        config["session_token"] = settings.session_token
    backend = S3Store(
        address.place,
        prefix=address.folder or None,
        config=config,
        client_options=client_options(settings, endpoint),
        retry_config=no_retries(),
    )
    return CloudStore(backend, str(address), storage_class=settings.storage_class)
