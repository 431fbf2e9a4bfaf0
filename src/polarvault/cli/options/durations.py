"""Times on the command line, as the configuration writes them."""

from __future__ import annotations

from polarvault.errors import UsageError


def seconds_of(option: str, text: str) -> int:
    """Return the seconds of a time such as 36h or 14d; raise UsageError that names the option."""
    from polarvault.config.values import duration_s

    try:
        return duration_s(text)
    except ValueError as problem:
        raise UsageError(f"{option} {text}: {problem}", hint="write a number with s, min, h, d or w: 14d") from None
