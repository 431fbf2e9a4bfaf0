"""What goes wrong between us and an object store: each case ends in the right error, or is mended by another try."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from polarvault.errors import (
    IntegrityError,
    ObjectDiffers,
    ObjectExists,
    ObjectMissing,
    PolarvaultError,
    StorageFailed,
    StoreForbidden,
    StoreFull,
    StoreUnreachable,
    UsageError,
)
from polarvault.storage.objects.address import parse_address
from polarvault.storage.objects.cloud.google import open_google
from polarvault.storage.objects.cloud.s3 import open_s3
from polarvault.storage.objects.opening import open_store
from polarvault.storage.objects.settings import StoreSettings
from polarvault.storage.objects.store import ObjectStore
from polarvault.storage.objects.write_once import prove_write_once
from support.bucket_server import BucketServer, Trouble, bucket_server
from support.object_servers import BUCKET, ObjectServer
from support.ports import hold_port

_KEYS = StoreSettings(access_key="any", secret_key="any")


def _s3(endpoint: str) -> ObjectStore:
    return open_s3(parse_address("s3://polarvault/some/folder"), replace(_KEYS, endpoint=endpoint), {})


def _google(endpoint: str) -> ObjectStore:
    address = parse_address("gs://polarvault/some/folder")
    return open_google(address, StoreSettings(), {"STORAGE_EMULATOR_HOST": endpoint})


@pytest.fixture(params=[_s3, _google], ids=["s3", "google"])
def bare(request: pytest.FixtureRequest, bucket: BucketServer) -> ObjectStore:
    """A store without wrappers before the server that makes trouble."""
    make: Callable[[str], ObjectStore] = request.param
    return make(bucket.endpoint)


@pytest.fixture
def whole(bucket: BucketServer) -> ObjectStore:
    """The store as commands get it."""
    settings = replace(_KEYS, endpoint=bucket.endpoint, deadline_s=20)
    return open_store("s3://polarvault/some/folder", settings, environment={})


@pytest.mark.parametrize(
    ("trouble", "error"),
    [
        (Trouble.UNAVAILABLE, StoreUnreachable),
        (Trouble.INTERNAL, StoreUnreachable),
        (Trouble.DROPPED, StoreUnreachable),
        (Trouble.ANSWER_LOST, StoreUnreachable),
        (Trouble.NO_SPACE, StoreFull),
        (Trouble.NOT_IMPLEMENTED, StorageFailed),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_write_that_fails_is_told_by_its_cause(
    bare: ObjectStore, bucket: BucketServer, trouble: Trouble, error: type[PolarvaultError]
) -> None:
    bucket.troubles.append(("PUT", trouble))
    with pytest.raises(error, match="could not write") as caught:
        bare.put_new("packs/1", [b"content"])
    assert type(caught.value) is error
    assert "packs/1" in caught.value.message
    assert bare.address in caught.value.message
    assert caught.value.hint
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("trouble", [Trouble.UNAVAILABLE, Trouble.DROPPED, Trouble.CUT], ids=lambda one: one.name)
def test_a_read_that_breaks_off_is_worth_another_try(bare: ObjectStore, bucket: BucketServer, trouble: Trouble) -> None:
    bare.put_new("packs/1", [b"0123456789" * 1000])
    bucket.troubles.append(("GET", trouble))
    with pytest.raises(StoreUnreachable, match="could not read"):
        bare.get("packs/1", most_bytes=10_000)
    bucket.troubles.append(("GET", trouble))
    with pytest.raises(StoreUnreachable, match="could not read"):
        bare.get_ranges("packs/1", [(10, 5000)])


def test_an_object_that_grew_is_not_read(bare: ObjectStore, bucket: BucketServer) -> None:
    bare.put_new("polarvault.json", [b"0123456789"])
    bucket.troubles.append(("GET", Trouble.MANY_BYTES))
    with pytest.raises(IntegrityError, match="has 10000 bytes"):
        bare.get("polarvault.json", most_bytes=10)


@pytest.mark.parametrize(
    "trouble",
    [Trouble.UNAVAILABLE, Trouble.INTERNAL, Trouble.DROPPED, Trouble.ANSWER_LOST, Trouble.CONFLICT],
    ids=lambda one: one.name,
)
def test_a_write_in_trouble_ends_in_one_object(whole: ObjectStore, bucket: BucketServer, trouble: Trouble) -> None:
    bucket.troubles += [("PUT", trouble)] * 2
    whole.put_new("packs/1", [b"con", b"tent"])
    assert bucket.objects == {"some/folder/packs/1": b"content"}
    assert whole.counts().puts == 3 or trouble is Trouble.ANSWER_LOST


def test_reads_and_listings_in_trouble_are_repeated(whole: ObjectStore, bucket: BucketServer) -> None:
    whole.put_new("packs/1", [b"content"])
    for trouble in (Trouble.UNAVAILABLE, Trouble.DROPPED, Trouble.CUT):
        bucket.troubles.append(("GET", trouble))
        assert whole.get("packs/1", most_bytes=10) == b"content"
        bucket.troubles.append(("GET", trouble))
        assert whole.get_ranges("packs/1", [(0, 3)]) == [b"con"]
    bucket.troubles += [("GET", Trouble.UNAVAILABLE), ("GET", Trouble.DROPPED)]
    assert [one.name for one in whole.list_objects()] == ["packs/1"]
    bucket.troubles.append(("DELETE", Trouble.INTERNAL))
    whole.delete("packs/1")
    assert bucket.objects == {}


def test_a_conflict_does_not_hide_that_others_were_first(whole: ObjectStore, bucket: BucketServer) -> None:
    whole.put_new("states/1", [b"first"])
    bucket.troubles.append(("PUT", Trouble.CONFLICT))
    with pytest.raises(ObjectDiffers):
        whole.put_new("states/1", [b"second"])
    assert bucket.objects == {"some/folder/states/1": b"first"}


def test_a_store_that_ignores_the_condition_is_found_out(whole: ObjectStore, bucket: BucketServer) -> None:
    bucket.troubles += [("PUT", Trouble.OVERWRITES)] * 2
    with pytest.raises(StorageFailed, match="replaces objects"):
        prove_write_once(whole, "probes/1")
    bucket.troubles.append(("PUT", Trouble.NOT_IMPLEMENTED))
    with pytest.raises(StorageFailed, match="NotImplemented") as caught:
        prove_write_once(whole, "probes/2")
    assert "lacks" in (caught.value.hint or "")


# Real servers


@pytest.mark.slow
def test_credentials_that_may_only_read_are_told(seaweedfs: ObjectServer) -> None:
    writer = open_s3(parse_address(f"s3://{BUCKET}/errors"), seaweedfs.settings, {})
    reader = open_s3(parse_address(f"s3://{BUCKET}/errors"), seaweedfs.reader, {})
    writer.put_new("a/1", [b"x"])
    assert reader.get("a/1", most_bytes=1) == b"x"
    with pytest.raises(StoreForbidden, match="could not write") as caught:
        reader.put_new("a/2", [b"x"])
    assert "right to write" in (caught.value.hint or "")
    with pytest.raises(StoreForbidden, match="could not remove"):
        reader.delete("a/1")
    assert writer.get("a/1", most_bytes=1) == b"x"


@pytest.mark.slow
def test_a_wrong_secret_is_told_and_not_shown(seaweedfs: ObjectServer) -> None:
    settings = replace(seaweedfs.settings, secret_key="mistyped")
    store = open_store(f"s3://{BUCKET}/errors", settings, environment={})
    for ask in (
        lambda: store.put_new("a/3", [b"x"]),
        lambda: store.stat("a/3"),
        lambda: store.delete("a/3"),
        lambda: list(store.list_objects()),
        lambda: store.list_folders(),
    ):
        with pytest.raises(StoreForbidden) as caught:
            ask()
        assert "mistyped" not in f"{caught.value.message} {caught.value.hint} {caught.value.detail}"


@pytest.mark.slow
def test_a_bucket_that_is_not_there_is_told(seaweedfs: ObjectServer) -> None:
    store = open_s3(parse_address("s3://no-such-bucket-here"), seaweedfs.reader, {})
    with pytest.raises((StorageFailed, ObjectMissing)) as caught:
        store.get("a/1", most_bytes=1)
    assert "no-such-bucket-here" in caught.value.message


@pytest.mark.slow
def test_environment_variables_are_enough(seaweedfs: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {
        "AWS_ENDPOINT_URL": seaweedfs.settings.endpoint or "",
        "AWS_ACCESS_KEY_ID": seaweedfs.settings.access_key or "",
        "AWS_SECRET_ACCESS_KEY": seaweedfs.settings.secret_key or "",
        # Another tool's; the address says where.
        "AWS_BUCKET": "elsewhere",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    store = open_store(f"s3://{BUCKET}/environment")
    store.put_new("a/1", [b"x"])
    assert [one.name for one in store.list_objects()] == ["a/1"]


# No server at all


def test_nobody_listens() -> None:
    owner = type("Owner", (), {})()
    store = _s3(f"http://127.0.0.1:{hold_port(owner)}")
    with pytest.raises(StoreUnreachable, match="Connection refused") as caught:
        store.get("a/1", most_bytes=1)
    assert "firewall" in (caught.value.hint or "")


def test_a_name_that_does_not_resolve() -> None:
    with pytest.raises(StoreUnreachable, match=r"could not read"):
        _s3("http://no-such-host.invalid").get("a/1", most_bytes=1)


def test_plain_http_where_https_is_expected(bucket: BucketServer) -> None:
    with pytest.raises(StorageFailed, match="could not read"):
        _s3(bucket.endpoint.replace("http:", "https:")).get("a/1", most_bytes=1)


@pytest.mark.parametrize(
    ("settings", "environment", "said"),
    [
        ({"access_key": "only-half"}, {}, "SecretAccessKey"),
        ({"ca_file": "MADE"}, {}, "No certificates"),
    ],
)
def test_settings_that_cannot_work_are_told_before_anything_is_asked(
    tmp_path: Path, settings: dict[str, str], environment: Mapping[str, str], said: str
) -> None:
    (tmp_path / "ca").write_text("nonsense")
    values = {name: value.replace("MADE", str(tmp_path / "ca")) for name, value in settings.items()}
    with pytest.raises(UsageError, match=said):
        open_store("s3://polarvault", StoreSettings(**values), environment=environment)  # type: ignore[arg-type]


def test_a_missing_file_of_certificates_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageFailed, match="read the certificates"):
        open_store("s3://polarvault", replace(_KEYS, ca_file=str(tmp_path / "none")), environment={})


@pytest.mark.parametrize(
    "values",
    [
        {"endpoint": "minio:9000"},
        {"endpoint": "https://user:secret@minio"},
        {"endpoint": "https://minio/?x=1"},
        {"endpoint": "https://minio:notaport"},
        {"storage_class": "DEEP_ARCHIVE"},
        {"storage_class": "STANDARD IA"},
    ],
)
def test_values_that_cannot_be_meant_are_refused(values: dict[str, str]) -> None:
    with pytest.raises(UsageError) as caught:
        StoreSettings(**values)  # type: ignore[arg-type]
    assert "secret" not in caught.value.message


def test_secrets_are_not_in_what_is_printed_of_settings() -> None:
    assert "top-secret" not in repr(StoreSettings(secret_key="top-secret", account_key="top-secret"))


def test_an_interruption_does_not_wait_for_a_store_that_is_silent() -> None:
    script = (
        "import os, signal, socket, threading\n"
        "from polarvault.storage.objects.opening import open_store\n"
        "from polarvault.storage.objects.settings import StoreSettings\n"
        "silent = socket.create_server(('127.0.0.1', 0))\n"
        "endpoint = f'http://127.0.0.1:{silent.getsockname()[1]}'\n"
        "settings = StoreSettings(endpoint=endpoint, access_key='a', secret_key='b')\n"
        "store = open_store('s3://polarvault', settings)\n"
        "def interrupt():\n"
        "    silent.accept()\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "threading.Thread(target=interrupt).start()\n"
        "try:\n"
        "    store.get('a/1', most_bytes=1)\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted', flush=True)\n"
    )
    # The request itself would be waited for five minutes.
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert ran.stdout == "interrupted\n"


def _certificate(path: Path) -> tuple[Path, Path]:
    """Write a self-signed certificate for 127.0.0.1 with its key, and the certificate alone."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "polarvault test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    public = certificate.public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (path / "both.pem").write_bytes(public + secret)
    (path / "public.pem").write_bytes(public)
    return path / "both.pem", path / "public.pem"


def test_an_authority_of_ones_own_is_trusted_when_it_is_named(tmp_path: Path) -> None:
    both, public = _certificate(tmp_path)
    with bucket_server(both) as server:
        address, settings = parse_address("s3://polarvault/tls"), replace(_KEYS, endpoint=server.endpoint)
        trusting = open_s3(address, replace(settings, ca_file=str(public)), {})
        trusting.put_new("a/1", [b"content"])
        assert trusting.get("a/1", most_bytes=10) == b"content"
        stranger = open_s3(address, settings, {})
        with pytest.raises(StorageFailed, match=r"could not read .*ertificate") as caught:
            stranger.get("a/1", most_bytes=10)
        # It would be refused again.
        assert not isinstance(caught.value, StoreUnreachable)
        assert "ca_file" in (caught.value.hint or "")


def test_exists_is_told_apart_from_other_conflicts(bare: ObjectStore) -> None:
    bare.put_new("a/1", [b"x"])
    with pytest.raises(ObjectExists):
        bare.put_new("a/1", [b"x"])
