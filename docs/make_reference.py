"""Write docs/reference.md from the program itself: every command's help and the exit statuses (`make docs`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from polarvault import errors
from polarvault.cli.main import group
from polarvault.cli.wal_fetch import FAILED, NOT_THERE, SERVED

_PAGE = Path(__file__).with_name("reference.md")


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


if __name__ == "__main__":
    _PAGE.write_text(reference(), encoding="utf-8")
