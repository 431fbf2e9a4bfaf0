"""How much is free on a disk of PFS: the library has no such call, but pfsd tells on the socket of its administration.

Source: PolarDB-FileSystem, src/pfs_tools/pfsadm (the messages) and pfs_admin.cc. Any user of the machine may ask.
"""

from __future__ import annotations

import re
import socket
import struct

from polarvault.storage.trees.pfs.mount import PFS_BLOCK_BYTES

_SOCKET = "/var/run/pfs/pfsadm-{}.sock"
# Type, operation, error, length of what follows.
_HEADER = struct.Struct("=hhiq")
_COMMAND, _INFORMATION = 9, 11
_QUESTION = struct.Struct("=64si")
_TIMEOUT_S = 5.0
# An answer has three lines a chunk; a disk of a petabyte stays far below.
_MOST_BYTES = 1 << 20
_FREE = re.compile(r"nfree (\d{1,18})\b")


def read_room(disk: str) -> tuple[int, int] | None:
    """Return the free bytes and inodes of a disk that pfsd has mounted; None where it does not tell."""
    try:
        return parse_room(_ask(disk))
    except OSError:
        return None


def parse_room(answer: str) -> tuple[int, int] | None:
    """Return free bytes and files from what pfsd says: of blocks, of names and of inodes, each with its own heading.

    A new file takes a name and an inode, so that the smaller number of the two counts.
    """
    free: dict[str, int] = {}
    heading = ""
    for line in answer.splitlines():
        if not line.startswith(" "):
            heading = line.split(" ")[0].lower()
        elif (match := _FREE.search(line)) is not None:
            # The first line of a heading is the sum of all others.
            free.setdefault(heading, int(match[1]))
    if not {"blktag", "direntry", "inode"} <= free.keys():
        return None
    return free["blktag"] * PFS_BLOCK_BYTES, min(free["direntry"], free["inode"])


def _ask(disk: str) -> str:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_TIMEOUT_S)
        connection.connect(_SOCKET.format(disk))
        question = _QUESTION.pack(disk.encode(), 1)
        connection.sendall(_HEADER.pack(_COMMAND, _INFORMATION, 0, len(question)) + question)
        answer = b""
        with connection.makefile("rb") as stream:
            while len(header := stream.read(_HEADER.size)) == _HEADER.size:
                _, _, error, length = _HEADER.unpack(header)
                if error or not 0 < length <= _MOST_BYTES - len(answer):
                    break
                answer += stream.read(length)
    return answer.decode("ascii", "replace")
