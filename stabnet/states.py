"""States: their shape, their precision, and their form for solvers, which see matrices only."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from .errors import InvalidInputError
from .interfaces import Features, State

__all__ = ["first_tensor", "ravel", "state_dtype", "zero_state"]


def first_tensor(u: Features) -> Tensor:
    """Return the first tensor of the features, whose batch, device and dtype a state takes on."""
    if u is None:
        raise InvalidInputError("a dynamics needs features to know its batch; got None")
    return u if isinstance(u, Tensor) else u[0]


def state_dtype(u: Tensor) -> torch.dtype:
    """Return the dtype of a state driven by ``u``: autocast's half precision is not for states."""
    device = u.device.type
    half = torch.is_autocast_enabled(device) and u.dtype == torch.get_autocast_dtype(device)
    return torch.float32 if half else u.dtype


def zero_state(
    like: Tensor,
    batch: int,
    shape: tuple[int, ...] | tuple[tuple[int, ...], ...],
    dtype: torch.dtype,
) -> State:
    """Return the zero state: a tensor, or for a tuple of shapes a tuple of tensors."""
    if shape and isinstance(shape[0], tuple):
        return tuple(like.new_zeros((batch, *part), dtype=dtype) for part in shape)
    return like.new_zeros((batch, *cast("tuple[int, ...]", shape)), dtype=dtype)


def ravel(state: State, joint: bool) -> tuple[Tensor, Callable[[Tensor], State]]:
    """Return a state as ``(batch, n)``, or ``(1, batch·n)`` for a joint problem, and the way back.

    The way back takes any number of rows, so that solvers may drop some.
    """
    parts = state if isinstance(state, tuple) else (state,)
    shapes = [p.shape[1:] for p in parts]
    sizes = [s.numel() for s in shapes]
    flat = torch.cat([p.flatten(1) for p in parts], 1) if len(parts) > 1 else parts[0].flatten(1)
    width = flat.shape[1]

    def unravel(z: Tensor) -> State:
        rows = z.reshape(-1, width)
        unraveled = tuple(
            part.unflatten(1, shape)
            for part, shape in zip(rows.split(sizes, 1), shapes, strict=True)
        )
        return unraveled if isinstance(state, tuple) else unraveled[0]

    return (flat.reshape(1, -1) if joint else flat), unravel
