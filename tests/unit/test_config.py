"""The configuration file: what it may hold, every mistake at once, and where values come from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from polarvault.config import values
from polarvault.config.load import load_configuration
from polarvault.config.model import Configuration, Hooks, KeySource, Limits, Retention, SourceKind
from polarvault.errors import ConfigurationError, UsageError
from polarvault.report.configuration import configuration_text
from polarvault.snapshots.choice import commands_for
from polarvault.snapshots.errors import SnapshotRefused
from support.program import run_polarvault

GOOD = """\
[repository.main]
address = "s3://backups/polarvault"
id = "0123456789ABCDEF0123456789abcdef"
encrypted = true
passphrase_file = "/etc/polarvault/passphrase"
endpoint = "https://minio.example.com:9000"
region = "eu-1"
access_key = "backup"
secret_key = "very-secret"
deadline = "10min"
max_rate = "50MB"

[repository.disk]
address = "file:/srv/backups"

[cluster.shop]
connection = "host=db1 user=backup password=hunter2 dbname=postgres"
repositories = ["main", "disk"]
retention = { window = "14d", keep = 2, monthly = 12 }
compression = 3
max_rate = "100MB"

[cluster.bank]
service = "bank"
repositories = "disk"
"""


def _load(tmp_path: Path, text: str, **environment: str) -> Configuration:
    path = tmp_path / "polarvault.toml"
    path.write_text(text)
    path.chmod(0o600)
    return load_configuration(str(path), environment)


def _mistakes(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        _load(tmp_path, text)
    assert caught.value.exit_code == 2
    return [line.strip() for line in caught.value.message.splitlines()[1:]]


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    found = _load(tmp_path, GOOD)
    main = found.repositories["main"]
    assert (main.address, main.encrypted) == ("s3://backups/polarvault", True)
    assert main.id == "0123456789abcdef0123456789abcdef"
    assert main.key == KeySource(passphrase_file="/etc/polarvault/passphrase")
    assert (main.store.endpoint, main.store.region) == ("https://minio.example.com:9000", "eu-1")
    assert (main.store.deadline_s, main.store.max_rate) == (600, 50 << 20)
    assert found.repositories["disk"].address == "/srv/backups"
    shop = found.clusters["shop"]
    assert shop.repositories == ("main", "disk")
    assert shop.retention == Retention(window_s=14 * 86_400, keep=2, monthly=12)
    assert (shop.compression, shop.max_rate) == (3, 100 << 20)
    assert found.clusters["bank"].service == "bank"
    assert found.clusters["bank"].repositories == ("disk",)
    assert found.warnings == ()


def test_every_mistake_is_named_at_once_with_line_field_and_value(tmp_path: Path) -> None:
    assert _mistakes(
        tmp_path,
        """\
