"""What S3, Google Cloud Storage and Azure have in common: obstore's functions, seen as an `ObjectStore`.

obstore's own retries are off: `retrying` does them, and counts them. A listing asks for pages from its beginning and
leaves out what is not wanted here, because the stores do not agree on what "after a name" means (SeaweedFS takes a name
that is also a folder's for the whole folder). obstore waits without looking at signals, so in the main thread it is
called apart: whoever presses Ctrl-C is not kept for minutes. A write that goes on then makes a whole object or none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

from polarvault.errors import ObjectMissing, ObjectTruncated, PolarvaultError, StoreUnreachable
from polarvault.storage.objects.cloud.errors import Request, explain
from polarvault.storage.objects.model import (
    Meter,
    RequestCounts,
    StoredObject,
    check_folder,
    check_object_name,
    is_object_name,
)
from polarvault.storage.objects.ranges import cut_ranges, join_ranges
from polarvault.storage.objects.refusals import too_long
from polarvault.storage.objects.settings import StoreSettings
from polarvault.storage.waiting import call_apart

if TYPE_CHECKING:
    from obstore.store import AzureStore, ClientConfig, GCSStore, RetryConfig, S3Store

    Backend = S3Store | GCSStore | AzureStore

_CONNECT_TIMEOUT = timedelta(seconds=10)
# A pack of 32 MiB through 1 Mbit/s takes nearly as long; a connection that has died without a word is given up then.
_REQUEST_TIMEOUT = timedelta(seconds=300)
_PAGE_OBJECTS = 1000


def client_options(settings: StoreSettings, endpoint: str | None) -> ClientConfig:
    """Return how obstore's HTTP client is to behave. Raise OSError if the file of certificates cannot be read."""
    options: ClientConfig = {
        "connect_timeout": _CONNECT_TIMEOUT,
        "timeout": _REQUEST_TIMEOUT,
        # Only to an endpoint that says so itself.
        "allow_http": endpoint is not None and endpoint.startswith("http://"),
        "user_agent": "polarvault",
    }
    if settings.ca_file is not None:
        with open(settings.ca_file, "rb") as opened:
            options["root_certificate"] = opened.read()
    return options


def no_retries() -> RetryConfig:
    """Return what turns obstore's own retries off."""
    return {"max_retries": 0, "retry_timeout": _REQUEST_TIMEOUT}


