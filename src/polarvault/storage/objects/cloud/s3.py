"""Objects in a bucket of S3, or of what speaks its protocol."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from polarvault.errors import StoreForbidden
from polarvault.storage.objects.address import StoreAddress
from polarvault.storage.objects.cloud.store import CloudStore, client_options, no_retries
from polarvault.storage.objects.settings import StoreSettings

if TYPE_CHECKING:
    from obstore.store import S3Config

    from polarvault.storage.objects.cloud.s3_lock import S3Account

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

    def extend_retention(name: str, until: datetime) -> None:
        from polarvault.storage.objects.cloud.s3_lock import S3Lock

        key = f"{address.folder}/{name}" if address.folder else name
        S3Lock(_account(address, settings, environment, config), str(address)).extend(key, until)

    return CloudStore(backend, str(address), storage_class=settings.storage_class, extend_retention=extend_retention)


def _account(
    address: StoreAddress, settings: StoreSettings, environment: Mapping[str, str], config: S3Config
) -> S3Account:
    """Return who asks for retention; raise StoreForbidden where only obstore knows the credentials."""
    from polarvault.storage.objects.cloud.s3_lock import S3Account

    access_key = settings.access_key or environment.get("AWS_ACCESS_KEY_ID")
    secret_key = settings.secret_key or environment.get("AWS_SECRET_ACCESS_KEY")
    if not access_key or not secret_key:
        raise StoreForbidden(
            f"the retention of objects in {address} cannot be extended with the role of this machine",
            hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or access_key and secret_key in the configuration",
        )
    region = config["region"]
    path_style = not config["virtual_hosted_style_request"]
    amazon = f"s3.{region}.amazonaws.com" if path_style else f"{address.place}.s3.{region}.amazonaws.com"
    endpoint = config.get("endpoint") or f"https://{amazon}"
    # Both belong to one key: a lent one has a token.
    token = settings.session_token if settings.access_key else environment.get("AWS_SESSION_TOKEN")
    return S3Account(
        f"{endpoint.rstrip('/')}/{address.place}" if path_style else endpoint.rstrip("/"),
        region, access_key, secret_key, token, settings.ca_file,
    )  # fmt: skip