[repository.main]
adress = "s3://backups/x"
region = 7
[repository.disk]
address = "srv/backups"
encrypted = "yes"
[repository.other]
address = "/srv/other"
endpoint = "https://minio"
key_file = "/k"
passphrase_command = "pass show x"
encrypted = false
[cluster.shop]
connection = "host=db1"
service = "shop"
repositories = ["man", "disk"]
compression = 40
retention = { windw = "14d", keep = 0 }
[cluster.Shop]
[clusters.bank]
service = "x"
""",
    ) == [
        "line 1: repository.main: has no address",
        'line 2: repository.main.adress = "s3://backups/x": there is no such setting; did you mean "address"?',
        "line 3: repository.main.region = 7: must be a text in one line",
        'line 5: repository.disk.address = "srv/backups": must be an absolute path, or begin with s3:, gs: or az:',
        'line 6: repository.disk.encrypted = "yes": must be true or false, without quotes',
        'line 9: repository.other.endpoint = "https://minio": means nothing for a directory',
        'line 10: repository.other.key_file = "/k": passphrase_command says already where the key comes from',
        'line 11: repository.other.passphrase_command = "pass show x": the repository is not encrypted, '
        "as the line of encrypted says",
        'line 15: cluster.shop.service = "shop": connection says already how to connect; '
        "a connection string may hold service=...",
        "line 16: cluster.shop.repositories = ['man', 'disk']: there is no [repository.man]; did you mean \"main\"?",
        "line 17: cluster.shop.compression = 40: must be a whole number from 0 to 19",
        'line 18: cluster.shop.retention.windw = "14d": there is no such setting; did you mean "window"?',
        "line 18: cluster.shop.retention.keep = 0: must be a whole number from 1 to 100000",
        "line 19: cluster.Shop: a name has small letters, digits, _ and -, at most 63",
        'line 20: clusters: there is no such table; did you mean "cluster"?',
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("repository = 1", "must be tables with names"),
        ("[repository]\nmain = 1", "must be a table"),
        ("[[repository.main]]\naddress = '/x'", "must be a table"),
        ("[cluster.a]\nretention = 3", "must be a table"),
        ("[repository.a]\naddress = 's3://bucket/x'\nsecret_key = 's'", "of no use without access_key"),
        ("[repository.a]\naddress = 'gs://bucket/x'\nregion = 'eu'", "means nothing for Google Cloud Storage"),
        ("[repository.a]\naddress = 's3://bucket/x'\nstorage_class = 'DEEP_ARCHIVE'", "thawed"),
        ("[repository.a]\naddress = 's3://bucket/x'\nendpoint = 'minio'", "does not begin with http"),
        ("[repository.a]\naddress = '/x'\nid = '12'", "32 hexadecimal digits"),
        ("[repository.a]\naddress = '/x'\nmax_rate = '10'", "must be a rate such as"),
        ("[repository.a]\naddress = '/x'\nmax_rate = '10B'", "at least 1kB"),
        ("[cluster.a]\nretention = { window = '14m' }", "a time such as"),
        ("[cluster.a]\nretention = { window = '0d' }", "more than nothing"),
        ("[cluster.a]\nmax_wal_lag = 'never'", 'or "off"'),
        ("[defaults]\non_failure = '/bin/page dba'", "must be a list of words"),
        ("[cluster.a]\non_success = ['page', 'dba']", "the absolute path of a program"),
        ("[cluster.a]\non_success = ['/bin/page', 3]", "a list of texts"),
        ("defaults = 3", "must be a table: [defaults]"),
        ("[defaults]\nmax_wal_lags = '1h'", 'did you mean "max_wal_lag"'),
        ("[cluster.a]\nrepositories = []", "a list of names"),
        ("[cluster.a]\nrepositories = ['b', 'b']", "a name twice"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, said: str) -> None:
    (found,) = _mistakes(tmp_path, text)
    assert said in found


@pytest.mark.parametrize("text", ["a = ", "[a", "a = 1\na = 2", 'a = "\n', "a = [" * 10_000, "a.b = 1\na = 2"])
def test_what_is_no_toml_is_said_with_its_place(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        _load(tmp_path, text)
    assert "line" in caught.value.message or "nested" in caught.value.message


def test_a_file_that_is_no_text_is_said(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"a = 1\nb = '\xff'")
    with pytest.raises(ConfigurationError, match="line 2: this is not UTF-8"):
        load_configuration(str(tmp_path / "x"), {})


@pytest.mark.parametrize("kind", ["missing", "directory", "too long"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "directory":
        path.mkdir()
    elif kind == "too long":
        path.write_bytes(b"#" * (5 << 20))
    with pytest.raises(ConfigurationError, match=str(path)):
        load_configuration(str(path), {})


def test_secrets_are_never_in_a_message(tmp_path: Path) -> None:
    text = """\
