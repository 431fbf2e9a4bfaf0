"""What an address does not say of a store: values of the configuration, checked where they come in."""

from __future__ import annotations

from polarvault.errors import UsageError
from polarvault.model.dataclass import dataclass, field
from polarvault.model.secrets import hide_secrets

# Objects in these classes cannot be read at once; a restore would wait for hours for each of them.
_COLD_CLASSES = ("GLACIER", "DEEP_ARCHIVE", "ARCHIVE_BLOB")


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """How to reach and use a store; None is the default of the environment, or of the store.

    deadline_s: how long requests that are not answered are repeated. max_rate: bytes per second in each direction.
    path_style: the bucket in the path of the address, not in the host's name. credentials_file: Google's, JSON.
    """

    endpoint: str | None = None
    region: str | None = None
    path_style: bool | None = None
    ca_file: str | None = None
    storage_class: str | None = None
    access_key: str | None = None
    secret_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    account: str | None = None
    account_key: str | None = field(default=None, repr=False)
    credentials_file: str | None = None
    deadline_s: float = 300.0
    max_rate: int | None = None

    def __post_init__(self) -> None:
        if self.endpoint is not None and (why := endpoint_problem(self.endpoint)) is not None:
            raise UsageError(f'the endpoint "{hide_secrets(self.endpoint)}" {why}', hint="write https://HOST:PORT")
        if self.storage_class is not None and (why := storage_class_problem(self.storage_class)) is not None:
            raise UsageError(f'the storage class "{self.storage_class}" {why}', hint="choose one that is read at once")


def endpoint_problem(text: str) -> str | None:
    """Say why a text cannot be the address of a store's service; None if it can."""
    # Only for stores of a cloud: it takes longer to import than a store takes to open.
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(text)
        has_port = parts.port is None or parts.port > 0
    except ValueError:
        return "is no address"
    if parts.scheme not in ("http", "https") or not parts.hostname or not has_port:
        return "does not begin with http:// or https:// and a host"
    if parts.username is not None or parts.password is not None:
        return "holds a user or a password"
    if parts.query or parts.fragment or not text.isascii() or not text.isprintable() or " " in text:
        return "holds more than a host, a port and a path"
    return None


def storage_class_problem(text: str) -> str | None:
    """Say why a storage class cannot be used; None if it can."""
    if text.upper() in _COLD_CLASSES:
        return "keeps objects that must be thawed before they are read"
    if not text.isascii() or not text.replace("_", "").replace("-", "").isalnum():
        return "is none"
    return None
