"""`polarvault repo`: made once, opened with its keys only, in a directory and in a bucket."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from polarvault.config.model import KeySource, RepositoryConfiguration
from polarvault.repository.catalogue.opening import open_repository
from support.object_servers import BUCKET, ObjectServer
from support.program import run_polarvault
from support.repositories import NOW, PARTS, Tree, back_up

SECRET = "correct horse battery"


@pytest.fixture
def passphrase(tmp_path: Path) -> Path:
    path = tmp_path / "passphrase"
    path.write_text(f"{SECRET}\n")
    path.chmod(0o600)
    return path


def _run(*words: object, status: int = 0, **environment: str) -> str:
    ended = run_polarvault(*map(str, words), check=False, environment=environment)
    assert ended.returncode == status, ended.stderr
    assert "Traceback" not in ended.stderr
    assert SECRET not in ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def _json(*words: object, **environment: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_run(*words, "--json", **environment))
    return found


def test_a_repository_is_made_once_and_pinned(tmp_path: Path) -> None:
    place = tmp_path / "a" / "repository"
    printed = _run("repo", "init", place)
    (made,) = re.findall(r'id = "([0-9a-f]{32})"', printed)
    assert "encrypted = false" in printed
    assert "holds a repository already" in _run("repo", "init", place, status=1)
    # The lines that were printed are a configuration.
    configuration = tmp_path / "polarvault.toml"
    configuration.write_text(printed[printed.index("[repository.") :].replace("NAME", "main"))
    assert "is not encrypted, so it has no keys" in _run("repo", "key", "list", "--config", configuration, status=3)
    configuration.write_text(configuration.read_text().replace(made, "0" * 32))
    assert "is expected" in _run("repo", "key", "list", "--config", configuration, status=3)


def test_an_encrypted_repository_is_opened_with_its_keys_only(tmp_path: Path, passphrase: Path) -> None:
    place, key = tmp_path / "repository", tmp_path / "key"
    assert "no passphrase or key file is given" in _run("repo", "init", place, "--encrypt", status=1)
    made = _json("repo", "init", place, "--encrypt", "--recipient", "dba", POLARVAULT_PASSPHRASE=SECRET)
    assert made["repository"]["encrypted"] is True
    assert SECRET.encode() not in b"".join(path.read_bytes() for path in place.rglob("*") if path.is_file())
    add = ("repo", "key", "add", "db1", "--repo", place, "--new-key-file", key)
    assert "opens none of the keys" in _run(*add, status=1, POLARVAULT_PASSPHRASE="another one")
    assert not key.exists()
    _run(*add, "--passphrase-file", passphrase)
    assert key.stat().st_mode & 0o777 == 0o600
    # What is in the repository is listed without any key.
    listed = _json("repo", "key", "list", "--repo", place)["keys"]
    assert [(one["name"], one["kind"], one["epoch"]) for one in listed] == [
        ("db1", "file", 1),
        ("dba", "passphrase", 1),
    ]
    assert "already" in _run(*add[:-1], tmp_path / "other", "--key-file", key, status=2)
    assert not (tmp_path / "other").exists()
    _run("repo", "key", "remove", "dba", "--repo", place, "--key-file", key)
    remove = ("repo", "key", "remove", "db1", "--repo", place)
    assert "has no key for passphrases" in _run(*remove, "--passphrase-file", passphrase, status=1)
    assert "last key" in _run(*remove, "--key-file", key, status=2)


def test_a_plain_repository_in_the_place_of_an_encrypted_one_is_refused(tmp_path: Path, passphrase: Path) -> None:
    place = tmp_path / "repository"
    _run("repo", "init", place)
    words = ("repo", "key", "add", "x", "--repo", place, "--new-passphrase-file", passphrase)
    assert "is not encrypted, and the opposite is expected" in _run(*words, "--passphrase-file", passphrase, status=3)
    configuration = tmp_path / "polarvault.toml"
    configuration.write_text(f'[repository.main]\naddress = "{place}"\nencrypted = true\n')
    # However the repository is named, what the configuration says of its address counts.
    for repo in (place, f"file:{place}", "main"):
        assert "the opposite is expected" in _run(*words[:5], repo, *words[6:], "--config", configuration, status=3)


def test_a_configuration_that_expects_encryption_makes_an_encrypted_one(tmp_path: Path, passphrase: Path) -> None:
    configuration = tmp_path / "polarvault.toml"
    configuration.write_text(
        f'[repository.main]\naddress = "{tmp_path}/repository"\nencrypted = true\n'
        f'passphrase_command = "cat {passphrase}"\n'
    )
    assert _json("repo", "init", "--config", configuration)["repository"]["encrypted"] is True
    key = _json("repo", "key", "add", "second", "--config", configuration, "--new-key-file", tmp_path / "key")
    assert key["keys"][0]["name"] == "second"


def test_command_lines_that_contradict_themselves_are_refused(tmp_path: Path, passphrase: Path) -> None:
    place = tmp_path / "repository"
    both = ("--key-file", "/k", "--passphrase-file", "/p")
    assert "only one of them" in _run(
        "repo", "key", "add", "x", "--repo", place, "--new-key-file", "k", *both, status=2
    )
    assert "not said" in _run("repo", "key", "add", "x", "--repo", place, status=2)
    assert "named twice" in _run("repo", "init", place, "--repo", place, status=2)
    assert "which repository is not said" in _run("repo", "init", status=2)
    assert not place.exists()
    configuration = tmp_path / "polarvault.toml"
    configuration.write_text(f'[repository.main]\naddress = "{place}"\nencrypted = false\n')
    assert "is not encrypted" in _run("repo", "init", "--config", configuration, "--encrypt", status=2)
    configuration.write_text(f'[repository.main]\naddress = "{place}"\nid = "{"0" * 32}"\n')
    assert "a new one gets another" in _run("repo", "init", "--config", configuration, status=2)
    short = tmp_path / "short"
    short.write_text("1234567\n")
    os.chmod(short, 0o600)
    assert "fewer than 8" in _run("repo", "init", place, "--encrypt", "--passphrase-file", short, status=2)
    assert not (place / "polarvault.json").exists()


def test_a_repository_in_a_bucket(seaweedfs: ObjectServer, tmp_path: Path) -> None:
    settings = seaweedfs.settings
    environment = {
        "AWS_ENDPOINT_URL": settings.endpoint or "",
        "AWS_ACCESS_KEY_ID": settings.access_key or "",
        "AWS_SECRET_ACCESS_KEY": settings.secret_key or "",
        "POLARVAULT_PASSPHRASE": SECRET,
    }
    address = f"s3://{BUCKET}/repo-{os.getpid()}"
    made = _json("repo", "init", address, "--encrypt", **environment)
    assert made["repository"]["address"] == address
    assert "holds a repository already" in _run("repo", "init", address, status=1, **environment)
    _run("repo", "key", "add", "db1", "--repo", address, "--new-key-file", tmp_path / "key", **environment)
    del environment["POLARVAULT_PASSPHRASE"]
    _run("repo", "key", "remove", "first", "--repo", address, "--key-file", tmp_path / "key", **environment)
    wrong = environment | {"AWS_SECRET_ACCESS_KEY": "mistyped"}
    assert "SignatureDoesNotMatch" in _run("repo", "key", "list", "--repo", address, status=1, **wrong)


def test_info_tells_what_a_repository_holds(tmp_path: Path, passphrase: Path) -> None:
    place, how = tmp_path / "repository", ("--passphrase-file", passphrase)
    _run("repo", "init", place, "--encrypt", *how)
    empty = _json("repo", "info", place, *how)
    assert (empty["clusters"], empty["intents"]) == ([], [])
    opened = open_repository(
        RepositoryConfiguration("", str(place), key=KeySource(passphrase_file=str(passphrase))), {}
    )
    tree: Tree = {(0, b"base/5/1259"): bytes(8192)}
    outcomes = [back_up(opened.repository, tree, minutes=number) for number in (0, 1)]
    killed = opened.repository.begin_backup("shop", started=NOW, parts=PARTS)
    killed.abandon()
    opened.close()
    found = _json("repo", "info", place, *how)
    assert found["repository"] == {"id": opened.id, "address": str(place), "encrypted": True}
    (cluster,) = found["clusters"]
    assert (cluster["name"], len(cluster["backups"])) == ("shop", len(outcomes))
    (intent,) = found["intents"]
    assert (intent["command"], intent["cluster"], intent["pid"]) == ("backup", "shop", os.getpid())
    printed = _run("repo", "info", place, *how)
    assert "shop     2" in printed
    assert "or was killed" in printed
    assert "is encrypted, and no passphrase" in _run("repo", "info", place, status=1)


def test_what_a_killed_init_left_is_in_nobodys_way(tmp_path: Path, passphrase: Path) -> None:
    place, key = tmp_path / "repository", tmp_path / "key"
    _run("repo", "init", place, "--new-key-file", key)
    # Written last: without it nothing has been made.
    (place / "polarvault.json").unlink()
    _run("repo", "init", place, "--encrypt", "--passphrase-file", passphrase)
    assert len(list((place / "keys").iterdir())) == 2
    (listed,) = _json("repo", "key", "list", "--repo", place)["keys"]
    assert listed["kind"] == "passphrase"
    assert "has no key for key files" in _run("repo", "info", place, "--key-file", key, status=1)
    _run("repo", "info", place, "--passphrase-file", passphrase)


def test_a_flipped_bit_in_one_key_leaves_the_others(tmp_path: Path, passphrase: Path) -> None:
    place, key, how = tmp_path / "repository", tmp_path / "key", ("--passphrase-file", passphrase)
    _run("repo", "init", place, "--encrypt", *how)
    (first,) = (place / "keys").iterdir()
    _run("repo", "key", "add", "db1", "--repo", place, *how, "--new-key-file", key)
    content = bytearray(first.read_bytes())
    content[200] ^= 1
    first.write_bytes(content)
    _run("repo", "info", place, "--key-file", key)
    said = _run("repo", "info", place, *how, status=1)
    assert f"keys/{first.name}" in said
    assert "damaged" in said
