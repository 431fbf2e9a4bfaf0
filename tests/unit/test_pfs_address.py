"""What is a place in PFS, what only looks like one, and what must not be taken for a directory of this machine."""

from __future__ import annotations

import pytest

from polarvault.basebackup.places import check_places, pfs_target
from polarvault.basebackup.request import BackupRequest
from polarvault.errors import UsageError
from polarvault.model.pfs_address import PfsAddress, disk_of_path, is_pfs_address, parse_pfs_address, parse_pfs_path
from polarvault.storage.pfs_paths import pfs_place


def test_an_address_names_a_disk_and_a_directory() -> None:
    address = parse_pfs_address("pfsd:///loop1//shared/data/")
    assert address == PfsAddress("loop1", "shared/data")
    assert address.path == "/loop1/shared/data"
    assert str(address) == "pfsd:///loop1/shared/data"
    assert parse_pfs_path("/loop1/shared/data/") == address


@pytest.mark.parametrize(
    "text",
    [
        "pfsd://loop1/x", "pfsd:/loop1/x", "pfsd:///", "pfsd:///loop1", "pfsd:///loop1/", "pfsd:///loop1/../x",
        "pfsd:///loop1/./x", "pfsd:///loop1/a\nb", "pfsd:///-x/y", f"pfsd:///{'d' * 64}/x", f"pfsd:///d/{'n' * 256}",
        f"pfsd:///d/{'/n' * 1600}", "pfsd:///a b/c",
    ],
)  # fmt: skip
def test_what_is_no_directory_in_pfs_is_refused_and_never_a_local_path(text: str) -> None:
    assert is_pfs_address(text)
    with pytest.raises(UsageError, match="--polardata") as caught:
        parse_pfs_address(text, "--polardata")
    assert "pfsd:///DISK/DIRECTORY" in (caught.value.hint or "")


def test_one_directory_lies_within_another_by_whole_names() -> None:
    outer = PfsAddress("d", "a/b")
    assert outer.is_within(outer)
    assert PfsAddress("d", "a/b/c").is_within(outer)
    assert not PfsAddress("d", "a/bc").is_within(outer)
    assert not PfsAddress("e", "a/b").is_within(outer)


@pytest.mark.parametrize(
    ("path", "directories", "devices", "disk"),
    [
        ("/loop1/x", (), ("/dev/loop1",), "loop1"),
        ("/loop1/x", ("/loop1",), ("/dev/loop1",), None),
        ("/loop1/x", (), (), None),
        ("loop1/x", (), ("/dev/loop1",), None),
        ("/loop1", (), ("/dev/loop1",), None),
    ],
)
def test_a_bare_path_means_pfs_only_where_a_disk_has_that_name_and_no_directory(
    path: str, directories: tuple[str, ...], devices: tuple[str, ...], disk: str | None
) -> None:
    assert disk_of_path(path, lambda one: one in directories, lambda one: one in devices) == disk


def test_a_named_disk_makes_a_bare_path_one_of_pfs_on_that_disk() -> None:
    assert pfs_place("--polardata", "/loop1/x", "loop1") == PfsAddress("loop1", "x")
    with pytest.raises(UsageError, match="not on disk loop1"):
        pfs_place("--polardata", "/srv/x", "loop1")
    assert pfs_place("--polardata", "/srv/x") is None


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ({"directory": "pfsd:///loop1/x"}, "lies in PFS"),
        ({"polardata": "pfsd://loop1/x", "polar_host_id": "2"}, "is not a directory in PFS"),
        ({"polardata": "pfsd:///loop1/x"}, "needs a number of its own"),
        ({"polardata": "pfsd:///loop1/x", "polar_host_id": "0"}, "is 1 to 254"),
        ({"polardata": "/srv/x", "polar_disk_name": "loop1", "polar_host_id": "2"}, "not on disk loop1"),
        ({"polardata": "pfsd:///loop1/x", "polar_host_id": "2", "format": "tar"}, "only plain format"),
    ],
)  # fmt: skip
def test_places_in_pfs_that_cannot_be_are_refused_before_anything_is_made(places: dict[str, str], words: str) -> None:
    given = {"directory": "/b", "format": "plain"} | places
    with pytest.raises(UsageError, match=words):
        check_places(BackupRequest(**given))  # type: ignore[arg-type]


def test_the_official_options_and_an_address_mean_the_same() -> None:
    named = {"directory": "/b", "format": "plain", "polar_host_id": "2"}
    by_address = pfs_target(BackupRequest(polardata="pfsd:///loop1/x", **named))  # type: ignore[arg-type]
    by_options = pfs_target(BackupRequest(polardata="/loop1/x", polar_disk_name="loop1", **named))  # type: ignore[arg-type]
    assert by_address == by_options
    assert by_address is not None
    assert (by_address.cluster, by_address.host_id) == ("disk", 2)
