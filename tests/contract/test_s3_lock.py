"""Objects in a bucket with object lock: their retention is extended, never shortened, and holds."""

from __future__ import annotations

import urllib.error
import urllib.request
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from polarvault.errors import ObjectDiffers, ObjectMissing, StoreForbidden, StoreUnreachable
from polarvault.repository.format.names import ClusterNames
from polarvault.repository.reading.refs import read_refs
from polarvault.storage.objects.address import parse_address
from polarvault.storage.objects.cloud.s3 import open_s3
from polarvault.storage.objects.cloud.s3_lock import S3Account, S3Lock, signed_headers
from polarvault.storage.objects.write_once import WriteOnce, prove_write_once
from support.object_servers import BUCKET, ObjectServer
from support.ports import hold_port
from support.repositories import back_up, new_repository, restore, two_trees

pytestmark = pytest.mark.slow

LOCKED = "polarvault-locked"
_VERSIONING = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
_LOCK = (
    b"<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><DefaultRetention>"
    b"<Mode>COMPLIANCE</Mode><Days>1</Days></DefaultRetention></Rule></ObjectLockConfiguration>"
)


def _account(server: ObjectServer) -> S3Account:
    settings = server.settings
    return S3Account(f"{settings.endpoint}/{LOCKED}", "us-east-1", settings.access_key or "", settings.secret_key or "")


@pytest.fixture(scope="module")
def locked(seaweedfs: ObjectServer) -> ObjectServer:
    """A server with a bucket whose objects are locked for a day."""
    account = _account(seaweedfs)
    for parameters, body in (("", b""), ("?versioning=", _VERSIONING), ("?object-lock=", _LOCK)):
        url = account.endpoint + parameters
        headers = signed_headers(account, "PUT", url, body, datetime.now(UTC))
        request = urllib.request.Request(url, data=body or None, headers=dict(headers), method="PUT")
        try:
            urllib.request.urlopen(request, timeout=30).close()
        except urllib.error.HTTPError as problem:
            # Another worker has made it.
            problem.close()
            if problem.code != 409:
                raise
    return seaweedfs


def test_retention_is_extended_and_never_shortened(locked: ObjectServer) -> None:
    store = WriteOnce(open_s3(parse_address(f"s3://{LOCKED}/folder/a"), locked.settings, {}))
    lock = S3Lock(_account(locked), f"s3://{LOCKED}")
    store.put_new("packs/1", [b"content"])
    found = lock.read("folder/a/packs/1")
    assert found is not None
    mode, first = found
    assert mode == "COMPLIANCE"
    assert first < datetime.now(UTC) + timedelta(days=2)
    store.extend_retention("packs/1", datetime.now(UTC) + timedelta(days=9))
    _, second = lock.read("folder/a/packs/1") or ("", first)
    assert second > first + timedelta(days=7)
    store.extend_retention("packs/1", datetime.now(UTC) + timedelta(days=3))
    assert lock.read("folder/a/packs/1") == (mode, second)
    assert store.get("packs/1", most_bytes=10) == b"content"


def test_what_a_backup_is_made_of_is_locked_before_it_is_recorded(locked: ObjectServer) -> None:
    store = WriteOnce(open_s3(parse_address(f"s3://{LOCKED}/folder/d"), locked.settings, {}))
    lock = S3Lock(_account(locked), f"s3://{LOCKED}")
    repository = new_repository(store)
    first, second = two_trees()
    full = back_up(repository, first).label
    packs = [one.name for one in store.list_objects(f"clusters/shop/packs/{full}")]
    before = {name: lock.read(f"folder/d/{name}") for name in packs}
    assert all(found is not None and found[1] < datetime.now(UTC) + timedelta(days=2) for found in before.values())
    repository.lock_s = 20 * 86_400
    label = back_up(repository, second, parent=full, minutes=1).label
    named = read_refs(store, repository.codec, ClusterNames("shop"), label).named
    assert {one for one, _ in named} == {full, label}
    objects = [ClusterNames("shop").pack(*place) for place in named]
    objects += [f"clusters/shop/backups/{label}/{part}" for part in ("root", "refs", "manifest")]
    for name in objects:
        found = lock.read(f"folder/d/{name}")
        assert found is not None
        assert found[1] > datetime.now(UTC) + timedelta(days=19)
    assert restore(repository, label) == second


def test_a_locked_bucket_replaces_nothing(locked: ObjectServer) -> None:
    store = WriteOnce(open_s3(parse_address(f"s3://{LOCKED}/folder/b"), locked.settings, {}))
    prove_write_once(store, "probes/1")
    store.put_new("states/1", [b"first"])
    store.put_new("states/1", [b"first"])
    with pytest.raises(ObjectDiffers):
        store.put_new("states/1", [b"second"])


def test_nothing_is_done_where_nothing_is_locked(seaweedfs: ObjectServer) -> None:
    store = open_s3(parse_address(f"s3://{BUCKET}/unlocked"), seaweedfs.settings, {})
    store.put_new("packs/1", [b"content"])
    store.extend_retention("packs/1", datetime.now(UTC) + timedelta(days=9))
    store.delete("packs/1")


def test_what_cannot_be_extended_is_told(locked: ObjectServer) -> None:
    until = datetime.now(UTC) + timedelta(days=9)
    address = parse_address(f"s3://{LOCKED}/folder/c")
    with pytest.raises(ObjectMissing, match="packs/none"):
        open_s3(address, locked.settings, {}).extend_retention("packs/none", until)
    with pytest.raises(StoreForbidden, match="SignatureDoesNotMatch"):
        open_s3(address, replace(locked.settings, secret_key="mistyped"), {}).extend_retention("packs/1", until)
    with pytest.raises(StoreForbidden, match="role of this machine"):
        open_s3(address, replace(locked.settings, access_key=None, secret_key=None), {}).extend_retention("a/1", until)
    owner = type("Owner", (), {})()
    nobody = replace(locked.settings, endpoint=f"http://127.0.0.1:{hold_port(owner)}")
    with pytest.raises(StoreUnreachable, match="refused"):
        open_s3(address, nobody, {}).extend_retention("packs/1", until)


def test_all_headers_are_signed_and_none_tells_the_secret() -> None:
    account = S3Account("https://bucket.s3.amazonaws.com", "us-east-1", "AKIDEXAMPLE", "secret", session_token="lent")
    now = datetime(2026, 11, 26, 9, 40, tzinfo=UTC)
    headers = signed_headers(account, "PUT", "https://bucket.s3.amazonaws.com/a/b?retention=", b"<x/>", now)
    assert headers["x-amz-date"] == "20261126T094000Z"
    assert headers["x-amz-security-token"] == "lent"
    assert "AKIDEXAMPLE/20261126/us-east-1/s3/aws4_request" in headers["Authorization"]
    signed = "SignedHeaders=content-md5;content-type;host;x-amz-content-sha256;x-amz-date;x-amz-security-token"
    assert signed in headers["Authorization"]
    assert "secret" not in str(headers).replace("x-amz-security-token", "")
