"""The papers' augmentations, on whole batches.

They draw from torch's global generator: whoever saves and restores its state, as training does,
gets the same batches again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..errors import InvalidOptionError

__all__ = ["AUGMENTATIONS", "Augmentation", "augmentation", "random_crop", "random_flip"]

Augmentation = Callable[[Tensor], Tensor]
"""A random map of a batch of images ``(batch, c, h, w)`` to one of the same shape."""


def random_crop(x: Float[Tensor, "batch c h w"], padding: int = 4) -> Float[Tensor, "batch c h w"]:
    """Shift each image by up to ``padding`` pixels, filling in black.

    Each image is padded with zeros on all sides, and a window of its own size is cut out at a
    place drawn uniformly from the ``(2 padding + 1)²`` possible ones, independently per image.

    Args:
        x: images.
        padding: pixels of padding, at least 0.

    Returns:
        The crops, of the shape of ``x``.
    """
    batch, _, height, width = x.shape
    padded = F.pad(x, (padding, padding, padding, padding))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view of all possible crops
    top, left = torch.randint(2 * padding + 1, (2, batch), device=x.device)
    return windows[torch.arange(batch, device=x.device), :, top, left]


def random_flip(x: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch c h w"]:
    """Mirror each image left to right with probability one half, independently per image."""
    flipped = torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5
    return torch.where(flipped, x.flip(-1), x)


def _crop_flip(x: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch c h w"]:
    return random_flip(random_crop(x))


def _none(x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
    return x


AUGMENTATIONS: Mapping[str, Augmentation] = MappingProxyType(
    {"none": _none, "crop_flip": _crop_flip}
)
"""All augmentations by name.

``crop_flip`` is a random crop after 4 pixels of zero padding, then a random horizontal flip: what
the papers train with on CIFAR and, in [LyaDEQ], on SVHN too. ``none`` leaves the images alone.
"""


def augmentation(name: str) -> Augmentation:
    """Return the augmentation of a name in :data:`AUGMENTATIONS`.

    Raises:
        InvalidOptionError: for a name that is not there.
    """
    if name not in AUGMENTATIONS:
        raise InvalidOptionError(
            f"there is no augmentation {name!r}; available: {', '.join(AUGMENTATIONS)}"
        )
    return AUGMENTATIONS[name]
