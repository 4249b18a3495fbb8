"""The center of a potential: the origin, a given point, or one per sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stabnet import InvalidOptionError
from stabnet.interfaces import Context, Potential

__all__ = ["center_of", "offset_from", "point"]


def point(center: Sequence[Any] | None, state_shape: Sequence[int]) -> Float[Tensor, "..."]:
    """Return a state given as numbers, nested as its shape is or in one flat list.

    Args:
        center: the numbers, or ``None`` for the origin.
        state_shape: the shape of a state.

    Raises:
        InvalidOptionError: unless there is one finite number per entry of the state.
    """
    shape = tuple(state_shape)
    if center is None:
        return torch.zeros(shape)
    try:
        given = torch.as_tensor(center, dtype=torch.get_default_dtype()).detach().clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidOptionError(f"center={center!r} must be numbers, one per entry") from error
    if given.shape not in (shape, (math.prod(shape),)) or not bool(given.isfinite().all()):
        raise InvalidOptionError(
            f"center={center!r} must be {math.prod(shape)} finite numbers, for states of shape "
            f"{shape}"
        )
    return given.reshape(shape)


def center_of(potential: Potential, context: Context | None = None) -> Tensor:
    """Return the center: that of the context, the potential's own, or else the origin."""
    if context is not None and context.center is not None:
        return context.center
    own = getattr(potential, "center", None)
    if isinstance(own, Tensor):
        return own
    like = next((t for t in (*potential.parameters(), *potential.buffers())), torch.empty(0))
    return torch.zeros(potential.state_shape, dtype=like.dtype, device=like.device)


def offset_from(center: Tensor, z: Tensor, state_ndim: int) -> tuple[Tensor, Tensor]:
    """Return ``z − c`` and ``c``, both flattened, aligned with states that have samples.

    Args:
        center: a single state, or one per sample, ``(batch, *state_shape)``.
        z: states ``(batch, *state_shape)``, with any further dimensions between the two.
        state_ndim: number of dimensions of one state.
    """
    c = center.to(z.dtype)
    if c.ndim > state_ndim:  # one per sample, for all of the states of that sample
        c = c[(slice(None), *[None] * (z.ndim - c.ndim))]
    flat = c.flatten(-state_ndim)
    return z.flatten(-state_ndim) - flat, flat
