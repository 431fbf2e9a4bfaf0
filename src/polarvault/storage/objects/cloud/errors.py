"""What obstore's exceptions mean. It has few classes: the status and the store's own code stand in the text only."""

from __future__ import annotations

import re
from dataclasses import dataclass

from polarvault.errors import (
    ObjectExists,
    ObjectMissing,
    ObjectTruncated,
    PolarvaultError,
    StorageFailed,
    StoreForbidden,
    StoreFull,
    StoreUnreachable,
)
from polarvault.model.names import shown_text
from polarvault.model.secrets import hide_secrets

_STATUS = re.compile(r"status code: (\d{3})\b|\(code: (\d{3})\)")
_CODE = re.compile(r"<Code>([\w.-]{1,100})</Code>|\(code: ([A-Za-z][\w.-]{0,99})\)|\"reason\": ?\"([\w.-]{1,100})\"")
_MESSAGE = re.compile(r"<Message>([^<]{1,500})|\"message\": ?\"([^\"]{1,500})")
# The system's own words stand deep in the text that is meant for programmers.
_CAUSE = re.compile(r"(?:message|error): \"([^\"]{1,300})\"|: (InvalidCertificate\([^\n]{0,200})")
_SHOWN_CHARACTERS = 300

# Timed out, too early, too many; a conflict of two writers is decided when one of them has ended.
_AGAIN = (408, 409, 425, 429)
_NOT_IMPLEMENTED, _NO_SPACE, _NOT_SATISFIABLE = 501, 507, 416
_FULL = ("QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "StorageFull", "AccountLimitExceeded")
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "ContainerBeingDeleted")
_LOCKED = ("ObjectLocked", "BlobImmutableDueToPolicy", "BlobImmutableDueToLegalHold", "retentionPolicyNotMet")
_TIMES = ("RequestTimeTooSkewed", "RequestExpired")
_SLOW = ("SlowDown", "RequestTimeout", "ServerBusy", "OperationAborted", "ConditionalRequestConflict")
# Where machines of a cloud get credentials: asked when no others were given (link-local, RFC 3927).
_METADATA_SERVICE = ("169.254.169.254", "169.254.170.2", "metadata.google.internal")


@dataclass(slots=True)
class Request:
    """What was asked: "read", of which object ("" for a folder of everything), where."""

    action: str
    name: str
    address: str
    is_range: bool = False

    @property
    def text(self) -> str:
        """How a message begins."""
        return f'could not {self.action} "{self.name}" in {self.address}' if self.name else self._whole

    @property
    def _whole(self) -> str:
        return f"could not {self.action} {self.address}"


def explain(problem: Exception, request: Request) -> PolarvaultError:
    """Return our error for an exception of obstore."""
    text = str(problem)
    brief, _, debugging = text.partition("Debug source:")
    found = _STATUS.search(brief)
    status = int(found[1] or found[2]) if found else 0
    found = _CODE.search(brief)
    code = next(filter(None, found.groups()), "") if found else ""
    reason = _reason(brief, debugging, status, code)
    message = f"{request.text}: {reason}"
    kind = type(problem).__name__
    if code in _NO_BUCKET:
        return StorageFailed(message, hint="see the spelling of the bucket, and the region; buckets are made by hand")
    if kind in ("AlreadyExistsError", "PreconditionError", "NotModifiedError") and request.action == "write":
        return ObjectExists(f'"{request.name}" is there already in {request.address}')
    if isinstance(problem, FileNotFoundError):
        return ObjectMissing(f'there is no "{request.name}" in {request.address}', hint="see what removed it")
    if any(host in brief for host in _METADATA_SERVICE):
        return _without_credentials(request, reason)
    if code in _SLOW or "HTTP error" in brief:
        return _unanswered(message, debugging)
    if kind in ("PermissionDeniedError", "UnauthenticatedError") or status in (401, 403) or "Denied" in code:
        return _forbidden(message, code, request)
    if code in _FULL or status == _NO_SPACE:
        return StoreFull(message, hint="make space in the store, or raise its quota")
    if request.is_range and (status == _NOT_SATISFIABLE or "Wanted range" in brief):
        return ObjectTruncated(message)
    if status in _AGAIN or (status >= 500 and status != _NOT_IMPLEMENTED):
        return StoreUnreachable(message, hint="run the command again; see the store's own status page")
    if status == _NOT_IMPLEMENTED:
        return StorageFailed(message, hint="the store lacks what is needed; ask its makers, or use another one")
    return StorageFailed(message, hint="see endpoint, region and bucket in the configuration")


def _reason(brief: str, debugging: str, status: int, code: str) -> str:
    words = [f"status {status}"] if status else []
    if code and code != str(status):
        words.append(code)
    said = _MESSAGE.search(brief)
    if said:
        words.append((said[1] or said[2]).strip().splitlines()[0])
    elif (causes := _CAUSE.findall(debugging)) and not status:
        words.append("".join(causes[-1]))
    elif not words:
        words.append(brief.strip().splitlines()[0] if brief.strip() else "the store gave no reason")
    return shown_text(hide_secrets(", ".join(words)))[:_SHOWN_CHARACTERS]


def _unanswered(message: str, debugging: str) -> PolarvaultError:
    if "InvalidCertificate" in debugging or "certificate" in message:
        return StorageFailed(message, hint="name the authority that signed it: ca_file in the configuration")
    return StoreUnreachable(message, hint="see endpoint, network, proxy and firewall; try curl -v ENDPOINT")


def _without_credentials(request: Request, reason: str) -> PolarvaultError:
    names = {
        "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        "gs": "GOOGLE_APPLICATION_CREDENTIALS",
        "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
    }
    return StoreForbidden(
        f"{request.text}: no credentials are given, and this machine's cloud has none for it",
        hint=f"set {names[request.address.partition(':')[0]]}, or name them in the configuration",
        detail=reason,
    )


def _forbidden(message: str, code: str, request: Request) -> PolarvaultError:
    if code in _TIMES:
        return StoreForbidden(message, hint="the clock of this machine is wrong: timedatectl")
    if code in _LOCKED:
        return StoreForbidden(message, hint="the object is locked; wait until its lock has ended")
    if code in ("SignatureDoesNotMatch", "InvalidAccessKeyId", "AuthenticationFailed", "InvalidSecurity"):
        return StoreForbidden(message, hint="see access key and secret key, and that they belong together")
    return StoreForbidden(message, hint=f"the credentials lack the right to {request.action} objects there")
