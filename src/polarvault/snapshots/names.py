"""The names of everything that we make: ``polarvault-KIND-ID``. Pure.

One prefix tells a DBA at a glance whose it is; the id, 16 hexadecimal digits, is in the thing itself as well.
"""

from __future__ import annotations

import re

from polarvault.snapshots.model import Kind

PREFIX = "polarvault"
ID_DIGITS = 16
_NAME = re.compile(rf"{PREFIX}-(?P<kind>{'|'.join(kind.value for kind in Kind)})-(?P<id>[0-9a-f]{{{ID_DIGITS}}})")
# Several parts of one thing: the clones of several datasets, the copies of several subvolumes.
_PART = re.compile(r"(?:-(\d{1,4}))?\Z", re.ASCII)


def name_of(kind: Kind, id_: str, part: int | None = None) -> str:
    """Return the name of a thing, or of one of its parts."""
    return f"{PREFIX}-{kind.value}-{id_}" + ("" if part is None else f"-{part}")


def parse_name(name: str) -> tuple[Kind, str, int | None] | None:
    """Return kind, id and part of a name; None for one that is not ours."""
    match = _NAME.match(name)
    if match is None:
        return None
    part = _PART.match(name, match.end())
    if part is None:
        return None
    return Kind(match["kind"]), match["id"], None if part[1] is None else int(part[1])


def is_id(text: str) -> bool:
    """Tell whether a text is an id."""
    return re.fullmatch(rf"[0-9a-f]{{{ID_DIGITS}}}", text) is not None


def is_good_name(name: str) -> bool:
    """Tell whether people may call a thing so: letters, digits, dots, _ and -, at most 63, a letter first."""
    known = name.replace("-", "").replace("_", "").replace(".", "")
    return len(name) <= 63 and name[:1].isascii() and name[:1].isalpha() and known.isascii() and known.isalnum()
