"""What belongs to a whole process is set by the commands, not by what they call: that may run beside other work."""

from __future__ import annotations

import ast
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src/polarvault"
PROCESS_WIDE = {
    "os.umask", "os.chdir", "os.seteuid", "os.setegid", "os.setgroups", "os.setuid", "os.putenv", "signal.signal",
    "sys.setswitchinterval", "sys.setrecursionlimit", "resource.setrlimit", "locale.setlocale",
}  # fmt: skip
# A restore by root works as the account that owns the result, all threads of it; the other is a program of its own.
KNOWN = {"storage/identity.py", "drill/place/behind_walls.py"}


def test_only_commands_change_what_belongs_to_the_process() -> None:
    found = {
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in PROCESS_WIDE
    }
    assert {name for name in found if not name.startswith("cli/")} == KNOWN
