"""Command lines that the real programs take or refuse: ours takes and refuses the same, with the same exit status.

A line counts as taken when the program goes on to connect: no server is needed, the host is a directory without one.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from polarvault.cli.options.drop_in import SERVER_MAJORS
from polarvault.instance.model import Binaries
from polarvault.model import versions
from support.command_lines import Finished, environment_for, run_command_lines
from support.made_backups import MadeBackup
from support.program import run_polarvault
from support.servers import has_program

pytestmark = pytest.mark.postgres

NOWHERE = "/nowhere-polarvault"
# {dir} is an empty directory; the host is added to every line.
BASEBACKUP = r"""
-D x
-D ''
-D x -F p
-D x -F plain
-D x -F t
-D x -Ftar
-D x -F tarball
-D x -F ''
-D x -Xn
-D x -X none
-D x -X f
-D x -Xfetch
-D x -X s
-D x -X stream
-D x -X ''
-D x -X F
-D x -X st
-D x --wal-m=f
-D x -c fast
-D x -c FAST
-D x -c Spread
-D x -c ''
-D x -c f
-D x -S ''
-D x -C -S ''
-D x -S '' --no-slot
-D x -S s -X fetch
-D x -Z ''
-D x -Z 0
-D x -Z -0
-D x -Z none:0
-D x -Z none:level=0
-D x -Z none:+0
-D x -Z none:
-D x -Z none:1
-D x -Z gzip:+3
-D x -Ft -Z gzip:+3
-D x -Ft -Z ' 3'
-D x -Ft -Z '3 '
-D x -Ft -Z +3
-D x -Ft -Z 3x
-D x -Ft -Z 0x3
-D x -Ft -Z 10
-D x -Ft -Z -1
-D x -Ft -Z -2
-D x -Ft -Z gzip:0
-D x -Ft -Z gzip:-1
-D x -Ft -Z gzip:level=9
-D x -Ft -Z gzip:level=+9
-D x -Ft -Z 'gzip:level= 9'
-D x -Ft -Z gzip:level=
-D x -Ft -Z gzip:level
-D x -Ft -Z gzip:9,level=9
-D x -Ft -Z gzip:level=9,
-D x -Ft -Z gzip:level=10,level=9
-D x -Ft -Z gzip:workers=1
-D x -Ft -Z GZIP
-D x -Ft -Z client-gzip
-D x -Ft -Z client
-D x -Ft -Z server
-D x -Ft -Z server-gzip:99
-D x -Ft -Z server-foo:bar
-D x -Ft -Z client-foo
-D x -Z server-lz4
-D x -Ft -Z lz4:0
-D x -Ft -Z lz4:12
-D x -Ft -Z lz4:13
-D x -Ft -Z zstd:22
-D x -Ft -Z zstd:23
-D x -Ft -Z zstd:-5
-D x -Ft -Z zstd:workers=2
-D x -Ft -Z zstd:workers=x
-D x -Z none -z
-D x -Ft -z
-D x -z
-t blackhole -X none -Z foo
-t blackhole -X fetch -Z 5
-t blackhole -X fetch -Z client-gzip
-t client -D x
-D x -s 5
-D x -s ' 5'
-D x -s '5 '
-D x -s +5
-D x -s -5
-D x -s ''
-D x -s ' '
-D x -s 5x
-D x -s 0x10
-D x -s 1e1
-D x -s 2147483
-D x -s 2147484
-D x -s 99999999999999999999
-D x -r 100
-D x -r 1e4
-D x -r 0x100
-D x -r ' 100 k '
-D x -r 100M
-D x -r '100 M'
-D x -r 100K
-D x -r 100kB
-D x -r +100
-D x -r -100
-D x -r 0
-D x -r 0.5M
-D x -r 32.5
-D x -r .1e4
-D x -r 0x1p6
-D x -r 31
-D x -r 31.9
-D x -r 1048576
-D x -r 1048576.5
-D x -r 1024M
-D x -r 1025M
-D x -r 1e400
-D x -r inf
-D x -r nan
-D x -r ''
-D x -r ' '
-D x -r k
-D x --po 64918
-D x --p 1
-D x --pro
-D x --pg y
-D x --l x
-D x --no-s
-D x --no-sy
-D x --no-e
-D x --check fast
-D x --manifest-f
-D x --manifest
-D x --ver
-D x --verb
-D x --user u
-D x --passw
-D x --help
-D x --version
-D x -V
-D x '-?'
-D x -vP
-D x -vPq
-D x -l ''
-D x -T a=b
-D x -T /a=/b
-D x -T '/a\=c=/b'
-D x -T /a=/b=/c
-D x -T =/b
-D x -T ''
-D x --waldir=/x
-D x --waldir=
-D x y
-D x ''
-D x --
-D x -- -v
-D x --no-slot=1
-D x --slot
-D x -d ''
-D x -d abc
-D x -d 'host=a'
-D x -d 'nonsense=1'
-D x -p abc
-D x -p ''
-D x -U ''
-D - -Ft
-D - -Ft -X fetch
-D - -Ft -X none
""".strip().splitlines()
RECEIVEWAL = r"""
-D {dir}
-D ''
-D {dir}/none
-D {dir} -E 0/1
-D {dir} -E ' 0/1'
-D {dir} -E 0x1/0x2
-D {dir} -E 0/1zzz
-D {dir} -E 0/
-D {dir} -E /1
-D {dir} -E 1
-D {dir} -E ''
-D {dir} -E zz/1
-D {dir} -E FFFFFFFFF/1
-D {dir} -E -1/1
-D {dir} -E '0/ 1'
-D {dir} -E '0 /1'
-D {dir} -s ' 5'
-D {dir} -s ''
-D {dir} -s 5s
-D {dir} -s 0x5
-D {dir} -s 2147484
-D {dir} -Z ''
-D {dir} -Z 5
-D {dir} -Z ' 5'
-D {dir} -Z none:0
-D {dir} -Z none:1
-D {dir} -Z gzip:+3
-D {dir} -Z gzip:workers=3
-D {dir} -Z client-gzip
-D {dir} -Z lz4
-D {dir} -Z lz4:0
-D {dir} -S ''
-D {dir} -S '' --create-slot
--create-slot -S a
--create-slot
--drop-slot -S ''
-D {dir} --cre -S a
-D {dir} --sy
-D {dir} --s 1
-D {dir} --st 5
-D {dir} --sl s
-D {dir} --no-s
-D {dir} --no
-D {dir} --if
-D {dir} --en 0/1
-D {dir} --synchronous --no-sync
-D {dir} --help
-D {dir} -V
-D {dir} -nv
-D {dir} -d abc
-D {dir} -d ''
-D {dir} x
""".strip().splitlines()
# {good} is a backup without WAL, {dir} the directory that holds it.
VERIFYBACKUP = r"""

