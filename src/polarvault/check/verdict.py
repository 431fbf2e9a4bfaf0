"""Short ways to make a finding; each area's judgements are written with these."""

from __future__ import annotations

from polarvault.model.finding import Finding, Severity


def ok(check: str, subject: str, message: str) -> Finding:
    """Return a finding that asks for nothing."""
    return Finding(severity=Severity.OK, check=check, subject=subject, message=message)


def warning(check: str, subject: str, message: str, *, meaning: str, advice: str) -> Finding:
    """Return a finding that a backup survives, but that its owner should know."""
    return Finding(
        severity=Severity.WARNING, check=check, subject=subject, message=message, meaning=meaning, advice=advice
    )


def problem(check: str, subject: str, message: str, *, meaning: str, advice: str) -> Finding:
    """Return a finding that keeps a backup from being taken, restored, or relied on."""
    return Finding(
        severity=Severity.PROBLEM, check=check, subject=subject, message=message, meaning=meaning, advice=advice
    )


def setting_change(name: str, value: str, *, restart: bool) -> str:
    """Return the lines that change a server setting; the value is written as SQL takes it."""
    change = f"ALTER SYSTEM SET {name} = {value};"
    if restart:
        return f"{change}\nand restart the server: it reads {name} only when it starts"
    return f"{change} SELECT pg_reload_conf();"
