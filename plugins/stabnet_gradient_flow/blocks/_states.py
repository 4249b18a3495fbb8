"""What all blocks share: checks of shapes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from stabnet import InvalidInputError, InvalidOptionError
from stabnet.values import shape

__all__ = ["check_state", "image_shape", "state_sizes"]


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


def check_state(z: Tensor, state_shape: tuple[int, ...]) -> None:
    """Raise :class:`stabnet.InvalidInputError` for states of another shape than the block's."""
    if tuple(z.shape[1:]) != state_shape:
        raise InvalidInputError(
            f"states have shape {tuple(z.shape)}; the block takes (batch, "
            f"{', '.join(map(str, state_shape))})"
        )
