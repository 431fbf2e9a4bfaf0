"""The option --config, and the configuration that it names."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from polarvault.config.model import ClusterConfiguration, Configuration

Function = TypeVar("Function", bound=Callable[..., Any])


def config_option(function: Function) -> Function:
    """Add --config; `load` takes its value."""
    return click.option(
        "--config", metavar="FILE",
        help="The configuration file, instead of the user's own or the system's.",
    )(function)  # fmt: skip


def load(named: str | None) -> Configuration:
    """Return the configuration that a command goes by, checked as a whole."""
    from polarvault.config.load import load_configuration

    return load_configuration(named, os.environ, check_connection=_check_connection)


def configured_connection(configured: ClusterConfiguration) -> str | None:
    """Return the connection string that a cluster's table has, None where it says nothing."""
    if configured.service is not None:
        return f"service={configured.service}"
    return configured.connection


def _check_connection(text: str) -> None:
    # libpq's own parser: loaded only where a file has a connection string.
    from polarvault.server.conninfo import from_locale, parse_conninfo

    parse_conninfo(from_locale(text) or "")
