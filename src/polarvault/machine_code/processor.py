"""What tells one processor from another, as far as code made for one may not run on the other."""

from __future__ import annotations

import platform
import sys

_CPUINFO = "/proc/cpuinfo"
# The first processor is described in the first 2 to 4 kB; the kernel would describe hundreds.
_CPUINFO_BYTES = 8192
# Of what Linux says of an x86 processor: what it is, and all that it and the kernel can do. Not its clock.
_IDENTITY = ("vendor_id", "cpu family", "model", "stepping", "flags")


def cpu_family() -> str:
    """Return ``x86`` or ``arm`` for their 64-bit kinds, which have instructions for CRC-32C, else ``other``."""
    if sys.byteorder != "little" or sys.maxsize < 1 << 32:
        return "other"
    return {"x86_64": "x86", "AMD64": "x86", "aarch64": "arm", "arm64": "arm"}.get(platform.machine(), "other")


def processor_identity(path: str = _CPUINFO) -> str | None:
    """Return kind and features of this machine's processor; None where they are not known: not Linux, not x86-64.

    `flags` has what the kernel lets programs use (AVX needs its help), so that the same processor below another
    hypervisor or kernel is another one here.
    """
    if cpu_family() != "x86":
        return None
    try:
        with open(path, "rb", buffering=0) as file:
            text = file.read(_CPUINFO_BYTES).decode("ascii", "replace")
    except OSError:
        return None
    first, end, _ = text.partition("\n\n")
    fields = dict(line.partition(":")[::2] for line in first.splitlines())
    found = {name.strip(): value.strip() for name, value in fields.items()}
    # A description that was cut off could lack features.
    if not end or any(not found.get(name) for name in _IDENTITY):
        return None
    return "\n".join(f"{name}: {found[name]}" for name in _IDENTITY)
