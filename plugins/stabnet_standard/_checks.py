"""Checks of option values that several parts share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real

import stabnet

__all__ = ["image_shape", "nonnegative", "positive", "positive_int", "positive_ints"]


def positive_int(option: str, value: int) -> int:
    """Return ``value`` if it is a positive whole number.

    Raises:
        InvalidOptionError: otherwise.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise stabnet.InvalidOptionError(f"{option} is a positive whole number; got {value!r}")
    return int(value)


def positive_ints(option: str, values: Sequence[int]) -> tuple[int, ...]:
    """Return ``values`` as a tuple if they are positive whole numbers.

    Raises:
        InvalidOptionError: otherwise.
    """
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise stabnet.InvalidOptionError(
            f"{option} is a sequence of positive whole numbers, such as (64, 64); got {values!r}"
        )
    return tuple(positive_int(f"each entry of {option}", value) for value in values)


def positive(option: str, value: float) -> float:
    """Return ``value`` if it is positive and finite.

    Raises:
        InvalidOptionError: otherwise.
    """
    if not (_is_finite(value) and value > 0):
        raise stabnet.InvalidOptionError(f"{option} is a positive finite number; got {value!r}")
    return value


def nonnegative(option: str, value: float) -> float:
    """Return ``value`` if it is zero or positive, and finite.

    Raises:
        InvalidOptionError: otherwise.
    """
    if not (_is_finite(value) and value >= 0):
        raise stabnet.InvalidOptionError(f"{option} is finite and at least 0; got {value!r}")
    return value


def _is_finite(value: float) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


def image_shape(part: str, in_shape: Sequence[int]) -> tuple[int, int, int]:
    """Return ``in_shape`` as ``(channels, height, width)`` of an image that ``part`` can take.

    Raises:
        InvalidOptionError: if it is no image shape, or the image is smaller than 8 × 8.
    """
    sizes = positive_ints("in_shape", in_shape)
    if len(sizes) != 3:
        raise stabnet.InvalidOptionError(
            f"{part} takes images, in_shape=(channels, height, width); got {sizes}. For inputs of "
            "another shape use the backbone 'mlp', 'linear' or 'identity'"
        )
    channels, height, width = sizes
    if min(height, width) < 8:
        raise stabnet.InvalidOptionError(
            f"{part} takes images of at least 8 × 8 pixels; got {height} × {width}. Enlarge them, "
            "or use the backbone 'mlp' or 'linear'"
        )
    return channels, height, width
