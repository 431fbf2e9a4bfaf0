"""Makes and reads the objects of one repository: header, body and trailer, with the repository's id and keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from polarvault.errors import ObjectDamaged
from polarvault.model import limits
from polarvault.model.dataclass import dataclass
from polarvault.repository.format import documents, frame
from polarvault.repository.format.envelope import Encoder, decode
from polarvault.repository.format.frame import Buffer, Header, Kind
from polarvault.repository.format.sealing import Envelopes, Sealer

_LEVEL = 1


@dataclass(frozen=True, slots=True)
class Document:
    """What was read: the clear part, and the raw bytes of the sealed one, b"" if there is none."""

    clear: dict[str, Any]
    sealed: memoryview


@dataclass(frozen=True, slots=True)
class Codec:
    """What all objects of a repository have in common."""

    repository_id: bytes
    sealer: Sealer

    def new_header(self, kind: Kind) -> Header:
        """Return the header of a new object."""
        return Header(kind, self.sealer.epoch, self.repository_id, self.sealer.new_salt())

    def envelopes(self, name: str, header: Header) -> Envelopes:
        """Return what seals and opens the envelopes of an object."""
        return self.sealer.envelopes(name, header)

    def close(self, name: str, header: Header, body: Sequence[Buffer]) -> tuple[list[Buffer], bytes]:
        """Return all parts of an object, and the first hash of its trailer."""
        parts: list[Buffer] = [header.encode(), *body]
        digest = frame.digest_of(name, parts)
        return [*parts, digest, self.sealer.authenticate(header.epoch, digest)], digest

    def open(self, name: str, kinds: Sequence[Kind], content: Buffer) -> tuple[Header, memoryview]:
        """Return header and body of a whole object, of which both hashes were compared."""
        view = memoryview(content)
        header = self.open_header(name, kinds, view)
        body, digest, mac = frame.split_trailer(name, header, view)
        if mac != self.sealer.authenticate(header.epoch, digest):
            raise ObjectDamaged(
                f'"{name}" was not made by somebody who has the key',
                hint="treat the repository as attacked: keep it as it is, and restore from another copy",
            )
        return header, body

    def open_header(self, name: str, kinds: Sequence[Kind], content: Buffer) -> Header:
        """Return the header of an object that must be of this repository and of one of the kinds."""
        header = frame.parse_header(name, content)
        frame.check_header(
            name, header, kinds=kinds, repository_id=self.repository_id, encrypted=bool(self.sealer.epoch)
        )
        return header

    def document(self, kind: Kind, name: str, clear: Mapping[str, Any], sealed: Buffer = b"") -> list[Buffer]:
        """Return the parts of a document."""
        header = self.new_header(kind)
        envelope: Buffer = b""
        if len(sealed):
            envelope = self.envelopes(name, header).seal(0, Encoder(_LEVEL).encode(sealed))
        parts, _ = self.close(name, header, documents.encode_body(documents.encode_json(clear), envelope))
        return parts

    def read_document(
        self, kind: Kind, name: str, content: Buffer, *, most_bytes: int = limits.REPOSITORY_JSON_BYTES
    ) -> Document:
        """Read a whole document; its sealed part may have most_bytes."""
        header, body = self.open(name, [kind], content)
        clear, envelope = documents.parse_body(name, body)
        sealed = memoryview(b"")
        if len(envelope):
            opened = self.envelopes(name, header).open(0, envelope)
            sealed = decode(opened, most_bytes=most_bytes, what=f'"{name}"')
        return Document(documents.parse_json(clear, f'"{name}"'), sealed)
