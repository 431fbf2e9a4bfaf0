"""Keys as objects `keys/KEY-ID`: what `keys.ring` asks for, in a store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from polarvault.errors import IntegrityError, ObjectMissing, RepositoryNewer
from polarvault.model import limits
from polarvault.model.dataclass import dataclass
from polarvault.repository.format import documents, frame, names
from polarvault.repository.format.codec import Codec
from polarvault.repository.format.frame import Kind
from polarvault.storage.objects.store import ObjectStore


@dataclass(frozen=True, slots=True)
class StoredKeys:
    """The keys of one repository. Without a codec, that is before it has been opened, they can only be read."""

    store: ObjectStore
    repository_id: bytes
    codec: Codec | None = None

    def ids(self) -> Iterable[str]:
        """Yield what stands behind `keys/` in every name."""
        for one in self.store.list_objects(names.KEYS):
            yield one.name.removeprefix(f"{names.KEYS}/")

    def read(self, key_id: str) -> Mapping[str, Any] | None:
        """Return a document; its second hash can be compared only with the key that it holds.

        None for what another repository has: whoever makes one writes keys first, and may be killed before the rest.
        """
        name = f"{names.KEYS}/{key_id}"
        try:
            content = memoryview(self.store.get(name, most_bytes=limits.REPOSITORY_JSON_BYTES))
        except ObjectMissing:
            return None  # Removed since it was listed.
        header = frame.parse_header(name, content)
        if header.repository_id != self.repository_id:
            return None
        frame.check_header(name, header, kinds=[Kind.KEY], repository_id=self.repository_id, encrypted=True)
        body, _, _ = frame.split_trailer(name, header, content)
        clear, _ = documents.parse_body(name, body)
        return documents.parse_json(clear, f'"{name}"')

    def damaged(self) -> Iterator[str]:
        """Yield what is wrong with keys of this repository: both hashes are compared, which needs an open one."""
        if self.codec is None:
            raise ValueError("the repository is not open")
        for one in self.store.list_objects(names.KEYS):
            try:
                content = self.store.get(one.name, most_bytes=limits.REPOSITORY_JSON_BYTES)
                header = frame.parse_header(one.name, content)
                # The first hash before the id: a bit that flipped there makes no other repository's of it.
                frame.split_trailer(one.name, header, memoryview(content))
                if header.repository_id != self.repository_id:
                    continue  # A killed init's, of a repository that never came to be.
                self.codec.open(one.name, [Kind.KEY], content)
            except (IntegrityError, ObjectMissing, RepositoryNewer) as problem:
                yield problem.message

    def write(self, key_id: str, document: Mapping[str, Any]) -> None:
        """Write a new one; durable on return."""
        if self.codec is None:
            raise ValueError("the repository is not open")
        name = f"{names.KEYS}/{key_id}"
        parts = self.codec.document(Kind.KEY, name, document)
        self.store.put_new(name, [memoryview(part) for part in parts])

    def remove(self, key_id: str) -> None:
        """Remove one."""
        self.store.delete(f"{names.KEYS}/{key_id}")
