"""A configuration for people and for programs: every setting with where it comes from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from polarvault.config.model import Configuration, ShownSetting, SourceKind


def configuration_text(configuration: Configuration) -> Iterator[str]:
    """Yield the lines of the report: tables as the file has them, and behind each value its source."""
    if configuration.path is None:
        yield f"no configuration file; looked for {', '.join(configuration.looked_at)}"
        return
    yield f"# {configuration.path}"
    if configuration.passed_over is not None:
        yield f"# {configuration.passed_over} is not read: one file counts, the user's own before the system's"
    for (section, name), group in groupby(configuration.settings, key=lambda one: (one.section, one.name)):
        settings = list(group)
        yield ""
        yield f"[{section}.{name}]" if name else f"[{section}]"
        written = [
            f"{one.field} = {_value(one.value)}" if one.kind is not SourceKind.DEFAULT else f"# {one.field}"
            for one in settings
        ]
        width = max(map(len, written))
        for one, text in zip(settings, written, strict=True):
            yield f"{text:{width}}  # {_source(one)}"


def configuration_json(configuration: Configuration) -> dict[str, Any]:
    """Return the report as --json prints it."""
    return {
        "path": configuration.path,
        "passed_over": configuration.passed_over,
        "looked_at": list(configuration.looked_at),
        "settings": [
            {
                "section": one.section,
                "name": one.name or None,
                "setting": one.field,
                "value": one.value if one.kind is not SourceKind.DEFAULT else None,
                "source": one.kind.value,
                "line": one.line,
                "variable": one.variable,
            }
            for one in configuration.settings
        ],
    }


def _source(setting: ShownSetting) -> str:
    match setting.kind:
        case SourceKind.FILE:
            return f"line {setting.line}"
        case SourceKind.ENVIRONMENT:
            return f"environment: {setting.variable}"
        case SourceKind.DEFAULT:
            return f"not set: {setting.value}" if setting.value else "not set"


def _value(value: object) -> str:
    # TOML's basic strings, booleans, numbers and lists are written as JSON writes them.
    return json.dumps(value, ensure_ascii=False)
