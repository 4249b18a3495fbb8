"""The equilibrium of a field: a given point or each sample's features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from stabnet import InvalidOptionError

from .descent import Center, check_center

__all__ = ["CenterOption", "split_center"]

CenterOption = Sequence[Any] | Literal["features"] | None
"""A point, nested as a state or flat; each sample's features; or ``None`` for the origin."""


def split_center(
    center: CenterOption, state_shape: Sequence[int], feature_shape: Sequence[int]
) -> tuple[Center, Sequence[Any] | None]:
    """Return what the center of a field is, and the point that its potential is centered at.

    Raises:
        InvalidOptionError: for another word, or features of another shape than a state's.
    """
    if center == "features":
        return check_center("features", state_shape, feature_shape), None
    if isinstance(center, str):
        raise InvalidOptionError(
            f"center={center!r} is unknown; it is a point, 'features', or None for the origin"
        )
    return "potential", center
