"""The equilibrium of a field: a given point or each sample's features, and checks of its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from stabnet import InvalidInputError, InvalidOptionError
from stabnet.interfaces import Features

from .descent import Center, check_center

__all__ = ["CenterOption", "check_state", "driving_features", "split_center"]

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


def check_state(z: Tensor, state_shape: tuple[int, ...]) -> None:
    """Check that ``z`` is one state, a batch of them, or a batch with samples.

    Raises:
        InvalidInputError: otherwise.
    """
    extra = z.ndim - len(state_shape)
    if extra not in (0, 1, 2) or z.shape[extra:] != state_shape:
        wanted = ", ".join(map(str, state_shape))
        raise InvalidInputError(
            f"the field takes states (batch, {wanted}) or (batch, samples, {wanted}); "
            f"got {tuple(z.shape)}"
        )


def driving_features(u: Features, feature_shape: tuple[int, ...]) -> Tensor | None:
    """Return the features of a field, ``None`` for one that is autonomous.

    Raises:
        InvalidInputError: unless they are one tensor of the shape that the field was built for.
    """
    if not feature_shape:
        return None
    wanted = f"features (batch, {', '.join(map(str, feature_shape))})"
    if not isinstance(u, Tensor):
        raise InvalidInputError(f"the field takes {wanted}; got {type(u).__name__}. Pass u")
    extra = u.ndim - len(feature_shape)
    if extra not in (0, 1) or u.shape[extra:] != feature_shape:
        raise InvalidInputError(f"the field takes {wanted}; got {tuple(u.shape)}")
    return u
