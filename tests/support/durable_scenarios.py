"""What the program makes durable: one scenario for each thing, with the rules that its system calls must keep.

Every scenario runs the real program (or the one function that writes the thing) in a process that
`support.system_calls` watches. All of them need no server: the answers are recorded ones. A new kind of durable thing
gets a scenario here; `tests/fault/test_durability.py` fails until every fsync of the program is in one.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from polarvault.backupset.unfinished import MARKER_NAME
from polarvault.instance.account import server_account
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.storage.objects.local import LocalStore
from polarvault.storage.objects.write_once import WriteOnce
from polarvault.storage.occupants import CONTROL_ASIDE_NAME, RESTORE_MARK_NAME
from support.durability import Rules, judge
from support.fuzz_campaigns import polardb_recording
from support.fuzzing import Outcome, Sandbox, Worker
from support.made_backups import MadeBackup, files, table
from support.made_repositories import back_up_made
from support.power_cut import Event
from support.repositories import new_repository
from support.small_recording import LOCATION, Recording, load_recording
from support.system_calls import NO_FAULT, Fault, prelude, read_trace
from support.wal_bytes import XLOG, make_record
from support.wal_segments import segment_content
from support.wal_server import WalServer

SEGMENT_BYTES = 1 << 20
SEGMENTS = 3
_ALIGNED_RECORD_BYTES = 40
# What a receiver tells of itself: news, not data.
_NEWS = (
    ".polarvault-receivewal.json", ".polarvault-receivewal.json.tmp", ".polarvault-receivewal.lock",
)  # fmt: skip
_MANIFEST, _UNMARKED = ("rename", "backup_manifest"), ("unlink", MARKER_NAME)
_BACKUP = Rules(commits=(_MANIFEST, _UNMARKED), guard=MARKER_NAME)
_SHARED_MANIFEST = "backup_manifest.shared"
_RESTORE = Rules(commits=(("unlink", RESTORE_MARK_NAME), ("rename", "pg_control")), guard=RESTORE_MARK_NAME)


@dataclass(frozen=True, slots=True)
class Scenario:
    """words: the command line, W is a directory of the scenario's own; script: Python before a command or instead.

    prepare: makes what must be there before, given the worker and the directory. statuses: of a run without a fault.
    """

    rules: Rules
    words: tuple[str, ...] = ()
    script: str = ""
    prepare: Callable[[Worker, Path], None] | None = None
    recording: Callable[[], Recording] | None = None
    statuses: tuple[int, ...] = (0,)


@dataclass(slots=True)
class Run:
    """How a scenario went; `work` is gone once the block of `ran` is left."""

    words: list[str]
    script: str
    outcome: Outcome
    events: list[Event]
    work: Path
    server: WalServer | None
    problems: list[str] = field(default_factory=list)


@contextmanager
def ran(
    worker: Worker, scenario: Scenario, fault: Fault = NO_FAULT, *, more: Sequence[str] = (), timeout_s: float = 45
) -> Iterator[Run]:
    """Run a scenario with a fault and more options; its directory is there inside of the block."""
    scenario = replace(scenario, words=(*scenario.words, *more))
    with Sandbox() as sandbox:
        work = Path(os.path.realpath(sandbox.work))
        server_account().own(work)
        if scenario.prepare is not None:
            scenario.prepare(worker, work)
        words = [word.replace("W/", f"{work}/") for word in scenario.words]
        script = f"import os\nWORK = {str(work)!r}\n{scenario.script}\n" + ("" if scenario.words else "os._exit(0)\n")
        before = prelude(sandbox.root / "trace", work, fault) + script
        with ExitStack() as serving:
            server = None
            if scenario.recording is not None:
                server = serving.enter_context(WalServer(scenario.recording(), version=_version(scenario)))
                words[1:1] = ["-d", server.conninfo]
            outcome = worker.run(words, sandbox.root, prelude=before, timeout_s=timeout_s)
            run = Run(words, script, outcome, read_trace(sandbox.root / "trace"), work, server)
            if outcome.status in scenario.statuses:
                run.problems = [problem.replace(str(work), "") for problem in judge(run.events, scenario.rules)]
            yield run


def _version(scenario: Scenario) -> str:
    return "15.5" if scenario.recording is polardb_recording else "18.0"


# Base backups


@cache
def long_recording() -> Recording:
    """Return the recorded server with more WAL: several segments, so that whole ones are received."""
    recording = load_recording()
    first = recording.wal_start // SEGMENT_BYTES
    more = [
        segment_content(
            WalSegment(recording.timeline, first + number, SEGMENT_BYTES), magic=0xD118,
            system_identifier=int(recording.identity[0] or 0),
        )
        for number in range(1, SEGMENTS)
    ]  # fmt: skip
    # The last segment stays partial.
    more[-1] = more[-1][:150_000]
    return replace(recording, wal=recording.wal + b"".join(more))


@cache
def busy_recording() -> Recording:
    """Return a server that writes more than a segment of WAL during its base backup."""
    recording = long_recording()
    start, stop = Lsn.parse(recording.start[0]), recording.wal_start + SEGMENT_BYTES + 4096
    # The record without which a backup is not whole (access/xlogrecord.h): XLOG_BACKUP_END with the start LSN.
    body = struct.pack("<BBQ", 255, 8, start)
    record = make_record(body, rmgr=XLOG, info=0x50, xid=0, previous=0).ljust(_ALIGNED_RECORD_BYTES, b"\0")
    wal, end = recording.wal, stop - recording.wal_start
    wal = wal[: end - len(record)] + record + wal[end:]
    return replace(recording, wal=wal, stop=[f"0/{stop:X}", recording.stop[1]])


def _backup(*options: str, rules: Rules = _BACKUP, recording: Callable[[], Recording] = load_recording) -> Scenario:
    return Scenario(rules, ("basebackup", "-c", "fast", *options), recording=recording)


_PLAIN = ("-D", "W/a/b/backup", "-T", f"{LOCATION}=W/space/one")

_KEY_FILE = """
import os
from polarvault.repository.keys.secrets import write_key_file
write_key_file(WORK + "/key", random=os.urandom)
"""

_OBJECTS = """
import os
from polarvault.errors import ObjectExists
from polarvault.storage.objects.local import LocalStore
root = WORK + "/made/repository"
LocalStore.make_root(root)
store = LocalStore(root)
for name in ("packs/a/first", "packs/a/second", "third"):
    store.put_new(name, [name.encode()])
