"""Numbers with units, as people read them."""

from __future__ import annotations

from polarvault.model.units import format_bytes

__all__ = ["format_bytes"]
