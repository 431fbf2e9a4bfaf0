"""`polarvault verify`: read backups of a repository, or a backup at a path, and say whether they restore."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from polarvault.cli.hooks import told_to_hooks
from polarvault.cli.json_output import current_output, json_option
from polarvault.cli.options.backups import RepositoryChoice
from polarvault.cli.options.repository import repository_options
from polarvault.errors import UsageError

if TYPE_CHECKING:
    from polarvault.repository.catalogue.repository import Repository
    from polarvault.verify.stored.backup import VerifiedBackup


@click.command("verify", context_settings={"help_option_names": ["-?", "--help"]})
@click.argument("backup", metavar="CLUSTER[@LABEL]|PATH", required=False)
@click.option("--all", "everything", is_flag=True, help="Verify all backups of the cluster, or of all clusters.")
@click.option("--sample", metavar="PERCENT", help="Read so much of the content, drawn anew each time: 5%.")
@click.option("--older-than", metavar="TIME", help="Only backups that were not verified for so long: 7d.")
@click.option("-j", "--jobs", type=click.IntRange(1, 64), default=2, show_default=True, metavar="N", help="Threads.")
@repository_options
@json_option
@click.pass_context
def command(
    context: click.Context, /, backup: str | None, *, everything: bool, sample: str | None, older_than: str | None,
    jobs: int, **options: Any,
) -> int:  # fmt: skip
    """Verify a backup of a repository: every chunk is read, authenticated, decoded and compared with its hash, the
    content with its page sums, the WAL that it needs record by record. What was found is remembered: list shows it.

    A PATH is verified as `polarvault verifybackup` does, which has more options for it. Exit status 0: all good.
    """
    from polarvault.config.words import PathWord
    from polarvault.report.repository.stored import verified_json

    choice = RepositoryChoice.of(**options)
    word = None if backup is None else choice.word(backup)
    if isinstance(word, PathWord):
        from polarvault.cli.commands.verifybackup import command as verifybackup

        if everything or sample is not None or older_than is not None:
            raise UsageError("--all, --sample and --older-than go with backups of a repository")
        return int(context.invoke(verifybackup, rest=(word.path,)) or 0)
    if word is None and not everything:
        raise UsageError("no backup is named", hint="polarvault verify CLUSTER, or --all")
    part = 1.0 if sample is None else _part(sample)
    with choice.opened("" if word is None else word.cluster) as (opened, _):
        repository = opened.repository
        clusters = repository.clusters() if word is None else [word.cluster]
        found: list[VerifiedBackup] = []
        for cluster in clusters:
            label = None if word is None else word.label
            with told_to_hooks(choice.configuration, cluster, "verify") as told:
                labels = _labels(repository, cluster, label, everything=everything, older_than=older_than)
                own = [_verified(repository, cluster, one, part, jobs) for one in labels]
                told.add(verified=[verified_json(one) for one in own])
                told.exit_status = int(not all(one.is_good for one in own))
            found += own
    output = current_output()
    if output is not None:
        output.add(verified=[verified_json(one) for one in found])
    elif not found:
        click.echo("no backup has to be verified")
    return 0 if all(one.is_good for one in found) else 1


def _labels(
    repository: Repository, cluster: str, label: str | None, *, everything: bool, older_than: str | None
) -> list[str]:
    from polarvault.cli.options.durations import seconds_of
    from polarvault.repository.catalogue.listing import Catalogue

    if not everything:
        labels = [repository.find_label(cluster, label or "latest")]
    else:
        labels = repository.living_labels(cluster)
    if older_than is None:
        return labels
    limit = datetime.now(UTC) - timedelta(seconds=seconds_of("--older-than", older_than))
    listed = {one.label: one.verified for one in Catalogue(repository, cluster).backups()}
    return [one for one in labels if (verified := listed.get(one)) is None or verified < limit]


def _verified(repository: Repository, cluster: str, label: str, part: float, jobs: int) -> VerifiedBackup:
    from polarvault.report.repository.stored import verified_text
    from polarvault.repository.catalogue.reading import reading
    from polarvault.verify.stored.backup import verify_stored

    with reading(repository, "verify", cluster, label):
        found = verify_stored(repository, cluster, label, sample=part, jobs=jobs)
    if current_output() is None:
        for line in verified_text(found):
            click.echo(line)
    return found


def _part(text: str) -> float:
    number = text.removesuffix("%")
    try:
        percent = float(number)
    except ValueError:
        percent = -1
    if not 0 < percent <= 100:
        raise UsageError(f"--sample {text}: must be more than 0% and at most 100%", hint="--sample 5%")
    return percent / 100
