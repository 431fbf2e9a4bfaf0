"""The table of all settings: what the loader accepts, `config show` shows, and docs/configuration.md lists."""

from __future__ import annotations

from polarvault.config import values
from polarvault.config.values import Parser
from polarvault.model.dataclass import dataclass
from polarvault.storage.objects.address import Scheme

_CLOUDS = (Scheme.S3, Scheme.GOOGLE, Scheme.AZURE)


@dataclass(frozen=True, slots=True)
class Setting:
    """One key: what it means (help), its parser, what is so when it is missing (default, in words).

    secret: never shown. schemes: the stores for which it means something. variables: of the environment, per scheme,
    which say the same when the file does not; the first one that is set counts.
    """

    field: str
    parse: Parser
    help: str
    default: str = ""
    is_secret: bool = False
    schemes: tuple[Scheme, ...] = tuple(Scheme)
    variables: tuple[str, ...] = ()


REPOSITORY = (
    Setting("address", values.address, "where it is: a path, `file:`, `s3:`, `gs:` or `az:`; has to be there"),
    Setting("id", values.repository_id, "the id that it must have: another repository in its place is refused", "any"),
    Setting("encrypted", values.boolean, "`true`: a plain repository in its place is refused", "either"),
    Setting("passphrase_file", values.absolute_path, "a file whose first line is the passphrase"),
    Setting("passphrase_command", values.text, "a command for the shell that prints the passphrase"),
    Setting("key_file", values.absolute_path, "a key file, as `polarvault repo key add` writes them"),
    Setting(
        "endpoint", values.endpoint, "the service, where it is not the cloud's own", "the cloud's own",
        schemes=_CLOUDS,
        variables=("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "STORAGE_EMULATOR_HOST", "AZURE_STORAGE_ENDPOINT"),
    ),
    Setting(
        "region", values.text, "the bucket's region", "us-east-1", schemes=(Scheme.S3,),
        variables=("AWS_REGION", "AWS_DEFAULT_REGION"),
    ),
    Setting(
        "path_style", values.boolean, "`true`: the bucket in the path, not in the name of the host",
        "true where an endpoint is named", schemes=(Scheme.S3,),
    ),
    Setting(
        "ca_file", values.absolute_path, "certificates of authorities (PEM) that are trusted as well", schemes=_CLOUDS
    ),
    Setting(
        "storage_class", values.storage_class, "the class of new objects, one that is read at once", "the bucket's",
        schemes=_CLOUDS,
    ),
    Setting(
        "access_key", values.text, "the name of the key", schemes=(Scheme.S3,), variables=("AWS_ACCESS_KEY_ID",)
    ),
    Setting(
        "secret_key", values.text, "the key", is_secret=True, schemes=(Scheme.S3,), variables=("AWS_SECRET_ACCESS_KEY",)
    ),
    Setting(
        "session_token", values.text, "what belongs to a key that is lent", is_secret=True, schemes=(Scheme.S3,),
        variables=("AWS_SESSION_TOKEN",),
    ),
    Setting(
        "account", values.text, "the storage account", schemes=(Scheme.AZURE,),
        variables=("AZURE_STORAGE_ACCOUNT_NAME",),
    ),
    Setting(
        "account_key", values.text, "its key", is_secret=True, schemes=(Scheme.AZURE,),
        variables=("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCESS_KEY"),
    ),
    Setting(
        "credentials_file", values.absolute_path, "Google's file of a service account (JSON)", schemes=(Scheme.GOOGLE,),
        variables=("GOOGLE_APPLICATION_CREDENTIALS",),
    ),
    Setting(
        "deadline", values.duration_s, "how long requests that are not answered are repeated", "5min", schemes=_CLOUDS
    ),
    Setting("max_rate", values.rate, "bytes per second in each direction", "no limit"),
    Setting(
        "lock", values.duration_s, "with object lock: nothing that a new backup is made of can be removed for so long",
        "the bucket's own rule alone", schemes=(Scheme.S3,),
    ),
)  # fmt: skip

RETENTION = (
    Setting("window", values.duration_s, "every moment of the last `14d` can be restored"),
    Setting("keep", values.number(1, 100_000), "the last N backups"),
    Setting("daily", values.number(1, 100_000), "the last backup of each of N days"),
    Setting("weekly", values.number(1, 100_000), "of each of N weeks"),
    Setting("monthly", values.number(1, 100_000), "of each of N months"),
    Setting("yearly", values.number(1, 100_000), "of each of N years"),
)

LIMITS = (
    Setting("max_backup_age", values.limit_s, "`status` warns when the last good backup is older, or `off`", "26h"),
    Setting(
        "max_wal_lag", values.limit_s, "`status` warns when the last moment that can be restored is older, or `off`",
        "1h",
    ),
    Setting("max_verify_age", values.limit_s, "`status` warns when the last `verify` was earlier, or `off`", "8d"),
    Setting("max_drill_age", values.limit_s, "`status` warns when the last `drill` was earlier, or `off`", "off"),
)  # fmt: skip

HOOKS = (
    Setting("on_success", values.command_words, "a program, as a list of words, that is told what went well"),
    Setting(
        "on_warning", values.command_words, "that is told what went well and has something to say",
        "that of `on_success`",
    ),
    Setting("on_failure", values.command_words, "that is told what failed"),
    Setting("hook_timeout", values.duration_s, "how long each of them may take", "60s"),
)  # fmt: skip

CLUSTER = (
    Setting(
        "connection", values.text, "a connection string or URI, as `-d` takes it; passwords belong into `~/.pgpass`"
    ),
    Setting("service", values.text, "a service of `pg_service.conf`, instead of `connection`"),
    Setting("repositories", values.names, "the names of one or several repositories"),
    Setting("compression", values.number(0, 19), "zstd's level, 0 for none", "1"),
    Setting("max_rate", values.rate, "bytes per second from the server", "no limit"),
    *LIMITS,
    *HOOKS,
    Setting("slot", values.text, "the replication slot of `wal stream`, made where it is missing", "none"),
    Setting("spool", values.absolute_path, "the directory in which `wal stream` keeps what is not uploaded", "none"),
    Setting("spool_max", values.size_bytes, "what may wait in the spool, as `20GB`; needed with `spool`"),
)
SNAPSHOTS = (
    Setting("paths", values.absolute_paths, "the directories whose snapshots these commands make, with all below them"),
    Setting("create", values.command_words, "makes a snapshot of `{source}` under `{name}`"),
    Setting(
        "clone", values.command_words, "makes a copy of `{snapshot}` that can be written, under `{name}`, in `{target}`"
    ),
    Setting("list", values.command_words, "prints a line for each: its name and its bytes, if known"),
    Setting("destroy", values.command_words, "removes `{name}`"),
    Setting("atomic", values.boolean, "`true`: a snapshot of several directories is of one moment", "false"),
    Setting("timeout", values.duration_s, "how long each of them may take", "10min"),
)  # fmt: skip
SNAPSHOT_COMMANDS = ("create", "clone", "list", "destroy")
DEFAULTS = (*LIMITS, *HOOKS)
"""What holds for every cluster that does not say it itself."""
# A table in a cluster's table.
RETENTION_FIELD = "retention"
PASSPHRASE_VARIABLE = "POLARVAULT_PASSPHRASE"
