"""What goes wrong with clones, by who must act."""

from __future__ import annotations

from polarvault.errors import PolarvaultError


class CloneNotFound(PolarvaultError):
    """There is no clone of this name."""

    id = "clone-not-found"
    actor = "the operator"
    remedy = "see which there are: polarvault clone list"


class CloneRefused(PolarvaultError):
    """A clone cannot be made, or not be used like this; nothing was changed."""

    id = "clone-refused"
    actor = "the operator"
    remedy = "do what the hint says"
