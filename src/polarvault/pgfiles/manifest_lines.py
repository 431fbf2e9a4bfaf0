"""The lines of a backup_manifest as servers write them, read at once; whatever is laid out otherwise is left alone.

A manifest may list a million files, and the strict reader (manifest_json) looks at each field of each of them by
itself. One expression takes the same fields from a line that a server, pg_combinebackup or we have written. A list in
which every line is such a line holds nothing that the strict reader could refuse, and so can be cut out of what it has
to read.
"""

from __future__ import annotations

import re

from polarvault.pgfiles.manifest_json import SYSTEM_IDENTIFIER, VERSION

# Path, size, time of the last change, algorithm and checksum, the last two empty where a manifest has no checksums.
FileLine = tuple[str, str, str, str, str]

_HEAD = re.compile(
    rb'\{ "%b": [0-9]{1,3},\n(?:"%b": [0-9]{1,20},\n)?"Files": \[\n' % (VERSION.encode(), SYSTEM_IDENTIFIER.encode())
)
_END = b"\n],\n"
# Texts without escapes, sizes that are below 2^63, checksums in small letters: everything else is for the strict
# reader. No part can match a line's end, so as many matches as lines are all of them, whole.
_LINE = re.compile(
    r'^\{ "Path": "([^"\\\x00-\x1f]+)", "Size": (0|[1-9][0-9]{0,17}), "Last-Modified": "([^"\\\x00-\x1f]*)"'
    r'(?:, "Checksum-Algorithm": "(CRC32C|SHA224|SHA256|SHA384|SHA512)", "Checksum": "([0-9a-f]+)")? \}(?:,\n|\Z)',
    re.MULTILINE,
)


def cut_file_lines(content: bytes) -> tuple[list[FileLine], bytes] | None:
    """Return the lines of the list of files and the manifest without them; None: not every line is as a server's."""
    head = _HEAD.match(content)
    end = content.find(_END, head.end()) if head else -1
    if head is None or end < 0:
        return None
    listed = content[head.end() : end].decode("utf-8", "surrogateescape")
    lines: list[FileLine] = _LINE.findall(listed)
    if len(lines) != listed.count("\n") + 1 or any(len(line[4]) % 2 for line in lines):
        return None
    return lines, content[: head.end()] + content[end:]