# What another writer has named, and perhaps not synced yet.
os.mkdir(root + "/keys", 0o700)
descriptor = os.open(root + "/keys/another", os.O_WRONLY | os.O_CREAT, 0o600)
os.write(descriptor, b"another")
os.close(descriptor)
try:
    store.put_new("keys/another", [b"another"])
except ObjectExists:
    pass
store.delete("packs/a/first")
"""

_REPOSITORY = """
from polarvault.storage.objects.local import LocalStore
from polarvault.storage.objects.write_once import WriteOnce
from support.repositories import back_up, new_repository, two_trees
LocalStore.make_root(WORK + "/repository")
repository = new_repository(WriteOnce(LocalStore(WORK + "/repository")))
full, changed = two_trees()
back_up(repository, changed, parent=back_up(repository, full).label, minutes=1)
"""

_CONFIGURATION = """
from polarvault.backupset.saved_configuration import SavedConfiguration, write_configuration
saved = SavedConfiguration(
    "/var/lib/postgresql/15/main", {"config_file": "/etc/postgresql/15/main/postgresql.conf"},
    {"/etc/postgresql/15/main/postgresql.conf": b"port = 1\\n", "/etc/postgresql/15/main/conf.d/a.conf": b""},
)
write_configuration(WORK + "/made", saved, sync=True)
"""

# Restores


def _plain_backup(worker: Worker, work: Path) -> None:
    server_account().own(MadeBackup().seal().plain(work / "backup"))


def _tar_backup(worker: Worker, work: Path) -> None:
    server_account().own(MadeBackup().seal().tar(work / "backup", ".gz"))


def _one_tar(worker: Worker, work: Path) -> None:
    (work / "backup.tar").write_bytes(MadeBackup().seal().one_tar())
    server_account().own(work / "backup.tar")


def _halves(worker: Worker, work: Path) -> None:
    """A plain backup of PolarDB: the local half, and in it the shared one."""
    content = files()
    shared = ("base/", "global/")
    local = {name: data for name, data in content.items() if not name.startswith(shared)}
    local["postgresql.conf"] = (
        b"polar_enable_shared_storage_mode = on\npolar_datadir = 'file-dio:///live'\n"
        b"polar_storage_cluster_name = ''\npolar_disk_name = 'live'\n"
    )
    MadeBackup(local).plain(work / "backup")
    shutil.rmtree(work / "backup/pg_wal")
    MadeBackup({name: data for name, data in content.items() if name.startswith(shared)}).plain(
        work / "backup/polar_shared_data"
    )
    server_account().own(work / "backup")


def _taken_backup(worker: Worker, work: Path) -> None:
    """A backup of the recorded server, with its tablespace."""
    scenario = _backup("-D", "W/backup", "-T", f"{LOCATION}=W/space")
    with WalServer(load_recording()) as server:
        words = [word.replace("W/", f"{work}/") for word in scenario.words]
        outcome = worker.run([words[0], "-d", server.conninfo, *words[1:]], work.parent)
        assert outcome.status == 0, outcome.errors
    for path in (work / "backup", work / "space"):
        server_account().own(path)


def _stored_backup(worker: Worker, work: Path) -> None:
    """A repository with one backup."""
    LocalStore.make_root(str(work / "repository"))
    back_up_made(new_repository(WriteOnce(LocalStore(str(work / "repository")))), MadeBackup())


def _changed_target(worker: Worker, work: Path) -> None:
    """A repository with two backups, and a cluster with its WAL in a place of its own, restored from the first one."""
    root, target = work / "repository", work / "target"
    LocalStore.make_root(str(root))
    repository = new_repository(WriteOnce(LocalStore(str(root))))
    older = MadeBackup({**files(), "base/5/99": b"dropped since", "base/5/16384": table(9, 300_000)})
    first = back_up_made(repository, older).path
    back_up_made(repository, MadeBackup(), minutes=1)
    outcome = worker.run(["restore", first, "--repo", str(root), "-D", str(target)], work.parent)
    assert outcome.status == 0, outcome.errors
    (target / "pg_wal").rename(work / "wal")
    (target / "pg_wal").symlink_to(work / "wal")
    status = target.stat()
    os.lchown(target / "pg_wal", status.st_uid, status.st_gid)


_PUT_CONFIGURATION = """
from polarvault.instance.host import Host
from polarvault.restore.plan.configuration import PutBack
from polarvault.restore.write.configuration import PutConfiguration
root = WORK + "/etc/15/main"
files = {root + "/postgresql.conf": b"port = 1\\n", root + "/conf.d/more/a.conf": b"work_mem = 1\\n"}
put = PutBack(root, files, (root + "/empty/below",), (), None)
PutConfiguration(put, Host().account(None, WORK), sync=True).write()
"""

_REPLICA = """
from types import SimpleNamespace
from polarvault.instance.host import Host
from polarvault.restore.write.replica import ReplicaCompletion
local = WORK + "/replica"
os.mkdir(local)
os.chmod(local, 0o777)
settings = (
    f"polar_datadir = 'file-dio://{WORK}/live'\\npolar_enable_shared_storage_mode = on\\narchive_mode = off\\n"
).encode()
plan = SimpleNamespace(
    layout=SimpleNamespace(local=local, roots=[local], live_datadir=f"file-dio://{WORK}/live", pfs=None), binaries=None,
    signal_path=local + "/replica.signal", request=SimpleNamespace(sync=True, slot="s"),
    files={local + "/postgresql.conf": settings, local + "/postgresql.auto.conf": b""},
)
account = Host().account(None, WORK)
completion = ReplicaCompletion(Host())
completion.begin(plan, account, file_mode=0o600)
completion.finish(plan, account, file_mode=0o600, directory_mode=0o700)
"""


def _live_storage(worker: Worker, work: Path) -> None:
    """The slot of the replica shows in it."""
    (work / "live/pg_replslot/s").mkdir(parents=True)


# WAL


def _archive(worker: Worker, work: Path) -> None:
    (work / "archive").mkdir()


def _cut_archive(*options: str) -> Callable[[Worker, Path], None]:
    """Return what leaves an archive in which an earlier receiver was killed in its last segment."""

    def prepare(worker: Worker, work: Path) -> None:
        scenario = _receive(*options)
        with ran(worker, scenario) as whole:
            shutil.copytree(whole.work / "archive", work / "archive")
        names = sorted(name for name in os.listdir(work / "archive") if name.endswith(".partial"))
        assert names, "the last segment is partial"

    return prepare


def _receive(*options: str, prepare: Callable[[Worker, Path], None] = _archive) -> Scenario:
    recording = long_recording()
    end = recording.wal_start + len(recording.wal)
    # What an earlier run has made whole is durable, and not received again.
    start = recording.wal_start if prepare is _archive else end // SEGMENT_BYTES * SEGMENT_BYTES
    rules = Rules(renames=True, news=_NEWS, wal_start=start, segment_bytes=SEGMENT_BYTES)
    return Scenario(
        rules, ("receivewal", "-n", "-S", "slot", "-D", "W/archive", "--endpos", f"0/{end:X}", *options),
        prepare=prepare, recording=long_recording,
    )  # fmt: skip


_STREAM = """
from polarvault.model.lsn import Lsn
from polarvault.model.segment import WalSegment
from polarvault.repository.catalogue.repository import Generation
from polarvault.storage.objects.local import LocalStore
from polarvault.storage.objects.write_once import WriteOnce
from polarvault.walarchive.receive.stop import StopRequest
from polarvault.walarchive.streaming.places import Places
from polarvault.walarchive.streaming.spool import Spool
from polarvault.walarchive.streaming.store import RepositoryStore, StreamSettings
from support.repositories import new_repository
from support.wal_segments import SYSTEM_IDENTIFIER, segment_content
LocalStore.make_root(WORK + "/repository")
repository = new_repository(WriteOnce(LocalStore(WORK + "/repository")))
MB = 1 << 20
store = RepositoryStore(
    Places("shop", lambda: [repository]), Generation(SYSTEM_IDENTIFIER, 180000, False, MB, 1 << 30, True),
    spool=Spool(WORK + "/made/spool", "shop", 64 * MB), state_path=WORK,
    settings=StreamSettings(slice_bytes=300_000, synchronous=True), stop=StopRequest(), on_note=print,
)
writer = store.open(segment_size_bytes=MB, group_access=False, wake=lambda: None, on_segment=lambda segment: None)
first = WalSegment(1, 7, MB)
writer.begin(first.start, 1)
content = memoryview(segment_content(first))
for at in range(0, MB, 200_000):
    writer.write([content[at:at + 200_000]])
