"""Hide what must not be read by others: passwords, keys and tokens in connection strings, URIs and command lines.

What is printed ends up in logs, tickets and mails. Everything that shows a setting, a command or a server's words
passes through here. A value that is not recognised is shown: this is a net, and not a proof.
"""

from __future__ import annotations

import re

HIDDEN = "********"
_WORD = r"(?:'(?:[^'\\]|\\.|'')*'|\"(?:[^\"\\]|\\.)*\"|[^\s'\"&,;)]+(?:['\"](?=[^\s'\"&,;)])[^\s'\"&,;)]*)*)"
# What names a secret, alone or as the end or the beginning of a longer name: PGPASSWORD, aws_secret_access_key.
_NAMES = (
    r"[\w.-]*(?:pass(?:word|wd|phrase|code)|pgpass(?!file)|secret|token|credential|api[-_]?key|access[-_]?key"
    r"|account[-_]?key|private[-_]?key|encryption[-_]?key|sas[-_]?key|signature|cookie)[\w.-]*"
    # A file with a secret may be named.
    r"(?<![-_]file)"
)
_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    # scheme://user:password@host; the last @ ends it, because a password may hold one that nobody has encoded.
    (re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s:/@'\"]*:)[^\s/'\"]*(?=@)", re.IGNORECASE), rf"\1{HIDDEN}"),
    # A password with a slash in it: everything up to the @, unless it is a port and a path.
    (re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s:/@'\"]*:)(?!\d+/)[^\s'\"@]*(?=@)", re.IGNORECASE), rf"\1{HIDDEN}"),
    # password=..., PGPASSWORD=..., --secret-key=..., ?token=...&
    (re.compile(rf"(?<![\w-])((?:--?)?{_NAMES}\s*=\s*)(?!\s){_WORD}", re.IGNORECASE), rf"\1{HIDDEN}"),
    # ?sig=, ?key=, ?X-Amz-Signature= of signed addresses
    (re.compile(r"([?&](?:sig|key|x-amz-[a-z-]*|x-goog-[a-z-]*|sv|se)=)[^\s&'\"]+", re.IGNORECASE), rf"\1{HIDDEN}"),
    # --password ..., --access-token ...: the value is the next word
    (re.compile(rf"((?<!\S)--?{_NAMES}\s+)(?!-){_WORD}", re.IGNORECASE), rf"\1{HIDDEN}"),
    # curl -u user:password, wget --user=..., --user user:password
    (re.compile(r"((?<!\S)(?:-u|--user|--proxy-user)[\s=]+['\"]?[^\s:'\"]+:)[^\s'\"]+"), rf"\1{HIDDEN}"),
    # sshpass -p, mc -p: only where the program takes a password so
    (re.compile(rf"(\bsshpass\s+(?:-\w+\s+)*-p\s*){_WORD}"), rf"\1{HIDDEN}"),
    # HTTP headers
    (re.compile(r"(\b(?:proxy-)?authorization\s*:\s*(?:(?:bearer|basic|token|aws\S*)\s+)?)[^\s'\"]+", re.IGNORECASE),
     rf"\1{HIDDEN}"),
    (re.compile(r"(\bx-[\w-]*(?:key|token|secret|auth)[\w-]*\s*:\s*)[^\s'\"]+", re.IGNORECASE), rf"\1{HIDDEN}"),
    (re.compile(r"(\bbearer\s+)(?!\*)[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE), rf"\1{HIDDEN}"),
    # openssl: -k secret, -pass pass:secret
    (re.compile(r"(\bpass:)[^\s'\"]+"), rf"\1{HIDDEN}"),
    (re.compile(rf"(\bopenssl\b[^|;&]*\s-[kK]\s+){_WORD}"), rf"\1{HIDDEN}"),
    # Keys that can be told by their form: AWS, Azure's connection strings, PEM
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), HIDDEN),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), HIDDEN),
)  # fmt: skip


def hide_secrets(text: str) -> str:
    """Return a text with every secret that can be recognised replaced by asterisks; doing it twice is safe."""
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text
