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