store.add_history(2, b"1\\t0/800000\\tnone\\n")
writer.begin(first.end, 2)
writer.write([memoryview(segment_content(WalSegment(2, 8, MB)))[:100_000]])
writer.sync()
writer.close()
store.close()
"""

# The repository is away: what was acknowledged stays in the spool.
_SPOOLED = """
from polarvault.errors import StoreUnreachable
class away:
    def opened(self, *_): raise StoreUnreachable("away")
    put = put_history = merge = history = opened
    cluster, is_open = "shop", False
    def claim(self, _): pass
""" + _STREAM.replace('Places("shop", lambda: [repository])', "away()")
# Killed: nothing is put in order at the end.
_SPOOLED = _SPOOLED.replace("store.close()", "store.uploader.stop()")
# What a killed receiver has not synced counts as received by the next one, which acknowledges from there on.
_SPOOLED_LEFT = """
from polarvault.model.lsn import Lsn
from polarvault.walarchive.streaming.spool import Spool
spool = Spool(WORK + "/spool", "shop", 1 << 20)
spool.begin(1, 1 << 20, 1, Lsn(1 << 20)).append([memoryview(b"received")])
assert [item.content() for _, item in spool.waiting()] == [b"received"]
"""
_SPOOLED_HISTORY = """
from polarvault.walarchive.streaming.spool import Spool
Spool(WORK + "/spool", "shop", 1 << 20).keep_history(2, b"1\\t0/800000\\tnone\\n")
"""

_DOCUMENT = """
from polarvault.storage.files import write_durably
write_durably(WORK + "/report.json", b"{}")
write_durably(WORK + "/report.json", b"[]")
"""


# Archived files, into a directory and into a spool.
_PUSHED = """
from polarvault.walarchive.pushing.directory import DirectoryPusher
from polarvault.walarchive.pushing.spool import Spool
names = sorted(os.listdir(WORK + "/pg_wal"))
for name in names:
    DirectoryPusher(WORK + "/archive").push(f"{WORK}/pg_wal/{name}")