-n {good}
-n {good} x
-n x y z
-n {good} ''
''
-- {good} -n
-n -- {good}
-n -- -x
-n {dir}/none
-n {good}/
-n {good}/.
-n {dir}/link
{good}
-n -i '' {good}
-n -i / {good}
-n -i . {good}
-n -i base {good}
-n -i base/ {good}
-n -i ./base {good}
-n -i {good}/base {good}
-n -i x -i y {good}
-w '' {good}
--wal-directory= {good}
-w {dir}/none {good}
-w {good}/PG_VERSION {good}
-n -m '' {good}
-n --manifest-path= {good}
-n -m {dir}/none {good}
-n -m {good}/backup_manifest {good}
-n -m {good} {good}
-n -m {good}/PG_VERSION {good}
-n --ig base {good}
-n --i base {good}
-n --ignore= {good}
-n --ignore {good}
-n --man {good}/backup_manifest {good}
-n --manifest-path {good}
--no {good}
--n {good}
-n --q {good}
-n --s {good}
-n --po {good}
-n --pol {good}
-n --j {good}
-n --e {good}
-n --wal {good} {good}
-n --wal-d {good} {good}
-n --x {good}
-n --verbose {good}
-n --exit-on-error=1 {good}
-n --quiet= {good}
-e -e -n {good}
-eqns {good}
-eqn{good}
-n -x {good}
-P -n {good}
-n -Pq {good}
-n -q {good}
-n -Fp {good}
-n -F plain {good}
-n -F P {good}
-n -F '' {good}
-n -F tarx {good}
-n -Fpl {good}
-n --form plain {good}
-n --format
-n -F
-n -w
-n -i
-n -m
-n {good} -q
-n {good} -- -q
{good} -s -n
-n -m{good}/backup_manifest {good}
-V {good}
--version x
--V
-n --v
--help x
-h
-q --help
-q -V
-VV
-nqV {good}
""".strip("\n").splitlines()
# What the older real program does not have yet, or refuses where newer ones take it; ours follows the newest.
NEWER: dict[int, set[str]] = {
    15: {
        "-D x -Z ''",
        "-D x -Z 0",
        "-D x -Z -0",
        "-D x -Ft -Z client-5",
        "-D x -Ft -Z zstd:long",
        "-D x --i f",
        "-D x --sync-m fsync",
    },
    17: set(),
    18: set(),
}
VERIFYBACKUP_NEWER = {
    15: {"-P -n {good}", *(line for line in VERIFYBACKUP if "-F" in line or "--form" in line)},
    17: {line for line in VERIFYBACKUP if "-F" in line or "--form" in line},
    18: set[str](),
}
BASEBACKUP += sorted(NEWER[15] - set(BASEBACKUP))


def is_taken(errors: str) -> bool:
    return NOWHERE in errors or "connection to server" in errors


def words_of(line: str, directory: Path) -> list[str]:
    # Behind what ends the options, nothing more is one.
    words = shlex.split(line.replace("{dir}", str(directory)))
    return ["-h", NOWHERE, *words]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, list[str]], dict[str, Finished]]:
    """A function that runs ours on every line, once."""
    known: dict[str, dict[str, Finished]] = {}

    def find(command: str, lines: list[str]) -> dict[str, Finished]:
        if command not in known:
            directory = tmp_path_factory.mktemp("target")
            finished = run_command_lines([[command, *words_of(line, directory)] for line in lines])
            known[command] = dict(zip(lines, finished, strict=True))
        return known[command]

    return find


@pytest.mark.parametrize("major", [15, 17, 18])
@pytest.mark.parametrize(("command", "lines"), [("basebackup", BASEBACKUP), ("receivewal", RECEIVEWAL)])
def test_the_same_command_lines_are_taken_and_refused(
    installation: Callable[[int], Binaries],
    answers: Callable[[str, list[str]], dict[str, Finished]],
    tmp_path: Path,
    major: int,
    command: str,
    lines: list[str],
) -> None:
    programs = installation(major)
    if not has_program(programs, f"pg_{command}"):
        pytest.skip(f"pg_{command} {major} is not installed")
    real = str(programs.program(f"pg_{command}"))
    (tmp_path / "target").mkdir()
    differ = []
    for line, ours in answers(command, lines).items():
        if line in NEWER[major]:
            continue
        assert "Traceback" not in ours.errors, (line, ours.errors)
        theirs = subprocess.run(
            [real, *words_of(line, tmp_path / "target")], env=environment_for(programs.directory), cwd=tmp_path,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        if "this build does not support" in theirs.stderr:
            continue  # PyPI's programs come without lz4.
        if (is_taken(ours.errors), ours.status) != (is_taken(theirs.stderr), theirs.returncode):
            differ.append((line, ours.status, ours.errors, theirs.returncode, theirs.stderr))
    assert not differ, "\n".join(map(str, differ))


@pytest.fixture(scope="module")
def verified(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Finished]]:
    """A sound backup, the directory around it, and what ours says to every line."""
    directory = tmp_path_factory.mktemp("verified")
    made = MadeBackup()
    made.content |= {f"base/{oid}/PG_VERSION": b"15\n" for oid in (1, 4, 5)}
    made.content |= dict.fromkeys(
        ("pg_xact/0000", "pg_multixact/offsets/0000", "base/1/1255", "base/5/16384", "global/1262"), bytes(8192)
    )
    good = made.seal().plain(directory / "good")
    (directory / "link").symlink_to(good)
    words = [shlex.split(line.format(good=good, dir=directory)) for line in VERIFYBACKUP]
    finished = run_command_lines([["verifybackup", *line] for line in words])
    return good, directory, dict(zip(VERIFYBACKUP, finished, strict=True))


@pytest.mark.parametrize("major", [15, 17, 18])
def test_the_same_lines_verify_a_backup_with_the_same_status_and_output(
    installation: Callable[[int], Binaries], verified: tuple[Path, Path, dict[str, Finished]], major: int
) -> None:
    programs = installation(major)
    if not has_program(programs, "pg_verifybackup"):
        pytest.skip(f"pg_verifybackup {major} is not installed")
    good, directory, answers = verified
    differ = []
    for line, ours in answers.items():
        if line in VERIFYBACKUP_NEWER[major]:
            continue
        assert "Traceback" not in ours.errors, (line, ours.errors)
        theirs = subprocess.run(
            [str(programs.program("pg_verifybackup")), *shlex.split(line.format(good=good, dir=directory))],
            env=environment_for(programs.directory), cwd=directory, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=60, check=False,
        )  # fmt: skip
        speaks_of_itself = theirs.stdout and not theirs.stdout.startswith("backup")
        if ours.status != theirs.returncode or not (speaks_of_itself or ours.output == theirs.stdout):
            differ.append((line, ours, theirs.returncode, theirs.stdout, theirs.stderr))
    assert not differ, "\n".join(map(str, differ))
    assert answers["-n {good}"].output == "backup successfully verified\n"


@pytest.mark.parametrize("command", ["basebackup", "receivewal", "verifybackup"])
@pytest.mark.parametrize("option", ["--version", "-V"])
def test_callers_find_a_version_of_postgresql(command: str, option: str) -> None:
    said = run_polarvault(command, option).stdout
    first = said.splitlines()[0]
    found = re.match(r"(\S+) \(.*\) (\d+\S*)", said)
    assert found is not None
    assert re.fullmatch(r"\S+ \(PostgreSQL\) \d+(\.\d+)?", first)
    newest = str(SERVER_MAJORS[1])
    for number in (found[2], first.split()[-1], said.split()[-1]):
        assert number.partition(".")[0] == newest
    assert "Polarvault" in said.splitlines()[1]


def test_the_version_that_callers_find_is_the_newest_server_that_is_known() -> None:
    assert (versions.OLDEST.major, versions.NEWEST.major) == SERVER_MAJORS
