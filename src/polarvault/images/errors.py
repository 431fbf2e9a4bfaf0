"""What goes wrong with images, by who must act."""

from __future__ import annotations

from polarvault.errors import PolarvaultError


class ImageNotFound(PolarvaultError):
    """There is no image of this name."""

    id = "image-not-found"
    actor = "the operator"
    remedy = "see which there are: polarvault image list"


class ImageRefused(PolarvaultError):
    """An image cannot be made, or not be used like this; those that are there are as they were."""

    id = "image-refused"
    actor = "the operator"
    remedy = "do what the hint says"