[repository.a]
address = "file:/x"
secret_key = "very-secret"
account_key = ["very-secret"]
[repository.b]
address = "s3://bucket/x"
secret_key = ["very-secret"]
[cluster.a]
secret_key = "very-secret"
connection = "host=x password=very-secret"
service = "x"
"""
    with pytest.raises(ConfigurationError) as caught:
        _load(tmp_path, text)
    assert "very-secret" not in caught.value.message
    assert caught.value.message.count("********") == 5


def test_a_connection_string_that_libpq_refuses_is_a_mistake_like_others(tmp_path: Path) -> None:
    def check(text: str) -> None:
        if "hots" in text:
            raise UsageError("invalid connection option")

    path = tmp_path / "x"
    path.write_text('[cluster.a]\nconnection = "hots=db1"\n[cluster.b]\nconnection = "host=db1"\ncompression = -1\n')
    with pytest.raises(ConfigurationError) as caught:
        load_configuration(str(path), {}, check_connection=check)
    assert 'line 2: cluster.a.connection = "hots=db1": invalid connection option' in caught.value.message
    assert "line 5" in caught.value.message


# Which file


def test_the_users_own_file_goes_before_the_systems(tmp_path: Path) -> None:
    own = tmp_path / "home" / ".config" / "polarvault" / "polarvault.toml"
    system = tmp_path / "polarvault.toml"
    environment = {"HOME": str(tmp_path / "home")}

    def load() -> Configuration:
        return load_configuration(None, environment, system_file=str(system))

    nothing = load()
    assert nothing.path is None
    assert nothing.looked_at == (str(own), str(system))
    system.write_text("[cluster.system]\n")
    assert list(load().clusters) == ["system"]
    own.parent.mkdir(parents=True)
    own.write_text("[cluster.own]\n")
    assert list(load().clusters) == ["own"]
    assert load().passed_over == str(system)
    elsewhere = tmp_path / "xdg" / "polarvault" / "polarvault.toml"
    elsewhere.parent.mkdir(parents=True)
    elsewhere.write_text("[cluster.xdg]\n")
    environment["XDG_CONFIG_HOME"] = str(tmp_path / "xdg")
    assert list(load().clusters) == ["xdg"]
    environment["XDG_CONFIG_HOME"] = "relative"
    assert list(load().clusters) == ["own"]
    named = load_configuration(str(system), environment)
    assert (list(named.clusters), named.passed_over) == (["system"], None)


# Where values come from


def test_each_value_has_its_source(tmp_path: Path) -> None:
    found = _load(
        tmp_path, GOOD, AWS_REGION="elsewhere", AWS_SESSION_TOKEN="token", POLARVAULT_PASSPHRASE="x", AZURE_ENDPOINT="y"
    )
    settings = {(one.section, one.name, one.field): one for one in found.settings}
    region = settings["repository", "main", "region"]
    assert (region.value, region.kind, region.line) == ("eu-1", SourceKind.FILE, 7)
    secret = settings["repository", "main", "secret_key"]
    assert (secret.value, secret.kind) == ("********", SourceKind.FILE)
    token = settings["repository", "main", "session_token"]
    assert (token.value, token.kind, token.variable) == ("********", SourceKind.ENVIRONMENT, "AWS_SESSION_TOKEN")
    assert settings["repository", "main", "path_style"].kind is SourceKind.DEFAULT
    assert ("repository", "main", "account") not in settings
    # The file says where its key comes from; of the other one the environment does.
    assert ("repository", "main", "passphrase") not in settings
    assert settings["repository", "disk", "passphrase"].variable == "POLARVAULT_PASSPHRASE"
    assert settings["cluster", "shop", "retention.monthly"].value == 12
    assert "hunter2" not in str(settings["cluster", "shop", "connection"].value)


def test_a_file_with_secrets_that_others_may_read_is_warned_of(tmp_path: Path) -> None:
    path = tmp_path / "polarvault.toml"
    path.write_text(GOOD)
    path.chmod(0o644)
    (warning,) = load_configuration(str(path), {}).warnings
    assert f"chmod 600 {path}" in warning
    path.write_text("[cluster.a]\n")
    assert load_configuration(str(path), {}).warnings == ()


def test_config_show_prints_a_file_that_can_be_read_again(tmp_path: Path) -> None:
    path = tmp_path / "polarvault.toml"
    path.write_text(GOOD)
    path.chmod(0o600)
    shown = run_polarvault("config", "show", "--config", path).stdout
    assert "very-secret" not in shown
    assert "hunter2" not in shown
    again = tmp_path / "again.toml"
    again.write_text(shown)
    first, second = load_configuration(str(path), {}), load_configuration(str(again), {})
    assert second.clusters["bank"] == first.clusters["bank"]
    assert second.repositories["disk"] == first.repositories["disk"]
    assert "# line 7" in shown


def test_config_show_as_json(tmp_path: Path) -> None:
    path = tmp_path / "polarvault.toml"
    path.write_text(GOOD)
    printed = json.loads(run_polarvault("config", "show", "--config", path, "--json").stdout)
    assert (printed["command"], printed["path"], printed["exit_status"]) == ("config", str(path), 0)
    assert len(printed["warnings"]) == 1
    by_name = {(one["name"], one["setting"]): one for one in printed["settings"]}
    assert by_name["main", "region"]["value"] == "eu-1"
    assert by_name["main", "region"]["line"] == 7
    assert by_name["main", "path_style"] == {
        "section": "repository", "name": "main", "setting": "path_style", "value": None, "source": "default",
        "line": None, "variable": None,
    }  # fmt: skip


def test_config_show_tells_of_mistakes_in_json_too(tmp_path: Path) -> None:
    path = tmp_path / "polarvault.toml"
    path.write_text("[cluster.a]\nconnection = 'hots=db1 password=x'\n")
    ended = run_polarvault("config", "show", "--config", path, "--json", check=False)
    assert ended.returncode == 2
    printed = json.loads(ended.stdout)
    assert printed["error"]["id"] == "configuration"
    assert "line 2: cluster.a.connection" in printed["error"]["message"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30min", 1800), ("36h", 129_600), ("14d", 1_209_600), ("1.5h", 5400), ("2 w", 1_209_600)],
)
def test_times(text: str, seconds: int) -> None:
    assert values.duration_s(text) == seconds


@pytest.mark.parametrize(("text", "size"), [("512kB", 512 << 10), ("1.5MB", 1536 << 10), ("2GB", 2 << 30)])
def test_rates(text: str, size: int) -> None:
    assert values.rate(text) == size


def test_limits_come_from_the_cluster_then_from_the_defaults(tmp_path: Path) -> None:
    text = (
        '[defaults]\nmax_backup_age = "2d"\nmax_verify_age = "off"\n[cluster.a]\nmax_backup_age = "3h"\n[cluster.b]\n'
    )
    found = _load(tmp_path, text)
    assert found.clusters["a"].limits == Limits(max_backup_age_s=3 * 3600, max_verify_age_s=0)
    assert found.clusters["b"].limits == found.limits == Limits(max_backup_age_s=2 * 86_400, max_verify_age_s=0)
    shown = {(one.name, one.field): (one.value, one.line) for one in found.settings}
    assert shown["a", "max_backup_age"] == ("3h", 5)
    assert shown["b", "max_backup_age"] == ("2d", 2)
    assert shown["", "max_verify_age"] == ("off", 3)
    text = '[defaults]\non_failure = ["/p", "a b"]\nhook_timeout = "5s"\n[cluster.a]\non_failure = []\n[cluster.b]\n'
    hooks = _load(tmp_path, text)
    assert hooks.hooks_of("a") == Hooks(timeout_s=5)
    assert hooks.hooks_of("b") == hooks.hooks_of(None) == Hooks(on_failure=("/p", "a b"), timeout_s=5)
    assert "[defaults]" in configuration_text(found)


_SNAPSHOTS = """
[snapshots.san]
paths = ["/srv/pg"]
create = ["/usr/local/bin/san", "create", "{name}", "{source}"]
clone = ["/usr/local/bin/san", "clone", "{name}", "{snapshot}", "{target}"]
list = ["/usr/local/bin/san", "list"]
destroy = ["/usr/local/bin/san", "destroy", "{name}"]
atomic = true
timeout = "2min"
"""


def test_commands_for_snapshots_are_read_and_serve_what_lies_below_their_paths(tmp_path: Path) -> None:
    (tmp_path / "x").write_text(_SNAPSHOTS)
    found = load_configuration(str(tmp_path / "x"), {}).snapshots["san"]
    assert (found.paths, found.is_atomic, found.timeout_s) == (("/srv/pg",), True, 120)
    words = commands_for(["/srv/pg/data", "/srv/pg"], [found])
    assert words is not None
    assert words.destroy == ("/usr/local/bin/san", "destroy", "{name}")
    assert commands_for(["/srv/pgother"], [found]) is None
    with pytest.raises(SnapshotRefused, match="/srv/other"):
        commands_for(["/srv/pg/data", "/srv/other"], [found])


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('paths = ["/srv/pg"]\n', "", "has no paths"),
        ('"/srv/pg"', '"srv/pg"', "absolute path"),
        ('"destroy", "{name}"', '"destroy"', "lacks {name}"),
        ('"{snapshot}", ', "", "lacks {snapshot}"),
        ('list = ["/usr/local/bin/san", "list"]', "list = []", "must have words"),
        ("atomic", "atomik", 'did you mean "atomic"'),
    ],
)
def test_mistakes_in_commands_for_snapshots_are_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in _SNAPSHOTS
    (tmp_path / "x").write_text(_SNAPSHOTS.replace(old, new))
    with pytest.raises(ConfigurationError) as raised:
        load_configuration(str(tmp_path / "x"), {})
    assert said in raised.value.message
