"""Secrets do not reach anything that is printed, whatever they stand in."""

from __future__ import annotations

import pytest

from polarvault.model.secrets import hide_secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("host=a password=geheim x=1", "host=a password=******** x=1"),
        ("password = 'a b\\' geheim' x=1", "password = ******** x=1"),
        ("password='it''s geheim' host=x", "password=******** host=x"),
        ("host=a password=g'eheim x=1", "host=a password=******** x=1"),
        ("host=x sslpassword=geheim", "host=x sslpassword=********"),
        ("postgresql://u:geheim@h/d", "postgresql://u:********@h/d"),
        ("postgres://u:geheim%zz@h/d?x=1", "postgres://u:********@h/d?x=1"),
        ("ftp://u:ge/heim@h/x", "ftp://u:********@h/x"),
        ("postgresql://h/d?user=u&password=geheim&x=1", "postgresql://h/d?user=u&password=********&x=1"),
        ("PGPASSWORD=geheim psql", "PGPASSWORD=******** psql"),
        (
            "AWS_SECRET_ACCESS_KEY=geheim aws s3 cp %p s3://b/%f",
            "AWS_SECRET_ACCESS_KEY=******** aws s3 cp %p s3://b/%f",
        ),
        ("s3cmd --secret_key=geheim get s3://b/%f %p", "s3cmd --secret_key=******** get s3://b/%f %p"),
        ("tool --secret-key geheim %f", "tool --secret-key ******** %f"),
        ("curl -u bob:geheim https://h/%f -o %p", "curl -u bob:******** https://h/%f -o %p"),
        ("curl https://bob:geheim@h/%f -o %p", "curl https://bob:********@h/%f -o %p"),
        ("curl -H 'Authorization: Bearer geheim' h", "curl -H 'Authorization: Bearer ********' h"),
        ('curl -H "X-Api-Key: geheim" h', 'curl -H "X-Api-Key: ********" h'),
        ("azcopy https://h/x?a=1&sig=geheim%3D", "azcopy https://h/x?a=1&sig=********"),
        ("sshpass -p geheim scp %p h:/%f", "sshpass -p ******** scp %p h:/%f"),
        ("openssl enc -d -aes-256-cbc -k geheim -in %f", "openssl enc -d -aes-256-cbc -k ******** -in %f"),
        ("openssl enc -pass pass:geheim -in %f", "openssl enc -pass pass:******** -in %f"),
    ],
)
def test_a_secret_is_replaced_and_nothing_else(text: str, shown: str) -> None:
    assert hide_secrets(text) == shown
    assert hide_secrets(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "cp /archive/%f %p", "PGPASSFILE=/x/.pgpass cp %f %p", "host=h passfile=/x/.pgpass user=u", "http://h:8080/a@b/%f",
        "polarvault wal fetch --system-identifier 7 /wal %f %p", "rsync -a host:/wal/%f %p", "",
    ],
)  # fmt: skip
def test_what_is_no_secret_stays(text: str) -> None:
    assert hide_secrets(text) == text


def test_a_file_with_a_secret_may_be_named() -> None:
    for text in (
        "--passphrase-file /etc/x --key-file, or",
        "passphrase_file = /etc/x",
        "write --passphrase-file or another",
    ):
        assert hide_secrets(text) == text
    assert "hunter2" not in hide_secrets("--passphrase hunter2 passphrase=hunter2 --passphrase-command 'echo hunter2'")
