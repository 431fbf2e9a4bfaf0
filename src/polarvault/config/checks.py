"""What must hold between the settings of a file, beyond each for itself. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from polarvault.config.model import ClusterConfiguration, RepositoryConfiguration, SnapshotConfiguration
from polarvault.config.schema import REPOSITORY
from polarvault.model.dataclass import dataclass
from polarvault.storage.objects.address import Scheme, parse_address


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing that is wrong. field: below its section; value: as it may be shown, "" where there is none."""

    line: int
    field: str
    value: str
    why: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.field}{f' = {self.value}' if self.value else ''}: {self.why}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a question that ends a message, or nothing."""
    # Takes a while to import, and is wanted for mistakes only.
    import difflib

    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f'; did you mean "{close[0]}"?' if close else ""


def repository_problems(repository: RepositoryConfiguration, fields: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield field and reason of what does not fit together in a repository's table, of which fields are given."""
    given = list(fields)
    ways = [name for name in ("passphrase_file", "passphrase_command", "key_file") if name in given]
    for name in ways[1:]:
        yield name, f"{ways[0]} says already where the key comes from"
    if repository.encrypted is False:
        for name in ways[:1]:
            yield name, "the repository is not encrypted, as the line of encrypted says"
    scheme = parse_address(repository.address).scheme
    for setting in REPOSITORY:
        if setting.field in given and scheme not in setting.schemes:
            yield setting.field, f"means nothing for {_STORES[scheme]}"
    for one, other in (("secret_key", "access_key"), ("session_token", "access_key"), ("access_key", "secret_key")):
        if one in given and other not in given:
            yield one, f"is of no use without {other}"


def cluster_problems(cluster: ClusterConfiguration, repositories: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield field and reason of what does not fit together in a cluster's table."""
    if cluster.connection is not None and cluster.service is not None:
        yield "service", "connection says already how to connect; a connection string may hold service=..."
    known = list(repositories)
    for name in cluster.repositories:
        if name not in known:
            yield "repositories", f"there is no [repository.{name}]{did_you_mean(name, known)}"


def snapshot_problems(snapshot: SnapshotConfiguration) -> Iterator[tuple[str, str]]:
    """Yield field and reason of what the words of a command lack."""
    needed = {
        "create": ("{name}", "{source}"), "clone": ("{name}", "{snapshot}", "{target}"), "list": (),
        "destroy": ("{name}",),
    }  # fmt: skip
    for field, marks in needed.items():
        words: tuple[str, ...] = getattr(snapshot, field)
        if not words:
            yield field, "must have words"
        elif missing := [mark for mark in marks if not any(mark in word for word in words)]:
            yield field, f"lacks {' and '.join(missing)}, without which it cannot know what it is to do"


_STORES = {
    Scheme.FILE: "a directory",
    Scheme.S3: "S3",
    Scheme.GOOGLE: "Google Cloud Storage",
    Scheme.AZURE: "Azure",
}
