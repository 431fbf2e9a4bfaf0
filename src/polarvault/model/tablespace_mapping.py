"""The option -T OLD=NEW as a person types it: how a path has to be written so that it comes out again. Pure."""

from __future__ import annotations

import shlex


def mapping_option(old: str, new: str) -> str:
    """Return the option for a shell; an equals sign in a path is escaped, as pg_basebackup's own parser wants it."""
    return "-T " + shlex.quote(f"{_escaped(old)}={_escaped(new)}")


def _escaped(path: str) -> str:
    return path.replace("=", "\\=")
