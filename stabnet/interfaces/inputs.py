"""Checks of what a field or a block is given, for the authors of fields and blocks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..errors import InvalidInputError
from .solution import Features

__all__ = ["check_block_state", "check_field_state", "driving_features"]


def check_block_state(z: Tensor, state_shape: Sequence[int]) -> None:
    """Check that ``z`` is a batch of states ``(batch, *state_shape)``, as a block takes them.

    Raises:
        InvalidInputError: otherwise.
    """
    if tuple(z.shape[1:]) != tuple(state_shape):
        raise InvalidInputError(
            f"states have shape {tuple(z.shape)}; the block takes (batch, "
            f"{', '.join(map(str, state_shape))})"
        )


def check_field_state(z: Tensor, state_shape: Sequence[int]) -> None:
    """Check that ``z`` is one state, a batch of them, or a batch with samples, as a field takes it.

    Raises:
        InvalidInputError: otherwise.
    """
    extra = z.ndim - len(state_shape)
    if extra not in (0, 1, 2) or tuple(z.shape[extra:]) != tuple(state_shape):
        wanted = ", ".join(map(str, state_shape))
        raise InvalidInputError(
            f"expected states (batch, {wanted}) or (batch, samples, {wanted}); got {tuple(z.shape)}"
        )


def driving_features(u: Features, feature_shape: Sequence[int]) -> Tensor | None:
    """Return the features that drive a field, ``None`` for an autonomous one.

    Args:
        u: what the field was given, ``(batch, *feature_shape)`` or one sample's.
        feature_shape: what it was built for; empty for an autonomous field, which ignores ``u``.

    Raises:
        InvalidInputError: unless they are one tensor of that shape.
    """
    if not feature_shape:
        return None
    wanted = f"features (batch, {', '.join(map(str, feature_shape))})"
    if not isinstance(u, Tensor):
        raise InvalidInputError(f"the field takes {wanted}; got {type(u).__name__}. Pass u")
    extra = u.ndim - len(feature_shape)
    if extra not in (0, 1) or tuple(u.shape[extra:]) != tuple(feature_shape):
        raise InvalidInputError(f"the field takes {wanted}; got {tuple(u.shape)}")
    return u
