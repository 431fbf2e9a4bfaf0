"""Runs commands of the program one after the other, each in a child of its own that has everything imported already.

Started by `support.fuzzing.Worker`. A request is a line of JSON on standard input, the answer one on standard output.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
import traceback

UNEXPECTED = 70
# So that a command that takes memory without end ends itself and not the machine; far above what is judged.
_ADDRESS_SPACE = 6 << 30


def main() -> None:
    _import_everything()
    for line in sys.stdin:
        request = json.loads(line)
        sys.stdout.write(json.dumps(_run(request)) + "\n")
        sys.stdout.flush()


def _import_everything() -> None:
    """Pay for imports and for compiling the page check once."""
    import importlib

    from polarvault.pgfiles.pages import load_kernel

    for name in (
        "cli.main",
        *(f"cli.commands.{name}" for name in ("basebackup", "receivewal", "verifybackup", "restore", "drill", "wal")),
        *("basebackup.take", "walarchive.receive.run", "verify.run", "restore.run", "report.receivewal"),
    ):
        importlib.import_module(f"polarvault.{name}")
    load_kernel()


def _run(request: dict[str, object]) -> dict[str, object]:
    arguments, cwd = request["arguments"], str(request["cwd"])
    deadline = time.monotonic() + float(str(request["timeout_s"]))
    errors, output = os.path.join(cwd, ".stderr"), os.path.join(cwd, ".stdout")
    child = os.fork()
    if child == 0:
        status = _in_child(arguments, cwd, errors, output, str(request["prelude"]))
        # Looked up after the prelude, which may have put something in its place.
        os._exit(status)
    while True:
        pid, status, usage = os.wait4(child, os.WNOHANG)
        if pid:
            break
        if time.monotonic() > deadline:
            # Twice the dump first: where it hangs is what somebody has to know.
            os.kill(child, signal.SIGABRT)
            time.sleep(0.5)
            os.killpg(child, signal.SIGKILL)
            _, status, usage = os.wait4(child, 0)
            return _outcome(None, usage, errors, output)
        time.sleep(0.003)
    return _outcome(os.waitstatus_to_exitcode(status), usage, errors, output)


def _outcome(status: int | None, usage: resource.struct_rusage, errors: str, output: str) -> dict[str, object]:
    printed = os.path.getsize(output)
    os.unlink(output)
    return {"status": status, "peak_bytes": usage.ru_maxrss << 10, "errors": _read(errors), "printed_bytes": printed}


def _read(path: str) -> str:
    with open(path, "rb") as stream:
        content = stream.read(1 << 20)
    os.unlink(path)
    return content.decode("utf-8", "replace")


def _in_child(arguments: object, cwd: str, errors: str, output: str, prelude: str) -> int:
    import faulthandler

    from polarvault.cli.main import run

    try:
        os.setsid()
        os.chdir(cwd)
        resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 1)
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 2)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        faulthandler.enable(file=2, all_threads=True)
        exec(prelude, {})
        assert isinstance(arguments, list)
        status = run(arguments)
        sys.stderr.flush()
        return status
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        return UNEXPECTED


if __name__ == "__main__":
    main()
