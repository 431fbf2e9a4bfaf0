"""Repositories for people and for programs: one that was made, and the keys of one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from polarvault.config.model import RepositoryConfiguration
from polarvault.repository.keys.wrapped import WrappedKey


def made_text(made: RepositoryConfiguration, repository_id: str, *, encrypted: bool) -> Iterator[str]:
    """Yield what is to be known of a new repository, and the lines for the configuration."""
    yield f"made the {'encrypted ' if encrypted else ''}repository {repository_id} in {made.address}"
    yield "with these lines in the configuration another one in its place is refused:"
    yield f"[repository.{made.name or 'NAME'}]"
    yield f"address = {json.dumps(made.address, ensure_ascii=False)}"
    yield f'id = "{repository_id}"'
    yield f"encrypted = {json.dumps(encrypted)}"


def made_json(made: RepositoryConfiguration, repository_id: str, *, encrypted: bool) -> dict[str, Any]:
    """Return a new repository as --json prints it."""
    return {"repository": {"id": repository_id, "address": made.address, "encrypted": encrypted}}


def keys_text(keys: Sequence[WrappedKey]) -> Iterator[str]:
    """Yield a table of keys."""
    width = max([4, *(len(key.recipient) for key in keys)])
    yield f"{'NAME':{width}}  {'KIND':10}  {'EPOCH':5}  ID"
    for key in keys:
        yield f"{key.recipient:{width}}  {key.kind:10}  {key.epoch:<5}  {key.key_id}"


def keys_json(keys: Sequence[WrappedKey]) -> dict[str, Any]:
    """Return keys as --json prints them."""
    return {"keys": [{"name": key.recipient, "kind": key.kind, "epoch": key.epoch, "id": key.key_id} for key in keys]}
