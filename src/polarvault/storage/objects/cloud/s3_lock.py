"""Retention of objects in S3 buckets with object lock: what obstore cannot ask for.

Two requests, GetObjectRetention and PutObjectRetention, signed as S3 wants it (AWS manual, "Signature Version 4"). They
need an access key of their own: what a machine's role gives to obstore cannot be had from there.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import quote, urlsplit

from polarvault.errors import ObjectMissing, PolarvaultError, StorageFailed, StoreForbidden, StoreUnreachable
from polarvault.model.names import shown_text

_TIMEOUT_S = 60
_MOST_BYTES = 1 << 20
_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
_MODE = re.compile(r"<Mode>(GOVERNANCE|COMPLIANCE)</Mode>")
_UNTIL = re.compile(r"<RetainUntilDate>([^<]{1,40})</RetainUntilDate>")
_CODE = re.compile(r"<Code>([\w.-]{1,100})</Code>")
# A bucket without object lock, or an object without retention.
_NOT_LOCKED = {
    "NoSuchObjectLockConfiguration", "ObjectLockConfigurationNotFoundError", "ObjectLockConfigurationNotFound",
    "InvalidRequest", "NoSuchRetention",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class S3Account:
    """Who asks, and whom; endpoint holds the bucket, in its host or as its path."""

    endpoint: str
    region: str
    access_key: str
    secret_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)
    ca_file: str | None = None


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    text: str

    @property
    def code(self) -> str:
        found = _CODE.search(self.text)
        return found[1] if found else ""


def _now() -> datetime:
    return datetime.now(UTC)


class S3Lock:
    """Reads and extends the retention of objects in one bucket. key: the name in the bucket, with its folder."""

    def __init__(self, account: S3Account, address: str, *, clock: Callable[[], datetime] = _now) -> None:
        self._account = account
        self._address = address
        self._clock = clock

    def extend(self, key: str, until: datetime) -> None:
        """See that nobody can remove an object before a time; never shortens. Nothing where nothing is locked."""
        found = self.read(key)
        if found is None or found[1] >= until:
            return
        mode, _ = found
        body = (
            f'<Retention xmlns="{_NAMESPACE}"><Mode>{mode}</Mode>'
            f"<RetainUntilDate>{until.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}</RetainUntilDate></Retention>"
        )
        answer = self._ask("PUT", key, body.encode())
        if answer.status >= 300:
            raise self._refused("extend the retention of", key, answer)

    def read(self, key: str) -> tuple[str, datetime] | None:
        """Return mode and end of an object's retention; None if it has none."""
        answer = self._ask("GET", key, b"")
        if answer.status == 200:
            mode, until = _MODE.search(answer.text), _UNTIL.search(answer.text)
            if mode is None or until is None:
                return None
            try:
                return mode[1], datetime.fromisoformat(until[1]).astimezone(UTC)
            except ValueError:
                raise StorageFailed(f'{self._address} answers for "{key}" with a time that is none') from None
        if answer.code in _NOT_LOCKED:
            return None
        raise self._refused("read the retention of", key, answer)

    def _ask(self, method: str, key: str, body: bytes) -> _Answer:
        # As it is signed: escaped as S3 does.
        url = f"{self._account.endpoint}/{quote(key, safe='/-_.~')}?retention="
        headers = signed_headers(self._account, method, url, body, self._clock())
        request = urllib.request.Request(url, data=body or None, headers=headers, method=method)
        context = ssl.create_default_context(cafile=self._account.ca_file) if url.startswith("https:") else None
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S, context=context) as answer:
                return _Answer(answer.status, answer.read(_MOST_BYTES).decode("utf-8", "replace"))
        except urllib.error.HTTPError as problem:
            with problem:
                return _Answer(problem.code, problem.read(_MOST_BYTES).decode("utf-8", "replace"))
        except OSError as problem:
            reason = getattr(problem, "reason", problem)
            raise StoreUnreachable(
                f'could not ask for the retention of "{key}" in {self._address}: {shown_text(str(reason))}',
                hint="see endpoint, network, proxy and firewall",
            ) from problem

    def _refused(self, action: str, key: str, answer: _Answer) -> PolarvaultError:
        message = f'could not {action} "{key}" in {self._address}: status {answer.status}'
        message += f", {answer.code}" if answer.code else ""
        if answer.status in (401, 403):
            return StoreForbidden(message, hint="the key needs s3:GetObjectRetention and s3:PutObjectRetention")
        if answer.status == 404:
            return ObjectMissing(message, hint="see what removed it")
        if answer.status >= 500 or answer.status in (408, 409, 429):
            return StoreUnreachable(message, hint="run the command again; see the store's own status page")
        return StorageFailed(message, hint="see whether the bucket has object lock")


def signed_headers(account: S3Account, method: str, url: str, body: bytes, now: datetime) -> Mapping[str, str]:
    """Return the headers of a request, signature included; the URL has its parameters sorted and escaped."""
    parts = urlsplit(url)
    payload = hashlib.sha256(body).hexdigest()
    headers = {
        "host": parts.netloc,
        "x-amz-content-sha256": payload,
        "x-amz-date": f"{now.astimezone(UTC):%Y%m%dT%H%M%SZ}",
    }
    if body:
        # Changes of a lock are taken only with a checksum (AWS API, PutObjectRetention).
        headers["content-md5"] = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
        headers["content-type"] = "application/xml"
    if account.session_token is not None:
        headers["x-amz-security-token"] = account.session_token
    names = ";".join(sorted(headers))
    canonical = "\n".join(
        [method, parts.path, parts.query, *(f"{name}:{headers[name]}" for name in sorted(headers)), "", names, payload]
    )
    day = f"{now.astimezone(UTC):%Y%m%d}"
    scope = f"{day}/{account.region}/s3/aws4_request"
    text = "\n".join(["AWS4-HMAC-SHA256", headers["x-amz-date"], scope, hashlib.sha256(canonical.encode()).hexdigest()])
    key = f"AWS4{account.secret_key}".encode()
    for part in (day, account.region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    headers["Authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={account.access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
    )
    del headers["host"]
    return headers
