"""How settings are changed, for the advice of the judgements."""

from __future__ import annotations


def setting_change(name: str, value: str, *, restart: bool) -> str:
    """Return the lines that change a server setting; the value is written as SQL takes it."""
    change = f"ALTER SYSTEM SET {name} = {value};"
    if restart:
        return f"{change}\nand restart the server: it reads {name} only when it starts"
    return f"{change} SELECT pg_reload_conf();"
