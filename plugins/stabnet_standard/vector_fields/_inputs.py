"""What the standard fields share: their shapes and the checks of their arguments."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import stabnet
from stabnet.interfaces import Features

from .._checks import positive_ints

__all__ = ["check_state", "checked_features", "feature_sizes", "time_direction"]


def feature_sizes(feature_shape: Sequence[int] | None) -> tuple[int, ...]:
    """Return the feature shape as a tuple; ``()``, like ``None``, means an autonomous field."""
    return positive_ints("feature_shape", feature_shape or ())


def time_direction(width: int, time_dependent: bool) -> nn.Parameter | None:
    """Return the weights of time in ``width`` hidden units, or ``None`` for a field without time.

    They start uniform in ``[-1, 1]``, as those of a linear layer with one input do.
    """
    return nn.Parameter(torch.empty(width).uniform_(-1, 1)) if time_dependent else None


def check_state(z: Tensor, state_shape: tuple[int, ...]) -> None:
    """Check that ``z`` is ``(batch, *state_shape)``, or has samples after the batch.

    Raises:
        InvalidInputError: otherwise.
    """
    extra = z.ndim - len(state_shape)
    if extra not in (1, 2) or z.shape[extra:] != state_shape:
        wanted = ", ".join(map(str, state_shape))
        raise stabnet.InvalidInputError(
            f"the field takes states (batch, {wanted}) or (batch, samples, {wanted}); "
            f"got {tuple(z.shape)}"
        )


def checked_features(u: Features, feature_shape: tuple[int, ...]) -> Tensor:
    """Return the features if they are one tensor ``(batch, *feature_shape)``.

    Raises:
        InvalidInputError: otherwise.
    """
    wanted = f"(batch, {', '.join(map(str, feature_shape))})"
    if not isinstance(u, Tensor):
        raise stabnet.InvalidInputError(
            f"the field is driven by features {wanted}; got {type(u).__name__}. Pass u, or build "
            "the field with feature_shape=None for an autonomous one"
        )
    if u.shape[1:] != feature_shape:
        raise stabnet.InvalidInputError(
            f"the field is driven by features {wanted}; got {tuple(u.shape)}"
        )
    return u