class CloudStore:
    """Objects in a bucket, through obstore."""

    def __init__(
        self,
        backend: Backend,
        address: str,
        *,
        storage_class: str | None = None,
        extend_retention: Callable[[str, datetime], None] | None = None,
    ) -> None:
        self._backend = backend
        self._address = address
        self._extend_retention = extend_retention
        self._storage_class = storage_class
        self._meter = Meter()

    @property
    def address(self) -> str:
        """Scheme, bucket and folder."""
        return self._address

    def counts(self) -> RequestCounts:
        """Return what has been asked of the store so far."""
        return self._meter.read()

    def close(self) -> None:
        """Connections are obstore's, and end with the process."""

    def put_new(self, name: str, views: Sequence[bytes | memoryview], *, from_reserve: bool = False) -> None:
        """Write a new object; ObjectExists if something has the name."""
        import obstore

        check_object_name(name)
        size = sum(map(len, views))
        self._meter.add(puts=1)
        with self._explained("write", name):
            call_apart(
                lambda: obstore.put(
                    self._backend,
                    name,
                    views[0] if len(views) == 1 else list(views),
                    mode="create",
                    attributes={"Storage-Class": self._storage_class} if self._storage_class else None,
                )
            )
        self._meter.add(sent_bytes=size)

    def get(self, name: str, *, most_bytes: int) -> bytes:
        """Return a whole object."""
        import obstore

        check_object_name(name)
        self._meter.add(gets=1)
        with self._explained("read", name):
            answer = call_apart(lambda: obstore.get(self._backend, name))
            size = answer.meta["size"]
            if size > most_bytes:
                raise too_long(name, self._address, size, most_bytes)
            content = bytes(call_apart(answer.bytes))
        self._meter.add(received_bytes=len(content))
        if len(content) != size:
            raise StoreUnreachable(
                f'could not read "{name}" in {self._address}: {len(content)} of {size} bytes came',
                hint="run the command again; see what lies between this machine and the store",
            )
        return content

    def get_ranges(self, name: str, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        """Return the bytes of each (offset, length)."""
        import obstore

        check_object_name(name)
        found = [memoryview(b"")] * len(ranges)
        for read in join_ranges(ranges):
            if read.length == 0:
                continue
            self._meter.add(gets=1)
            with self._explained("read", name) as request:
                request.is_range = True
                wanted = partial(obstore.get_range, self._backend, name, start=read.offset, length=read.length)
                content = memoryview(call_apart(wanted)).cast("B")
            self._meter.add(received_bytes=len(content))
            if len(content) != read.length:
                raise self._truncated(name, read.offset, read.length)
            for number, part in cut_ranges(ranges, read, content):
                found[number] = part
        return found

    def stat(self, name: str) -> StoredObject:
        """Return size and time of an object."""
        import obstore

        check_object_name(name)
        self._meter.add(stats=1)
        with self._explained("look at", name):
            answer = call_apart(lambda: obstore.head(self._backend, name))
        return StoredObject(name, answer["size"], _in_utc(answer["last_modified"]))

    def list_objects(self, folder: str = "", *, after: str = "") -> Iterator[StoredObject]:
        """Yield every object below a folder."""
        import obstore

        check_folder(folder)
        with self._explained("list", folder):
            pages = obstore.list(self._backend, folder or None, chunk_size=_PAGE_OBJECTS)
        while True:
            self._meter.add(lists=1)
            with self._explained("list", folder):
                page = call_apart(lambda: next(pages, None))
            if page is None:
                return
            for one in page:
                if one["path"] > after and is_object_name(one["path"]):
                    yield StoredObject(one["path"], one["size"], _in_utc(one["last_modified"]))
            if len(page) < _PAGE_OBJECTS:
                return

    def list_folders(self, folder: str = "") -> list[str]:
        """Return the last words of the folders directly in a folder."""
        import obstore

        check_folder(folder)
        self._meter.add(lists=1)
        with self._explained("list", folder):
            answer = call_apart(lambda: obstore.list_with_delimiter(self._backend, folder or None))
        return sorted(path.rpartition("/")[2] for path in answer["common_prefixes"] if is_object_name(path))

    def delete(self, name: str) -> None:
        """Remove an object; a success if there is none."""
        import obstore

        check_object_name(name)
        self._meter.add(deletes=1)
        try:
            with self._explained("remove", name):
                call_apart(lambda: obstore.delete(self._backend, name))
        except ObjectMissing:
            return

    def extend_retention(self, name: str, until: datetime) -> None:
        """See that nobody can remove an object before a time; does nothing outside of S3."""
        check_object_name(name)
        if self._extend_retention is not None:
            self._meter.add(puts=1)
            self._extend_retention(name, until)

    @contextmanager
    def _explained(self, action: str, name: str) -> Iterator[Request]:
        request = Request(action, name, self._address)
        try:
            yield request
        except PolarvaultError:
            raise
        except Exception as problem:
            # obstore raises its own classes, OSErrors and ValueErrors, according to the store and the request.
            error = explain(problem, request)
            if isinstance(error, ObjectTruncated):
                error = self._truncated(name, None, None)
            raise error from problem

    def _truncated(self, name: str, offset: int | None, length: int | None) -> PolarvaultError:
        wanted = f"{length} from {offset} on" if offset is not None else "more"
        return ObjectTruncated(
            f'"{name}" in {self._address} has {self.stat(name).size_bytes} bytes, and {wanted} were to be read',
            hint="get the object back from another copy; keep this one until it is known why",
        )


def _in_utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC)
