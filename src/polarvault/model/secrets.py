"""Hide what must not be read by others: passwords, keys and tokens in connection strings, URIs and command lines.

What is printed ends up in logs, tickets and mails. Everything that shows a setting, a command or a server's words
passes through here. A value that is not recognised is shown: this is a net, and not a proof.
"""

from __future__ import annotations

import re
from functools import cache

HIDDEN = "********"
_WORD = r"(?:'(?:[^'\\]|\\.|'')*'|\"(?:[^\"\\]|\\.)*\"|[^\s'\"&,;)]+(?:['\"](?=[^\s'\"&,;)])[^\s'\"&,;)]*)*)"
# What names a secret, alone or as the end or the beginning of a longer name: PGPASSWORD, aws_secret_access_key.
_NAMES = (
    r"[\w.-]*(?:pass(?:word|wd|phrase|code)|pgpass(?!file)|secret|token|credential|api[-_]?key|access[-_]?key"
    r"|account[-_]?key|private[-_]?key|encryption[-_]?key|sas[-_]?key|signature|cookie)[\w.-]*"
    # A file with a secret may be named.
    r"(?<![-_]file)"
)
_I = re.IGNORECASE
# What is looked for, flags, and what is put in its place.
_PATTERNS: tuple[tuple[str, int, str], ...] = (
    # scheme://user:password@host; the last @ ends it, because a password may hold one that nobody has encoded.
    (r"(\b[a-z][a-z0-9+.-]*://[^\s:/@'\"]*:)[^\s/'\"]*(?=@)", _I, rf"\1{HIDDEN}"),
    # A password with a slash in it: everything up to the @, unless it is a port and a path.
    (r"(\b[a-z][a-z0-9+.-]*://[^\s:/@'\"]*:)(?!\d+/)[^\s'\"@]*(?=@)", _I, rf"\1{HIDDEN}"),
    # password=..., PGPASSWORD=..., --secret-key=..., ?token=...&
    (rf"(?<![\w-])((?:--?)?{_NAMES}\s*=\s*)(?!\s){_WORD}", _I, rf"\1{HIDDEN}"),
    # ?sig=, ?key=, ?X-Amz-Signature= of signed addresses
    (r"([?&](?:sig|key|x-amz-[a-z-]*|x-goog-[a-z-]*|sv|se)=)[^\s&'\"]+", _I, rf"\1{HIDDEN}"),
    # --password ..., --access-token ...: the value is the next word
    (rf"((?<!\S)--?{_NAMES}\s+)(?!-){_WORD}", _I, rf"\1{HIDDEN}"),
    # curl -u user:password, wget --user=..., --user user:password
    (r"((?<!\S)(?:-u|--user|--proxy-user)[\s=]+['\"]?[^\s:'\"]+:)[^\s'\"]+", 0, rf"\1{HIDDEN}"),
    # sshpass -p, mc -p: only where the program takes a password so
    (rf"(\bsshpass\s+(?:-\w+\s+)*-p\s*){_WORD}", 0, rf"\1{HIDDEN}"),
    # HTTP headers
    (r"(\b(?:proxy-)?authorization\s*:\s*(?:(?:bearer|basic|token|aws\S*)\s+)?)[^\s'\"]+", _I,
     rf"\1{HIDDEN}"),
    (r"(\bx-[\w-]*(?:key|token|secret|auth)[\w-]*\s*:\s*)[^\s'\"]+", _I, rf"\1{HIDDEN}"),
    (r"(\bbearer\s+)(?!\*)[A-Za-z0-9._~+/=-]{8,}", _I, rf"\1{HIDDEN}"),
    # openssl: -k secret, -pass pass:secret
    (r"(\bpass:)[^\s'\"]+", 0, rf"\1{HIDDEN}"),
    (rf"(\bopenssl\b[^|;&]*\s-[kK]\s+){_WORD}", 0, rf"\1{HIDDEN}"),
    # Keys that can be told by their form: AWS, Azure's connection strings, PEM
    (r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b", 0, HIDDEN),
    (r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL, HIDDEN),
)  # fmt: skip


@cache
def _patterns() -> list[tuple[re.Pattern[str], str]]:
    # Compiling them takes a tenth of what `wal push` may take to start, and few programs have anything to hide.
    return [(re.compile(pattern, flags), replacement) for pattern, flags, replacement in _PATTERNS]


def hide_secrets(text: str) -> str:
    """Return a text with every secret that can be recognised replaced by asterisks; doing it twice is safe."""
    for pattern, replacement in _patterns():
        text = pattern.sub(replacement, text)
    return text
