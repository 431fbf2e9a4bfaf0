"""What a drill's copy must not do with code that a backup brings along: connect, load libraries, read other files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from polarvault.drill.place.behind_walls import CONNECT, PROBE
from polarvault.drill.place.network import Walls, build_walls, judge_walls
from polarvault.instance.account import server_account
from polarvault.instance.model import Account
from polarvault.model.finding import Severity
from support import refusing
from support.cluster import Cluster
from support.drills import Drills, Stock, copied, make_stock, problems, sql_files, with_settings
from support.program import program_environment, start_polarvault
from support.servers import ServerPool, missing_reason
from support.story import back_up
from support.waiting import wait_until

pytestmark = pytest.mark.postgres


def account() -> Account:
    ours = server_account()
    return Account(ours.name, ours.uid, ours.gid)


@pytest.fixture
def walls() -> Walls:
    found = build_walls(account())
    if not found.refuses_connect:
        pytest.skip(f"the kernel refuses no system calls here: {found.why}")
    return found


@pytest.fixture(scope="module")
def stock(servers: ServerPool) -> Iterator[Stock]:
    """A PostgreSQL 15 with backups; tests only read them."""
    if 15 not in servers.installations:
        pytest.skip(missing_reason(15))
    with make_stock(servers, 15, "walls") as made:
        yield made


@pytest.fixture
def drills(workspace: Path) -> Drills:
    return Drills(workspace)


@contextmanager
def listening(directory: Path) -> Iterator[tuple[int, Path, list[str]]]:
    """Listen on TCP and on a socket in the file system; yield port, path, and who has connected."""
    path = directory / "listener"
    heard: list[str] = []
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as local:
        tcp.bind(("127.0.0.1", 0))
        local.bind(str(path))
        path.chmod(0o777)

        def hear(listener: socket.socket, name: str) -> None:
            listener.listen()
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                heard.append(name)
                connection.close()

        threads = [threading.Thread(target=hear, args=one) for one in ((tcp, "tcp"), (local, "socket"))]
        for thread in threads:
            thread.start()
        try:
            yield tcp.getsockname()[1], path, heard
        finally:
            for listener in (tcp, local):
                listener.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()


def test_a_program_behind_the_walls_connects_to_nothing(walls: Walls, workspace: Path) -> None:
    code = (
        "import os, socket, sys\nprint(os.getuid())\n"
        "for kind, where in ((socket.AF_INET, ('127.0.0.1', int(sys.argv[1]))), (socket.AF_UNIX, sys.argv[2])):\n"
        "    try:\n        socket.socket(kind).connect(where)\n        print('connected')\n"
        "    except OSError as refused:\n        print(refused.strerror)\n"
        "server = socket.socket(socket.AF_UNIX)\nserver.bind(sys.argv[2] + '-own')\nserver.listen()\nprint('listens')\n"
    )
    python = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable
    with listening(workspace) as (port, path, heard):
        finished = subprocess.run(
            [*walls.prefix, python, "-c", code, str(port), str(path)], capture_output=True, text=True, check=False
        )
        assert finished.returncode == 0, finished.stderr
        lines = finished.stdout.splitlines()
        assert lines == [str(account().uid), "Operation not permitted", "Operation not permitted", "listens"]
        assert heard == []


def test_walls_that_do_not_stand_are_said() -> None:
    assert judge_walls(Walls(("x",), True, True), "copy").severity is Severity.OK
    for walls in (Walls(("x",), False, True, "why"), Walls(("x",), True, False, "why"), Walls((), False, False, "why")):
        found = judge_walls(walls, "copy")
        assert found.severity is Severity.WARNING
        assert "why" in found.message


@pytest.mark.parametrize(
    ("what", "open_to", "words"),
    [
        ("unshare", "may send datagrams", "a user namespace: Operation not permitted"),
        ("seccomp", "can connect to servers on this host", "seccomp: Operation not permitted"),
    ],
)
def test_a_drill_goes_on_behind_one_wall_and_says_what_is_open(
    stock: Stock, drills: Drills, walls: Walls, what: str, open_to: str, words: str
) -> None:
    if not walls.has_namespace:
        pytest.skip(f"the kernel allows no network namespace here: {walls.why}")
    arguments = drills.options(stock.source, stock.plain, "--read", "none", "--json")
    finished = subprocess.run(
        [sys.executable, refusing.__file__, what, sys.executable, "-m", "polarvault", *map(str, arguments)],
        capture_output=True, text=True, env=program_environment(), check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    (network,) = [found for found in json.loads(finished.stdout)["findings"] if found["check"] == "network"]
    assert network["severity"] == "warning"
    assert words in network["message"]
    assert open_to in network["meaning"]
    drills.check_nothing_is_left()


def test_a_namespace_that_is_refused_half_way_is_not_entered(walls: Walls) -> None:
    tried = subprocess.run(
        [sys.executable, refusing.__file__, "rewrite", *walls.prefix, PROBE], capture_output=True, text=True,
        check=False, **(server_account().run_as),
    )  # fmt: skip
    assert tried.stderr == ""
    assert tried.stdout.startswith(f"- {CONNECT} a user namespace: Operation not permitted")


@pytest.mark.parametrize("major", [15, 18])
def test_functions_of_the_backup_connect_to_nothing(
    walls: Walls, make_cluster: Callable[..., Cluster], drills: Drills, major: int
) -> None:
    if shutil.which("bash") is None:
        pytest.skip("bash is not here, which can connect without another program")
    source = make_cluster(major)
    with listening(drills.workspace) as (port, _, heard):
        # amcheck evaluates the expression of an index, as whoever owns it.
        program = f"bash -c 'cat >/dev/null; (exec 3<>/dev/tcp/127.0.0.1/{port}); echo $? >>{drills.workspace}/ran'"
        (drills.workspace / "ran").touch()
        source.account.own(drills.workspace / "ran")
        quoted = program.replace("'", "''")
        source.query(
            f"CREATE FUNCTION knock() RETURNS void LANGUAGE sql AS $$ COPY (SELECT 1) TO PROGRAM '{quoted}' $$;"
            "CREATE FUNCTION evil(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS "
            "$$ BEGIN PERFORM public.knock(); RETURN $1; END $$;"
            "CREATE TABLE victim (id int); CREATE INDEX ON victim (evil(id)); INSERT INTO victim VALUES (1)"
        )
        wait_until(lambda: "tcp" in heard, "the function connects where nothing keeps it from it")
        backup = back_up(source, drills.workspace / "backup")
        heard.clear()
        ran = (drills.workspace / "ran").read_text()
        report = drills.run(source, backup, "--amcheck", "--read", "none")
        # It did run, and got nowhere.
        assert (drills.workspace / "ran").read_text() != ran
        assert heard == []
    (network,) = [found for found in report["findings"] if found["check"] == "network"]
    assert network["severity"] in ("ok", "warning")


def test_libraries_in_the_backup_and_files_outside_of_it_are_left_alone(stock: Stock, drills: Drills) -> None:
    # Who opens a FIFO waits for ever.
    outside = drills.workspace / "outside.conf"
    os.mkfifo(outside)
    outside.chmod(0o666)
    (drills.workspace / "outside.d").mkdir()
    os.mkfifo(drills.workspace / "outside.d/one.conf")
    backup = copied(stock.plain, drills.workspace / "copy")
    (backup / "evil.so").write_bytes(b"no library")
    (backup / "inner.conf").write_text(f"include_if_exists '{outside}'\ninclude_dir '{drills.workspace}/outside.d'\n")
    with_settings(
        backup,
        f"include '{outside}'\nINCLUDE_IF_EXISTS '{outside}'\ninclude 'inner.conf'\n"
        "shared_preload_libraries = './evil.so'\n"
        f"local_preload_libraries = '{backup}/evil, $libdir/../../evil'\nsession_preload_libraries = 'evil/evil'\n"
        f"jit_provider = '{backup}/evil'\ndynamic_library_path = '{backup}:$libdir'\n",
    )
    with open(backup / "postgresql.auto.conf", "a") as file:
        file.write(f"include_if_exists = '{outside}'\n")
    stock.source.account.own(backup)
    report = drills.run(stock.source, backup, "--amcheck", "--read", "sample")
    assert report["held"]


def test_reports_are_for_who_asked_for_them(stock: Stock, drills: Drills) -> None:
    (wrong,) = sql_files(drills.workspace, wrong="SELECT false")
    drills.run(stock.source, stock.plain, "--read", "none", "--sql", wrong, status=1)
    reports = sorted(path.name for path in drills.workspace.glob("report*"))
    assert reports == ["report.html", "report.json", "report.log"]
    for name in reports:
        assert stat.S_IMODE((drills.workspace / name).stat().st_mode) == 0o600


def test_a_server_that_is_killed_ends_the_drill_at_once(stock: Stock, drills: Drills) -> None:
    (sleep,) = sql_files(drills.workspace, sleep="SELECT pg_sleep(3600) IS NOT NULL")
    process = start_polarvault(*drills.options(stock.source, stock.plain, "--read", "none", "--sql", sleep, "--json"))

    def postmaster() -> int | None:
        for file in drills.scratch.glob("*/data/postmaster.pid"):
            lines = file.read_text().splitlines()
            if len(lines) > 7 and lines[7].strip() in ("ready", "standby"):
                return int(lines[0])
        return None

    try:
        wait_until(lambda: postmaster() is not None or process.poll() is not None, "the copy's server is up")
        pid = postmaster()
        assert pid is not None, process.communicate()
        os.kill(pid, signal.SIGKILL)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode in (1, 4), errors
    assert problems(json.loads(output))
    drills.check_nothing_is_left()
