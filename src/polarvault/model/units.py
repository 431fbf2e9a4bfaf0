"""Numbers with units, as people read them: findings and reports share one spelling."""

from __future__ import annotations


def format_bytes(size: int) -> str:
    """Return a size as people read it: 1.4 GB, 17 kB."""
    value, unit = float(size), "bytes"
    for unit in ("bytes", "kB", "MB", "GB", "TB", "PB"):
        if value < 1024 or unit == "PB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "bytes" or value >= 100 else f"{value:.1f} {unit}"


def format_duration(seconds: float) -> str:
    """Return a length of time in its largest unit, as people read it: 40 s, 12 min, 26 h, 3.5 d."""
    seconds = max(0.0, seconds)
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    if seconds < 172_800:
        return f"{seconds / 3600:.0f} h"
    days = f"{seconds / 86_400:.1f}"
    return f"{days.removesuffix('.0')} d"
