"""-T OLD=NEW: where a tablespace goes."""

from __future__ import annotations

import os

from polarvault.errors import UsageError


def mapping(text: str) -> tuple[str, str]:
    """Split OLD=NEW at the first equals sign that no backslash precedes, as pg_basebackup does."""
    parts = text.replace("\\=", "\0").split("=")
    old, new = (part.replace("\0", "=") for part in parts) if len(parts) == 2 else ("", "")
    if not (os.path.isabs(old) and os.path.isabs(new)):
        raise UsageError(
            f"-T {text!r} is not OLD=NEW with two absolute paths", hint="write \\= for an equals sign in a path"
        )
    return os.path.normpath(old), os.path.normpath(new)
