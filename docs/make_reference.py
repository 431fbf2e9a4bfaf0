"""Write pages from the program itself (`make docs`): reference.md, help and exit statuses; errors.md, error ids."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import click

import polarvault
from polarvault import errors
from polarvault.cli.main import DROP_IN, OTHER_ERRORS, group
from polarvault.cli.wal_fetch import FAILED, NOT_THERE, SERVED
from polarvault.storage.below import NameRefused

_DIRECTORY = Path(__file__).parent


def reference() -> str:
    """Return the page."""
    context = click.Context(group, info_name="polarvault", terminal_width=100, max_content_width=100)
    parts = ["# Reference\n\nWritten by `make docs` from the program itself; edit the program, not this page.\n"]
    for name, text in _commands(group, context):
        parts.append(f"## {name}\n\n```\n{text}\n```\n")
    parts.append("## Exit statuses\n\n`basebackup` ends with 1 for every failure, as pg_basebackup does.\n")
    parts.append(
        f"`wal fetch` ends with {SERVED} when the file is there, {NOT_THERE} when it is in no directory, {FAILED} for "
        "every failure; it dies of SIGTERM, as the server expects of a restore_command.\n"
    )
    parts.append("`check` ends with 0 when all is well, 1 for warnings, 2 for problems.\n")
    parts.append(_exit_statuses())
    return "\n".join(parts)


def _commands(group: click.Group, context: click.Context) -> Iterator[tuple[str, str]]:
    """Yield the full name and the help of every command, those of subcommands after their group's."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        inner = click.Context(command, info_name=name, parent=context, terminal_width=100, max_content_width=100)
        yield inner.command_path, "\n".join(line.rstrip() for line in command.get_help(inner).splitlines())
        if isinstance(command, click.Group):
            yield from _commands(command, inner)


def _exit_statuses() -> str:
    # A signal has a status of its own.
    generic = (errors.PolarvaultError, errors.Interrupted)
    meanings: dict[int, list[str]] = {}
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.PolarvaultError) and kind not in generic:
            meanings.setdefault(kind.exit_code, []).append((kind.__doc__ or "").splitlines()[0])
    rows = [f"| {status} | {'<br>'.join(meanings[status])} |" for status in sorted(meanings)]
    rows.append("| 128 + n | Signal n arrived; cleanup has been done. |")
    return "| status | when |\n|---|---|\n" + "\n".join(rows) + "\n"


def error_classes() -> list[type[errors.PolarvaultError]]:
    """Return every class of the error tree, wherever it is defined, sorted by id."""
    for module in pkgutil.walk_packages(polarvault.__path__, "polarvault."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found, waiting = {errors.PolarvaultError}, [errors.PolarvaultError]
    while waiting:
        kinds = waiting.pop().__subclasses__()
        found.update(kinds)
        waiting += kinds
    return sorted(found, key=lambda kind: kind.id)


def error_page() -> str:
    """Return the page of error ids."""
    rows = [
        (kind.id, str(kind.exit_code), kind.actor, _first_line(kind), kind.remedy)
        for kind in error_classes()
        if kind is not errors.Interrupted
    ]
    interrupted = errors.Interrupted
    rows.append((interrupted.id, "128 + n", interrupted.actor, _first_line(interrupted), interrupted.remedy))
    rows.append((NameRefused.id, "1", NameRefused.actor, _first_line(NameRefused), NameRefused.remedy))
    rows += [(name, "1", *words) for name, words in OTHER_ERRORS.items()]
    table = "\n".join(
        f"| `{name}` | {status} | {actor} | {meaning} | {remedy} |"
        for name, status, actor, meaning, remedy in sorted(rows)
    )
    drop_in = ", ".join(f"`{name}`" for name in sorted(DROP_IN))
    return f"""# Errors

Written by `make docs` from the program itself; edit the program, not this page.

Every error has an id that stays from version to version, whatever becomes of its message. `--json` shows it as
`error.id`, with the message, the detail, the hint and the server's SQLSTATE ([json.md](json.md)). The hint of the
message knows more than this table: go by it first. {drop_in} end with 1
for every failure, as the programs that they stand in for; the other commands with the status that stands here.
`wal fetch` ends with {FAILED}.

| id | exit status | who must act | what it means | what to do |
|---|---|---|---|---|
{table}
"""


def _first_line(kind: type) -> str:
    return (kind.__doc__ or "").splitlines()[0].removesuffix(".")


def pages() -> dict[Path, str]:
    """Return every page that is made from the program."""
    return {_DIRECTORY / "reference.md": reference(), _DIRECTORY / "errors.md": error_page()}


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
        print(f"wrote docs/{path.name}")
