"""A small object store on loopback that fails as real ones do, and as none should.

It speaks as much of the protocol that S3 and Google Cloud Storage share as the program uses (their conditional creates
differ by a header), checks no signature, and keeps objects in memory. No emulator of Google's that can be installed
from a registry knows that header: fake-gcs-server answers "invalid uploadType".
"""

from __future__ import annotations

import re
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import formatdate
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


class Trouble(Enum):
    """What happens to a request."""

    UNAVAILABLE = "503 SlowDown"
    INTERNAL = "500 InternalError"
    DROPPED = "the connection is closed without an answer, nothing is done"
    ANSWER_LOST = "done, and the connection is closed without an answer"
    CUT = "the answer ends in the middle of the content"
    CONFLICT = "409 ConditionalRequestConflict, nothing is done"
    NOT_IMPLEMENTED = "501 NotImplemented"
    NO_SPACE = "507 InsufficientStorage"
    OVERWRITES = "the condition is ignored"
    MANY_BYTES = "a longer object than was asked about"


@dataclass(slots=True)
class BucketServer:
    """What the server holds and does; `troubles` are used up one after the other by requests of their method."""

    objects: dict[str, bytes]
    times: dict[str, float]
    troubles: list[tuple[str, Trouble]]
    requests: list[str]
    lock: threading.Lock
    endpoint: str = ""

    def next_trouble(self, method: str) -> Trouble | None:
        """Take the first trouble that is meant for a method."""
        with self.lock:
            for number, (wanted, trouble) in enumerate(self.troubles):
                if wanted == method:
                    del self.troubles[number]
                    return trouble
        return None


@contextmanager
def bucket_server(certificate: Path | None = None) -> Iterator[BucketServer]:
    """Serve until the block ends; with TLS if a file with a certificate and its key is given."""
    state = BucketServer({}, {}, [], [], threading.Lock())
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"state": state}))
    server.daemon_threads = True
    scheme = "http"
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        scheme = "https"
    state.endpoint = f"{scheme}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


_STATUSES = {
    Trouble.UNAVAILABLE: (503, "SlowDown"),
    Trouble.INTERNAL: (500, "InternalError"),
    Trouble.CONFLICT: (409, "ConditionalRequestConflict"),
    Trouble.NOT_IMPLEMENTED: (501, "NotImplemented"),
    Trouble.NO_SPACE: (507, "InsufficientStorage"),
}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Small answers at once: a header and a body are two writes.
    wbufsize = -1
    disable_nagle_algorithm = True
    state: ClassVar[BucketServer]

    def handle(self) -> None:
        # A client that does not trust us closes in the middle of the handshake.
        with suppress(ssl.SSLError, ConnectionError):
            super().handle()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        trouble = self._trouble()
        if trouble is not None and trouble not in (Trouble.ANSWER_LOST, Trouble.OVERWRITES):
            return
        conditional = self.headers.get("If-None-Match") == "*" or self.headers.get("x-goog-if-generation-match") == "0"
        with self.state.lock:
            exists = self._name() in self.state.objects
            if not exists or not conditional or trouble is Trouble.OVERWRITES:
                self.state.objects[self._name()] = body
                self.state.times[self._name()] = time.time()
        if trouble is Trouble.ANSWER_LOST:
            self.close_connection = True
        elif exists and conditional and trouble is None:
            self._error(412, "PreconditionFailed")
        else:
            self._answer(200, b"", {"ETag": '"x"'})

    def do_GET(self) -> None:
        trouble = self._trouble()
        if trouble is not None and trouble not in (Trouble.CUT, Trouble.MANY_BYTES):
            return
        query = parse_qs(urlsplit(self.path).query)
        if "list-type" in query:
            self._list({name: values[0] for name, values in query.items()})
            return
        content = self.state.objects.get(self._name())
        if content is None:
            self._error(404, "NoSuchKey")
            return
        if trouble is Trouble.MANY_BYTES:
            content *= 1000
        status, headers = 200, {"ETag": '"x"', "Last-Modified": formatdate(self.state.times[self._name()], usegmt=True)}
        if (wanted := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))) is not None:
            first, last = int(wanted[1]), min(int(wanted[2]), len(content) - 1)
            if first >= len(content):
                self._error(416, "InvalidRange")
                return
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content, status = content[first : last + 1], 206
        self._answer(status, content, headers, cut=trouble is Trouble.CUT)

    def do_HEAD(self) -> None:
        if self._trouble() is not None:
            return
        content = self.state.objects.get(self._name())
        if content is None:
            self._error(404, "NoSuchKey")
        else:
            self._answer(
                200, content, {"ETag": '"x"', "Last-Modified": formatdate(self.state.times[self._name()], usegmt=True)}
            )

    def do_DELETE(self) -> None:
        if self._trouble() is not None:
            return
        with self.state.lock:
            found = self.state.objects.pop(self._name(), None)
        # Google's answer; S3 says 204 in any case.
        if found is None:
            self._error(404, "NoSuchKey")
        else:
            self._answer(204, b"", {})

    def _trouble(self) -> Trouble | None:
        self.state.requests.append(f"{self.command} {self.path}")
        trouble = self.state.next_trouble(self.command)
        if trouble is Trouble.DROPPED:
            self.close_connection = True
        elif trouble in _STATUSES:
            self._error(*_STATUSES[trouble])
        return trouble

    def _name(self) -> str:
        return unquote(urlsplit(self.path).path).lstrip("/").partition("/")[2]

    def _list(self, query: dict[str, str]) -> None:
        prefix, page = query.get("prefix", ""), int(query.get("max-keys", "1000"))
        entries: dict[str, str] = {}
        for name, content in sorted(self.state.objects.items()):
            rest = name.removeprefix(prefix)
            if not name.startswith(prefix):
                continue
            if "delimiter" in query and "/" in rest:
                folder = prefix + rest.partition("/")[0] + "/"
                entries[folder] = f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>"
            else:
                modified = datetime.fromtimestamp(self.state.times[name], UTC).isoformat()
                entries[name] = (
                    f"<Contents><Key>{escape(name)}</Key><Size>{len(content)}</Size>"
                    f'<LastModified>{modified}</LastModified><ETag>"x"</ETag></Contents>'
                )
        start = query.get("continuation-token", query.get("start-after", ""))
        names = [name for name in entries if name > start]
        more = f"<NextContinuationToken>{escape(names[page - 1])}</NextContinuationToken>" if len(names) > page else ""
        content = "".join(entries[name] for name in names[:page])
        self._answer(200, f"<ListBucketResult>{content}{more}</ListBucketResult>".encode(), {})

    def _error(self, status: int, code: str) -> None:
        body = (
            b"" if self.command == "HEAD" else f"<Error><Code>{code}</Code><Message>as told</Message></Error>".encode()
        )
        self._answer(status, body, {})

    def _answer(self, status: int, content: bytes, headers: dict[str, str], *, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        self.close_connection = self.close_connection or cut
