"""Configuration that no base backup holds: outside of the data directory, or a link in it; and absent files."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from polarvault.check.files.data_directory import links_here
from polarvault.check.session import MONITOR, CheckSession
from polarvault.model import versions
from polarvault.model.finding import Finding, ok, warning
from polarvault.server.connection import is_on_this_machine
from polarvault.taking.configuration.files import ConfigurationFiles
from polarvault.taking.configuration.server import read_server_configuration

_TLS_FILE_SETTINGS = ("ssl_cert_file", "ssl_key_file", "ssl_ca_file", "ssl_crl_file", "ssl_dh_params_file")


@dataclass(frozen=True, slots=True, kw_only=True)
class OutsideFacts:
    """Files that no base backup holds; paths are the server's.

    outside: not below the data directory. links: below it, but leading elsewhere; None where that cannot be seen.
    absent: named by a file and not there. cluster: all that is known is the name of a cluster of Debian's tools.
    """

    outside: Sequence[str]
    absent: Sequence[str]
    links: Mapping[str, str] | None
    cluster: str | None


def check_configuration(session: CheckSession) -> list[Finding]:
    """Return the findings about configuration files."""
    return judge_outside(read_outside(session))


def read_outside(session: CheckSession) -> OutsideFacts | None:
    """Return the server's files outside of its data directory; None when nobody may know."""
    connection = session.sql or session.replication
    is_here = connection is not None and is_on_this_machine(connection)
    found = _configuration(session, is_here=is_here)
    directory = session.setting("data_directory")
    if directory is None:
        if found is not None:
            return OutsideFacts(outside=found.outside, absent=(), links={}, cluster=None)
        return _cluster_by_words(session)
    own = ("config_file", *versions.of_server(session.version_num).configuration_files)
    names = [*own, *(_TLS_FILE_SETTINGS if session.setting("ssl") == "on" else ())]
    paths = [path for name in names if (path := session.setting(name))]
    paths += found.files if found is not None else ()
    rows = session.rows(
        "SELECT DISTINCT sourcefile FROM pg_catalog.pg_settings WHERE sourcefile IS NOT NULL",
        what="configuration files",
        grant=MONITOR,
    )
    paths += [row["sourcefile"] or "" for row in rows or []]
    normal = list(dict.fromkeys(os.path.normpath(os.path.join(directory, path)) for path in paths if path))
    outside = outside_of(directory, normal)
    inside = [path for path in normal if path not in outside]
    return OutsideFacts(
        outside=outside,
        absent=found.absent if found is not None else (),
        links=links_here(session, directory, inside),
        cluster=None,
    )


def _configuration(session: CheckSession, *, is_here: bool) -> ConfigurationFiles | None:
    connection = session.sql or session.replication
    port = connection.pgconn.port.decode("utf-8", "replace") if connection is not None else None
    return read_server_configuration(session.connector, port=port, is_here=is_here)


def _cluster_by_words(session: CheckSession) -> OutsideFacts | None:
    """Tell Debian's layout from what every role may see: clusters are named after their place in /etc/postgresql."""
    version = session.value("SELECT pg_catalog.version()") or ""
    name = session.setting("cluster_name") or ""
    if not re.fullmatch(r"[0-9.]+/[^/\s]+", name) or not re.search("debian|ubuntu|pgdg", version, re.IGNORECASE):
        return None
    return OutsideFacts(outside=[], absent=(), links=None, cluster=name)


def outside_of(directory: str, paths: Sequence[str]) -> list[str]:
    """Return the absolute paths that do not lie below a directory, once each; relative ones are taken from there."""
    inside = os.path.normpath(directory) + os.sep
    normal = (os.path.normpath(os.path.join(directory, path)) for path in paths if path)
    return [path for path in dict.fromkeys(normal) if not path.startswith(inside)]


def judge_outside(facts: OutsideFacts | None) -> list[Finding]:
    """Return the finding about files that no base backup contains."""
    if facts is None:
        return []
    if facts.cluster is not None:
        return [
            warning(
                "files-outside", facts.cluster, f"the server calls itself {facts.cluster}, as Debian's clusters do, "
                f"whose configuration lies in /etc/postgresql/{facts.cluster}; the role may not know",
                meaning="no base backup contains it, and a restored server does not start, or starts with other "
                "settings, without it",
                advice=f"at the server: tar -czf server-config.tar.gz /etc/postgresql/{shlex.quote(facts.cluster)}",
            )
        ]  # fmt: skip
    findings = []
    if facts.outside:
        count = f"{len(facts.outside)} file{'s lie' if len(facts.outside) > 1 else ' lies'}"
        findings.append(
            warning(
                "files-outside", "config_file", f"{count} outside of the data directory: {', '.join(facts.outside)}",
                meaning="no base backup contains them, and a restored server does not start, or starts with other "
                "settings, without them",
                advice="let the backup keep those that are no keys: polarvault basebackup --copy-configuration ...\n"
                f"or keep all: tar -czf server-config.tar.gz {shlex.join(facts.outside)}",
            )
        )  # fmt: skip
    if facts.links:
        said = ", ".join(f"{path} (leads to {target})" for path, target in facts.links.items())
        findings.append(
            warning(
                "files-outside", next(iter(facts.links)), f"configuration files that are links: {said}",
                meaning="a base backup leaves links out, even of files in the data directory: a restored server does "
                "not start, or starts with other settings",
                advice="let the backup keep them: polarvault basebackup --copy-configuration ...",
            )
        )  # fmt: skip
    if facts.absent:
        findings.append(
            warning(
                "files-absent", facts.absent[0], f"configuration names files that are not there: "
                f"{', '.join(facts.absent)}",
                meaning="the server goes on with what it has read, but does not start again, and neither does a copy",
                advice="put them back, or take the lines out that name them, then: SELECT pg_reload_conf();",
            )
        )  # fmt: skip
    if findings:
        return findings
    sure = "" if facts.links is not None else "; whether one is a link cannot be seen from here"
    return [ok("files-outside", "config_file", f"all configuration files lie in the data directory{sure}")]
