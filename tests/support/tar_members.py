"""Collect what the tar reader says into plain values that can be compared."""

from __future__ import annotations

from collections.abc import Iterable

from polarvault.pgfiles.tar import MemberBegins, MemberData, MemberEnds, TarReader


def read_members(pieces: Iterable[bytes]) -> list[tuple[str, str, bytes]]:
    """Feed the pieces one by one; return name, kind and content of each member, having checked the events' order."""
    reader = TarReader()
    found: list[tuple[str, str, bytes]] = []
    content: bytearray | None = None
    for piece in pieces:
        for event in reader.feed([memoryview(piece)]):
            match event:
                case MemberBegins():
                    assert content is None, "a member begins inside another one"
                    content = bytearray()
                case MemberData(views, size, offset):
                    assert content is not None
                    assert offset == len(content)
                    content += b"".join(views)
                    assert offset + size == len(content)
                case MemberEnds(member):
                    assert content is not None
                    assert len(content) == member.size
                    found.append((member.name, member.kind.value, bytes(content)))
                    content = None
    reader.finish()
    return found
