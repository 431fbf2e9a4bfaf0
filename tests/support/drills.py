"""Run drills, and damage backups for them; after each drill nothing of it may be left."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c

from support.cluster import Cluster
from support.program import run_polarvault
from support.servers import ServerPool
from support.story import Story, archive_all, back_up, start_story, tell

PAGE_BYTES = 8192
_PAGE_HEADER_BYTES = 24


def words_of_processes(needle: Path) -> list[str]:
    """Return the command lines that mention a path, ours aside."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
        except OSError:
            continue
        if os.fsencode(needle) in words and b"polarvault" not in words.split(b"\0")[0:4]:
            found.append(words.replace(b"\0", b" ").decode(errors="replace"))
    return found


class Drills:
    """Drills in a scratch directory and with reports of their own."""

    def __init__(self, workspace: Path) -> None:
        self.workspace = workspace
        self.scratch = workspace / "scratch"
        self.scratch.mkdir()
        # The server's user has to get through it to its own directory.
        self.scratch.chmod(0o711)
        self.report = workspace / "report"

    def options(self, source: Cluster, backup: Path, *options: object) -> list[str]:
        """Return the arguments of a drill; later ones win."""
        return [
            "drill", str(backup), "--scratch", str(self.scratch), "--report", str(self.report), "-N",
            "--bindir", source.installation.directory, "--set", "fsync=off", *map(str, options),
        ]  # fmt: skip

    def run(self, source: Cluster, backup: Path, *options: object, status: int = 0) -> dict[str, Any]:
        """Do a drill that must end with this status; return its report, which is on standard output and in the file."""
        finished = run_polarvault(*self.options(source, backup, "--json", *options), check=False)
        assert finished.returncode == status, finished.stdout + finished.stderr
        assert "Traceback" not in finished.stderr
        report: dict[str, Any] = json.loads(finished.stdout)
        assert json.loads(Path(f"{self.report}.json").read_text()) == report
        assert Path(f"{self.report}.html").read_text().startswith("<!DOCTYPE html>")
        assert report["schema"] == 1
        assert report["exit_status"] == status
        assert report["held"] is (status == 0)
        self.check_nothing_is_left()
        return report

    def check_nothing_is_left(self) -> None:
        """Fail for a file in the scratch directory or a process that works on one."""
        assert list(self.scratch.iterdir()) == []
        assert words_of_processes(self.scratch / "polarvault-drill-") == []


@dataclass(frozen=True)
class Stock:
    """A server that archives, two backups of it, and its archive; tests only read them."""

    story: Story
    archive: Path
    tar: Path

    @property
    def source(self) -> Cluster:
        return self.story.source

    @property
    def plain(self) -> Path:
        return self.story.backup


@contextmanager
def make_stock(servers: ServerPool, major: int, name: str) -> Iterator[Stock]:
    """Make a server with checksums, its archive, and backups of it in plain format and as compressed tar files."""
    directory = servers.directory / f"{name}{major}"
    with Cluster.made(servers.installations[major], directory) as source:
        archive = start_story(source, directory / "archive")
        source.query(
            "CREATE TABLE documents (id int PRIMARY KEY, body text);"
            "ALTER TABLE documents ALTER body SET STORAGE EXTERNAL;"
            "INSERT INTO documents SELECT n, repeat(md5(n::text), 300) FROM generate_series(1, 20) n;"
            "CREATE MATERIALIZED VIEW rich AS SELECT * FROM accounts WHERE balance > 100; CREATE SEQUENCE numbers"
        )
        tar = back_up(source, directory / "tar", ["-Ft", "-z"])
        story = tell(source, directory / "backup")
        archive_all(source, archive)
        yield Stock(story, archive, tar)


def problems(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return check, subject and message of every problem of a report."""
    return [(f["check"], f["subject"], f["message"]) for f in report["findings"] if f["severity"] == "problem"]


def copied(backup: Path, target: Path) -> Path:
    """Return a copy of a plain backup that a test may damage."""
    subprocess.run(["cp", "-a", backup, target], check=True)
    return target


def seal_again(backup: Path) -> Path:
    """Make the manifest say what is there now, as if the server had sent it like that; return the backup."""
    path = backup / "backup_manifest"
    content = json.loads(path.read_text())
    for entry in content["Files"]:
        data = (backup / entry["Path"]).read_bytes()
        assert entry["Checksum-Algorithm"] == "CRC32C"
        entry |= {"Size": len(data), "Checksum": google_crc32c.value(data).to_bytes(4, "little").hex()}
    del content["Manifest-Checksum"]
    body = json.dumps(content, indent=0).removesuffix("\n}") + ",\n"
    path.write_text(body + f'"Manifest-Checksum": "{hashlib.sha256(body.encode()).hexdigest()}"}}\n')
    return backup


def relation_file(source: Cluster, backup: Path, relation: str) -> Path:
    """Return a relation's first file in a plain backup; PolarDB prefixes its answer with the shared half's place."""
    ((found,),) = source.query(f"SELECT pg_relation_filepath('{relation}')")
    return backup / "base" / str(found).partition("/base/")[2] if "://" in found else backup / str(found)


def break_order(index: Path, *, block: int = 1) -> None:
    """Give one entry of a leaf page of an index on integers a key out of order; the page's header stays good."""
    with _page(index, block) as page:
        # Line pointers are four bytes: 15 bits of offset, flags, 15 bits of length (server: storage/itemid.h).
        (pointer,) = struct.unpack_from("<I", page.content, _PAGE_HEADER_BYTES + 4 * 9)
        struct.pack_into("<I", page.content, (pointer & 0x7FFF) + 8, 0x7FFFFFF0)


def flip(relation: Path, *, block: int, offset: int = 5000) -> None:
    """Flip the bits of some bytes of a page."""
    with _page(relation, block) as page:
        for place in range(offset, offset + 4):
            page.content[place] ^= 0xFF


class _page:
    """One page of a file, changed in memory and written back."""

    def __init__(self, path: Path, block: int) -> None:
        self._path = path
        self._offset = block * PAGE_BYTES

    def __enter__(self) -> _page:
        self.content = bytearray(self._path.read_bytes()[self._offset : self._offset + PAGE_BYTES])
        assert len(self.content) == PAGE_BYTES
        return self

    def __exit__(self, *_: object) -> None:
        with open(self._path, "r+b") as stream:
            stream.seek(self._offset)
            stream.write(self.content)


def sql_files(directory: Path, **texts: str) -> Iterator[Path]:
    """Write a file for each text, and yield their paths."""
    for name, text in texts.items():
        path = directory / f"{name}.sql"
        path.write_text(text)
        yield path


def with_settings(backup: Path, text: str) -> Path:
    """Append settings to a plain backup's postgresql.auto.conf; return the backup."""
    with open(backup / "postgresql.auto.conf", "a", encoding="utf-8") as settings:
        settings.write(text)
    return backup