spool = Spool(WORK + "/spool", "shop", 1 << 30)
for name in names[:1]:
    spool.keep(f"{WORK}/pg_wal/{name}")
"""

_SNAPSHOT = """
from datetime import UTC, datetime
from polarvault.snapshots.model import Kind
from polarvault.snapshots.trees import Trees
from polarvault.snapshotting.complete import Directories, complete
from polarvault.snapshotting.model import SnapshotRecord
from polarvault.snapshotting.shelf import Shelf
slot = Shelf(WORK + "/shelf").new()
record = SnapshotRecord(
    id=slot.id, name="s1", made=datetime(2026, 11, 27, tzinfo=UTC), source="shop", provider="copy",
    directories=(WORK + "/source",),
)
slot.make(record)
provider = Trees(slot.directory, shares=False)
made = provider.create([WORK + "/source"], slot.id)
local = made.places[0].path
complete(Directories(local, None, {}), label=b"START", control=None, wal=WORK + "/wal", description={"a": 1})
slot.finish(record)
provider.destroy(provider.create([WORK + "/source"], "0123456789abcdef"[: len(slot.id)]))
"""

_CLONE = """
import dataclasses
from datetime import UTC, datetime
from polarvault.clones.area import Area
from polarvault.clones.model import CloneRecord
from polarvault.instance.host import Host
from polarvault.snapshots.model import Kind
area = Area(WORK + "/clones")
place = area.place(Kind.CLONE, area.new_id())
place.make(Host().account(None, WORK), "shop")
known = {"made": datetime(2026, 11, 27, tzinfo=UTC), "origin": ()}
place.write_record(CloneRecord(**{one.name: known.get(one.name, "") for one in dataclasses.fields(CloneRecord)}))
place.finish("shop")
"""

# The file that pg_dump writes into.
_DUMP = """
from polarvault.flashback.output import check_output, new_file
check_output(WORK + "/shop.dump")
with new_file(WORK + "/shop.dump") as descriptor:
    os.write(descriptor, bytes(20_000))
