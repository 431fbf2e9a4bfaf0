"""Run pg_dump against a clone, and pg_restore of the same version against the server that gets the table."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence

from polarvault.clones.model import CloneRecord
from polarvault.errors import StartFailed
from polarvault.flashback.errors import DumpFailed
from polarvault.flashback.names import TableName
from polarvault.flashback.session import conninfo_of, options_of
from polarvault.instance.account import process_identity
from polarvault.instance.model import Account
from polarvault.instance.programs import find_program
from polarvault.model import versions
from polarvault.model.names import shown_text

# Compressing costs more than reading a table: the quickest level halves most of them.
_COMPRESSION = "1"
_NO_COMPRESSION = "0"
_MOST_WORDS_BYTES = 1 << 20
_LAST_LINES = 15


def programs_of(record: CloneRecord) -> tuple[str, str]:
    """Return the paths of pg_dump and pg_restore, of the clone's version or of the next that is there.

    A newer pg_dump knows older servers, an older one refuses newer ones. Raises StartFailed.
    """
    account = _account(record)
    for major in range(record.major, versions.NEWEST.major + 1):
        found = [
            find_program(name, major, account, bindir=record.binaries, environment=os.environ)
            for name in ("pg_dump", "pg_restore")
        ]
        if found[0] is not None and found[1] is not None:
            return found[0], found[1]
    raise StartFailed(
        f'there is no pg_dump of version {record.major} in "{record.binaries}", nor in the usual places',
        hint="install the client programs of that version, or name a directory with all of them: --bindir DIR",
    )


def dump(
    program: str, record: CloneRecord, database: str, tables: Sequence[TableName], descriptor: int, *,
    data_only: bool, encoding: str | None, is_kept: bool,
) -> None:  # fmt: skip
    """Write a dump of tables, in pg_dump's custom format, to a file that is open; raise DumpFailed.

    encoding: the names are in; None for the database's own. is_kept: false for one that is restored at once.
    """
    compression = _COMPRESSION if is_kept else _NO_COMPRESSION
    words = [program, "--format=custom", f"--compress={compression}", "--no-password"]
    words += ["--data-only"] if data_only else []
    words += [] if encoding is None else [f"--encoding={encoding}"]
    words += ["--no-publications", "--no-subscriptions", "--dbname", conninfo_of(record, database)]
    words += [f"--table={name.pattern}" for name in tables]
    if sum(len(word.encode("utf-8", "surrogateescape")) + 1 for word in words) > _MOST_WORDS_BYTES:
        raise DumpFailed(
            f"there are {len(tables)} tables and partitions, more than pg_dump can be told of",
            hint="name some of the partitions instead of the table: --table",
        )
    account = _account(record)
    variables = _environment({"PGOPTIONS": options_of(record)})
    _run(words, variables, stdout=descriptor, account=account)


def restore(program: str, path: str, conninfo: str, *, password: str | None, options: str, more: Sequence[str]) -> None:
    """Restore a dump in one transaction, as the caller; raise DumpFailed. Then nothing of it is there.

    conninfo: without a password, which is nobody's business who sees the table of processes.
    """
    words = [program, "--single-transaction", "--exit-on-error", "--no-password", *more, "--dbname", conninfo, path]
    variables = {**os.environ, "LC_ALL": "C.UTF-8", "PGOPTIONS": options}
    if password is not None:
        variables["PGPASSWORD"] = password
    _run(words, variables, stdout=subprocess.DEVNULL, account=None)


def _run(words: Sequence[str], variables: Mapping[str, str], *, stdout: int, account: Account | None) -> None:
    identity = {} if account is None else process_identity(account)
    name = os.path.basename(words[0])
    with subprocess.Popen(
        list(words), stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE, cwd="/", env=dict(variables),
        encoding="utf-8", errors="replace", **identity,
    ) as running:  # fmt: skip
        try:
            _, said = running.communicate()
        except BaseException:
            # We were interrupted: what it writes is of no use, and it would go on.
            running.kill()
            raise
    if running.returncode != 0:
        lines = [line for line in said.splitlines() if line.strip()][-_LAST_LINES:]
        first = next((line for line in lines if "error:" in line), f"it ended with {running.returncode}")
        raise DumpFailed(
            f"{name} failed: {shown_text(first.partition('error:')[2].strip() or first)}",
            hint="free space there (df -h), or name another file" if "No space left" in said else None,
            detail=shown_text("\n".join(lines)) or None,
        )


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return {**kept, "LC_ALL": "C.UTF-8", **more}


def _account(record: CloneRecord) -> Account:
    return Account(record.account, record.uid, record.gid)
