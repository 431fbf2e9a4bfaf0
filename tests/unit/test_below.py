"""Files that a stranger has named stay below their directory, whatever links and special files are in the way."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from polarvault.model import limits
from polarvault.model.names import name_problem
from polarvault.storage import files
from polarvault.storage.below import Below, NameRefused


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "victim").write_text("untouched")
    return tmp_path / "root"


@pytest.fixture
def below(root: Path) -> Iterator[Below]:
    with Below(root) as opened:
        yield opened


def test_a_file_is_made_and_read_back(below: Below, root: Path) -> None:
    below.make_directories("base/5", 0o700)
    below.write("base/5/1259", b"content", 0o600, sync=True)
    assert below.read("base/5/1259") == (root / "base/5/1259").read_bytes() == b"content"
    assert [name for name, _ in below.walk()] == ["base", "base/5", "base/5/1259"]


@pytest.mark.parametrize("umask", [0, 0o077])
def test_modes_are_set_as_given_whatever_the_umask(root: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with Below(root) as below:
            below.make_directories("base/5", 0o750)
            below.write("base/5/1259", b"content", 0o640, sync=False)
        files.make_directories(os.fspath(root / "wal/archive"), 0o750)
        os.close(files.create_file(os.fspath(root / "wal/archive/segment"), 0o640))
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o7777 for path in root.rglob("*") if path.is_dir()}
    assert modes == {0o750}
    assert {path.stat().st_mode & 0o7777 for path in root.rglob("*") if path.is_file()} == {0o640}


def test_a_file_that_is_there_keeps_its_mode_and_a_link_is_refused(root: Path) -> None:
    (root / "there").write_text("content")
    (root / "there").chmod(0o604)
    os.close(files.create_file(os.fspath(root / "there"), 0o640))
    assert (root / "there").stat().st_mode & 0o7777 == 0o604
    (root / "link").symlink_to(root.parent / "outside" / "victim")
    with pytest.raises(OSError, match="Too many levels"):
        files.create_file(os.fspath(root / "link"), 0o640, os.O_WRONLY | os.O_TRUNC)
    with pytest.raises(FileExistsError):
        files.create_file(os.fspath(root / "there"), 0o640, os.O_WRONLY | os.O_EXCL)
    assert (root.parent / "outside" / "victim").read_text() == "untouched"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/etc/passwd",
        "..",
        "../x",
        "a/../../x",
        "a/./b",
        "a//b",
        "a/",
        "a\0b",
        "x" * 5000,
        "d/" * 100 + "f",
        "\ud800",
    ],
)
def test_names_that_lead_elsewhere_are_refused(below: Below, name: str) -> None:
    assert name_problem(name) is not None
    with pytest.raises(OSError, match="the name is refused"):
        below.create(name, 0o600)
    with pytest.raises(OSError):  # noqa: PT011  # whichever refusal it is
        below.open_regular(name)


@pytest.mark.parametrize("name", ["evil/pwn", "deep/evil/pwn"])
def test_no_component_may_be_a_link(below: Below, root: Path, name: str) -> None:
    (root / "deep").mkdir()
    link = root / name.rpartition("/")[0]
    link.symlink_to(root.parent / "outside")
    for attempt in (
        lambda: below.create(name, 0o600),
        lambda: below.make_directories(f"{name}/x", 0o700),
        lambda: below.symlink("x", name),
        lambda: below.unlink(name),
        lambda: below.open_regular(name.replace("pwn", "victim")),
        lambda: below.rename("deep", name),
    ):
        with pytest.raises(NameRefused, match="symbolic link") as refused:
            attempt()
        assert refused.value.filename == str(link)
    assert os.listdir(root.parent / "outside") == ["victim"]


def test_the_last_component_may_not_be_a_link_either(below: Below, root: Path) -> None:
    victim = root.parent / "outside" / "victim"
    (root / "evil").symlink_to(victim)
    with pytest.raises(FileExistsError):
        below.create("evil", 0o600)
    for attempt in (below.open_regular, below.open_for_writing, below.read):
        with pytest.raises(NameRefused, match="symbolic link"):
            attempt("evil")
    below.write("evil", b"own", 0o600, sync=False, replace=True)
    assert victim.read_text() == "untouched"
    assert not (root / "evil").is_symlink()


def test_a_link_that_was_planted_after_a_directory_was_opened_is_not_followed(below: Below, root: Path) -> None:
    below.make_directories("base/1", 0o700)
    below.write("base/1/a", b"", 0o600, sync=False)
    (root / "base").rename(root / "moved")
    (root / "base").symlink_to(root.parent / "outside")
    # Goes into the directory that was opened, wherever it is now.
    below.write("base/1/b", b"", 0o600, sync=False)
    assert sorted(os.listdir(root / "moved/1")) == ["a", "b"]
    assert os.listdir(root.parent / "outside") == ["victim"]


def test_only_the_links_of_the_layout_are_followed(root: Path) -> None:
    (root / "pg_wal").symlink_to(root.parent / "outside")
    (root / "other").symlink_to(root.parent / "outside")
    with Below(root, links=lambda name: name == "pg_wal") as below:
        assert below.read("pg_wal/victim") == b"untouched"
        found = dict(below.walk())
        assert "pg_wal/victim" in found
        assert "other/victim" not in found
        assert below.link_target("pg_wal") == str(root.parent / "outside")
        with pytest.raises(NameRefused):
            below.read("other/victim")


def test_a_fifo_or_a_directory_is_not_read(below: Below, root: Path) -> None:
    os.mkfifo(root / "fifo")
    (root / "directory").mkdir()
    with pytest.raises(NameRefused, match="not a regular file"):
        below.read("fifo")
    with pytest.raises(NameRefused, match="not a regular file"):
        below.open_for_writing("fifo")
    with pytest.raises(IsADirectoryError):
        below.read("directory")
    with pytest.raises(OSError, match="Is a directory"):
        below.create("directory", 0o600, replace=True)


def test_a_file_that_is_too_long_is_not_read(below: Below) -> None:
    below.write("small", b"x" * 100, 0o600, sync=False)
    assert len(below.read("small", 100)) == 100
    with pytest.raises(NameRefused, match="longer than 99 bytes") as refused:
        below.read("small", 99)
    assert refused.value.errno == errno.EFBIG


def test_a_file_in_the_way_of_a_directory_is_named(below: Below) -> None:
    below.write("base", b"", 0o600, sync=False)
    with pytest.raises(NotADirectoryError) as refused:
        below.make_directories("base/1", 0o700)
    assert str(refused.value.filename).endswith("/base")


def test_more_directories_than_are_kept_open_are_written_to(below: Below) -> None:
    names = [f"d{n}/f" for n in range(2 * limits.OPEN_DIRECTORIES)]
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        for name in names:
            below.make_parents(name, 0o700)
            below.write(name, b"x", 0o600, sync=False, replace=True)
    assert len(os.listdir("/proc/self/fd")) <= before + limits.OPEN_DIRECTORIES
    assert sum(stat.S_ISREG(status.st_mode) for _, status in below.walk()) == len(names)


def test_closing_gives_every_descriptor_back_once(root: Path) -> None:
    before = os.listdir("/proc/self/fd")
    below = Below(root)
    below.make_directories("a/b/c", 0o700)
    below.close()
    below.close()
    assert len(os.listdir("/proc/self/fd")) == len(before)
    with pytest.raises(ValueError, match="closed"):
        below.names()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_everything_that_root_makes_for_an_account_belongs_to_it(root: Path) -> None:
    with Below(root, owner=(65534, 65534)) as below:
        below.make_directories("a/b", 0o700)
        below.write("a/b/c", b"", 0o600, sync=False)
        below.symlink("/etc/shadow", "a/l")
        assert {status.st_uid for _, status in below.walk()} == {65534}
    assert os.stat("/etc/shadow").st_uid == 0