"""


def _to_be_copied(worker: Worker, work: Path) -> None:
    for name in ("source/global", "source/base/1", "source/pg_wal", "source/pg_tblspc", "wal", "shelf", "clones"):
        (work / name).mkdir(parents=True)
    for name in ("PG_VERSION", "postgresql.conf", "global/pg_control", "base/1/1259", "postmaster.pid"):
        (work / "source" / name).write_text(name)
    (work / "wal/000000010000000000000001").write_bytes(b"received")


def _wal_to_push(worker: Worker, work: Path) -> None:
    for name in ("pg_wal", "archive"):
        (work / name).mkdir()
    (work / "pg_wal" / "00000002.history").write_text("1\t0/5000000\tpromoted\n")
    segment = WalSegment(1, 5, SEGMENT_BYTES)
    (work / "pg_wal" / segment.file_name).write_bytes(segment_content(segment))


@cache
def scenarios() -> Mapping[str, Scenario]:
    """Return every scenario by name."""
    both = replace(_BACKUP, commits=(("rename", _SHARED_MANIFEST), _MANIFEST, _UNMARKED))
    polardb = {"recording": polardb_recording}
    return {
        "basebackup plain": _backup(
            *_PLAIN,
            "-S",
            "slot",
            recording=busy_recording,
            rules=replace(_BACKUP, wal_start=busy_recording().wal_start, segment_bytes=SEGMENT_BYTES),
        ),
        "basebackup plain, WAL elsewhere": _backup(*_PLAIN, "--waldir", "W/wal"),
        "basebackup plain, syncfs": _backup(*_PLAIN, "--sync-method", "syncfs"),
        "basebackup plain, no manifest": _backup(
            *_PLAIN, "--no-manifest", rules=replace(_BACKUP, commits=(_UNMARKED,))
        ),
        "basebackup plain, two halves": _backup("-D", "W/local", "--polardata", "W/shared", "-X", "none", **polardb),
        "basebackup tar": _backup("-D", "W/backup", "-Ft"),
        "basebackup tar, compressed": _backup("-D", "W/backup", "-Ft", "-z"),
        "basebackup tar, two halves": _backup("-D", "W/backup", "-Ft", "-X", "none", rules=both, **polardb),
        "basebackup stdout, shared half beside": _backup(
            "-D",
            "-",
            "-Ft",
            "--polardata",
            "W/shared",
            "-X",
            "none",
            rules=replace(_BACKUP, commits=(_UNMARKED,)),
            **polardb,
        ),
        "basebackup configuration": Scenario(
            Rules(commits=(("create", "configuration.json"),)),
            script=_CONFIGURATION,
            prepare=lambda worker, work: (work / "made").mkdir(),
        ),
        "receivewal plain": _receive(),
        "receivewal synchronous": _receive("--synchronous"),
        "receivewal gzip": _receive("-Z", "gzip"),
        "receivewal plain, resumed": _receive(prepare=_cut_archive()),
        "receivewal gzip, resumed": _receive("-Z", "gzip", prepare=_cut_archive("-Z", "gzip")),
        "restore plain": Scenario(_RESTORE, ("restore", "W/backup", "-D", "W/a/b/target"), prepare=_plain_backup),
        "restore tar": Scenario(_RESTORE, ("restore", "W/backup", "-D", "W/target"), prepare=_tar_backup),
        "restore tar from a pipe": Scenario(
            _RESTORE,
            ("restore", "-", "-D", "W/target"),
            prepare=_one_tar,
            script="os.dup2(os.open(WORK + '/backup.tar', os.O_RDONLY), 0)",
        ),
        "restore standby": Scenario(
            _RESTORE, ("restore", "W/backup", "-D", "W/target", "--as", "standby"), prepare=_plain_backup
        ),
        "restore tablespace": Scenario(
            _RESTORE,
            ("restore", "W/backup", "-D", "W/target", "-T", "W/space=W/elsewhere/one"),
            prepare=_taken_backup,
        ),
        "restore two halves": Scenario(
            _RESTORE, ("restore", "W/backup", "-D", "W/target", "--polardata", "W/target_shared"), prepare=_halves
        ),
        "export": Scenario(
            replace(_BACKUP, scratch=(".incoming",)),
            ("export", "shop", "--repo", "W/repository", "-D", "W/a/b/out"),
            prepare=_stored_backup,
        ),
        "delta restore": Scenario(
            replace(_RESTORE, disarms=os.path.basename(CONTROL_ASIDE_NAME), scratch=(".incoming",)),
            ("restore", "shop@latest", "--repo", "W/repository", "-D", "W/target", "--delta"),
            prepare=_changed_target,
        ),
        "restore configuration": Scenario(Rules(), script=_PUT_CONFIGURATION),
        "restore replica": Scenario(
            Rules(commits=(("rename", "postgresql.conf"),), guard="replica.signal"),
            script=_REPLICA,
            prepare=_live_storage,
        ),
        "drill report": Scenario(
            Rules(renames=True),
            ("drill", "W/backup", "--bindir", "/nonexistent", "--report", "W/report"),
            prepare=_plain_backup,
            statuses=(3, 4),
        ),
        "key file": Scenario(Rules(), script=_KEY_FILE),
        "repository backups": Scenario(
            Rules(
                # Each of two backups; the order is that of docs/internals/repository-format.md.
                commits=tuple(("link", name) for name in ("manifest", "root", "refs", "record")),
                renames=True,
                news=(".incoming",),
                scratch=(".incoming",),
            ),
            script=_REPOSITORY,
        ),
        "objects": Scenario(
            Rules(
                commits=tuple(("link", name) for name in ("first", "second", "third")),
                news=(".incoming",),
                scratch=(".incoming",),
            ),
            script=_OBJECTS,
        ),
        "pushed WAL": Scenario(
            Rules(renames=True, news=(".polarvault-push.lock",)), script=_PUSHED, prepare=_wal_to_push
        ),
        "streamed WAL": Scenario(Rules(news=(".incoming",), scratch=(".incoming",)), script=_STREAM),
        "spooled WAL": Scenario(Rules(news=(".incoming",), scratch=(".incoming",)), script=_SPOOLED),
        "spooled before": Scenario(Rules(news=(".lock",)), script=_SPOOLED_LEFT),
        "spooled history": Scenario(Rules(), script=_SPOOLED_HISTORY),
        "snapshot": Scenario(Rules(scratch=("wal",)), script=_SNAPSHOT, prepare=_to_be_copied),
        "clone": Scenario(Rules(renames=True), script=_CLONE, prepare=_to_be_copied),
        "document": Scenario(Rules(renames=True), script=_DOCUMENT),
        "dump of a table": Scenario(Rules(), script=_DUMP),
    }


def as_json(events: list[Event]) -> str:
    """Return a trace as text, for a failure's report."""
    return "\n".join(map(json.dumps, events))
