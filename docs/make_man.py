"""Write the manual pages and the shells' completions from the program itself (`make docs`).

`docs/man` and `contrib/completion` are installed with the package, into share/man/man1 and to where bash, zsh and fish
look for completions. Nothing in them depends on the machine or the day on which they are made.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from polarvault import __version__
from polarvault.cli.main import group

_DOCS = Path(__file__).parent
MAN = _DOCS / "man"
COMPLETION = _DOCS.parent / "contrib" / "completion"
_COMPLETION_NAMES = {"bash": "polarvault", "zsh": "_polarvault", "fish": "polarvault.fish"}
_CONNECTS = {"basebackup", "receivewal", "check"}
# The words of a page that are the same for each command.
_ENVIRONMENT = """\
PGHOST, PGPORT, PGUSER, PGDATABASE, PGPASSWORD, PGPASSFILE, PGSERVICE and the other variables of libpq are used as by
PostgreSQL's own programs, and so are ~/.pgpass and ~/.pg_service.conf."""
_STATUS = {
    "basebackup": "0 when the backup is complete and durable, 1 for every failure, as pg_basebackup.",
    "receivewal": "0 when it was stopped in order, 1 for every failure, as pg_receivewal.",
    "verifybackup": "0 when the backup is good, 1 when it is not or could not be read, as pg_verifybackup.",
    "check": "0 when all is well, 1 for warnings, 2 for problems.",
}
_OTHER_STATUS = "0 on success. What the others mean stands in docs/reference.md, section Exit statuses."


def man_pages() -> dict[str, str]:
    """Return the text of each page by its file's name."""
    context = click.Context(group, info_name="polarvault", terminal_width=100, max_content_width=100)
    pages = {"polarvault.1": _page(group, context, context)}
    pages |= {f"{inner.command_path.replace(' ', '-')}.1": page for inner, page in _pages_below(group, context)}
    return pages


def completions() -> dict[str, str]:
    """Return the completion script of each shell by its file's name."""
    scripts = {}
    for shell, name in _COMPLETION_NAMES.items():
        kind = get_completion_class(shell)
        assert kind is not None
        # What click does for bash besides asks the shell that is installed here for its version.
        scripts[name] = kind.source_template % kind(group, {}, "polarvault", "_POLARVAULT_COMPLETE").source_vars()
    return scripts


def _pages_below(parent: click.Group, context: click.Context) -> Iterator[tuple[click.Context, str]]:
    for name in parent.list_commands(context):
        command = parent.get_command(context, name)
        assert command is not None
        inner = click.Context(command, info_name=name, parent=context, terminal_width=100, max_content_width=100)
        yield inner, _page(command, inner, context)
        if isinstance(command, click.Group):
            yield from _pages_below(command, inner)


def _page(command: click.Command, context: click.Context, parent: click.Context) -> str:
    name = context.command_path.replace(" ", "-")
    first, _, rest = (command.help or "").partition("\n")
    lines = [
        f'.TH "{name.upper()}" "1" "" "Polarvault {__version__}" "Polarvault"',
        *_section("NAME", rf"{_escaped(name)} \- {_escaped(first.rstrip('.'))}"),
        *_section("SYNOPSIS", rf"\fB{_escaped(context.command_path)}\fR "
                  + _escaped(" ".join(command.collect_usage_pieces(context)))),
        *_section("DESCRIPTION", _paragraphs(rest.strip() or first)),
    ]  # fmt: skip
    if isinstance(command, click.Group):
        lines.append(".SH COMMANDS")
        for below in command.list_commands(context):
            found = command.get_command(context, below)
            assert found is not None
            lines += [".TP", rf"\fB{_escaped(name)}\-{_escaped(below)}\fR(1)"]
            lines.append(_escaped((found.help or "").partition("\n")[0]))
    options = [record for option in command.get_params(context) if (record := option.get_help_record(context))]
    if options:
        lines.append(".SH OPTIONS")
        for switches, meaning in options:
            lines += [".TP", rf"\fB{_escaped(switches)}\fR", _paragraphs(meaning)]
    if context.info_name in _CONNECTS:
        lines += _section("ENVIRONMENT", _paragraphs(_ENVIRONMENT))
    lines += _section("EXIT STATUS", _escaped(_STATUS.get(str(context.info_name), _OTHER_STATUS)))
    lines += _section("SEE ALSO", _see_also(command, context, parent))
    return "\n".join(lines) + "\n"


def _see_also(command: click.Command, context: click.Context, parent: click.Context) -> str:
    if context is parent:
        return "The pages in docs/, beginning with docs/operation.md."
    above = rf"\fB{_escaped(parent.command_path.replace(' ', '-'))}\fR(1)"
    return f"{above}, docs/{_escaped(str(context.info_name))}.md" if parent.parent is None else above


def _section(title: str, text: str) -> list[str]:
    return [f".SH {title}", text]


def _paragraphs(text: str) -> str:
    # click keeps a paragraph's line breaks after \b; troff fills lines of its own accord.
    return "\n.PP\n".join(
        "\n".join(_escaped(line.strip()) for line in paragraph.replace("\b", "").strip().splitlines())
        for paragraph in text.split("\n\n")
    )


def _escaped(text: str) -> str:
    """Keep troff from reading backslashes, hyphens, and lines that begin with a dot or an apostrophe as its own."""
    text = text.replace("\\", r"\(rs").replace("-", r"\-").replace("~", r"\(ti").replace("^", r"\(ha")
    return rf"\&{text}" if text.startswith((".", "'")) else text


def write(directory: Path, files: dict[str, str]) -> None:
    """Write the files, and remove those of commands that are no more."""
    directory.mkdir(exist_ok=True, parents=True)
    for path in directory.iterdir():
        if path.name not in files:
            path.unlink()
    for name, text in files.items():
        (directory / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(MAN, man_pages())
    write(COMPLETION, completions())
