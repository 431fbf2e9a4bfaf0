"""`polarvault config`: the configuration, as the other commands see it."""

from __future__ import annotations

import click

from polarvault.cli.json_output import current_output, json_option
from polarvault.cli.options.configuration import config_option, load


@click.group("config", context_settings={"help_option_names": ["-?", "--help"]})
def command() -> None:
    """The configuration file: repositories and clusters by name."""


@command.command("show", context_settings={"help_option_names": ["-?", "--help"]})
@config_option
@json_option
def show(config: str | None) -> None:
    """Check the whole configuration file, and show every setting and where it comes from.

    One file is read: FILE, or $XDG_CONFIG_HOME/polarvault/polarvault.toml (~/.config/...), or
    /etc/polarvault/polarvault.toml. All mistakes in it are named at once, with their lines; exit status 2 then. Secrets
    are not shown.
    """
    from polarvault.cli.messages import say_warning
    from polarvault.report.configuration import configuration_json, configuration_text

    configuration = load(config)
    output = current_output()
    if output is not None:
        output.add(**configuration_json(configuration))
    else:
        for line in configuration_text(configuration):
            click.echo(line)
    for warning in configuration.warnings:
        say_warning(warning) if output is None else output.warn(warning)
