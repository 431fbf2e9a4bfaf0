"""--set NAME=VALUE: a setting of a restored server."""

from __future__ import annotations

from polarvault.errors import UsageError


def assignment(text: str) -> tuple[str, str]:
    """Split the value of --set; raise UsageError for what is no assignment."""
    name, separator, value = text.partition("=")
    name = name.strip()
    if not separator or not name.replace("_", "").replace(".", "").isalnum():
        raise UsageError(f"--set {text!r} is not NAME=VALUE", hint="for example: --set shared_buffers=4GB")
    return name, value
