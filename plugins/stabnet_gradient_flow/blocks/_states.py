"""What blocks share: the shapes of their states."""

from __future__ import annotations

from collections.abc import Sequence

from stabnet import InvalidOptionError
from stabnet.values import shape

__all__ = ["image_shape", "state_sizes"]


def state_sizes(block: str, state_shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of a state that is a vector or an image.

    Raises:
        InvalidOptionError: for any other.
    """
    sizes = shape("state_shape", state_shape)
    if len(sizes) not in (1, 3):
        raise InvalidOptionError(
            f"{block} takes states that are vectors (n,) or images (channels, height, width); got "
            f"state_shape={sizes}"
        )
    return sizes


def image_shape(block: str, state_shape: Sequence[int]) -> tuple[int, int, int]:
    """Return the shape of a state that is an image.

    Raises:
        InvalidOptionError: for any other.
    """
    sizes = shape("state_shape", state_shape)
    if len(sizes) != 3:
        raise InvalidOptionError(
            f"{block} takes states that are images (channels, height, width); got "
            f"state_shape={sizes}"
        )
    return sizes[0], sizes[1], sizes[2]
