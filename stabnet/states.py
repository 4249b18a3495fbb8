"""States: their shape, their precision, and their form for solvers, which see matrices only."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from .errors import InvalidInputError
from .interfaces import Features, State

__all__ = ["check_state", "first_tensor", "ravel", "state_dtype", "unraveler", "zero_state"]

Shape = tuple[int, ...] | tuple[tuple[int, ...], ...]


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


def _parts(shape: Shape) -> tuple[tuple[int, ...], ...] | None:
    """Return the shapes of a tuple state; ``None`` for a tensor state."""
    if shape and isinstance(shape[0], tuple):
        return shape
    return None


def zero_state(like: Tensor, batch: int, shape: Shape, dtype: torch.dtype) -> State:
    """Return the zero state: a tensor, or for a tuple of shapes a tuple of tensors."""
    parts = _parts(shape)
    if parts is not None:
        return tuple(like.new_zeros((batch, *part), dtype=dtype) for part in parts)
    return like.new_zeros((batch, *cast("tuple[int, ...]", shape)), dtype=dtype)


def check_state(state: State, batch: int, shape: Shape) -> None:
    """Raise :class:`InvalidInputError` for a state of another shape."""
    parts = _parts(shape)
    given = state if isinstance(state, tuple) else (state,)
    if not all(isinstance(part, Tensor) for part in given):
        raise InvalidInputError(
            f"a tensor or a tuple of tensors is expected as a state; got {type(state).__name__}"
        )
    expected = [(batch, *part) for part in (parts or (cast("tuple[int, ...]", shape),))]
    found = [tuple(p.shape) for p in given]
    if found != expected or isinstance(state, tuple) != (parts is not None):
        raise InvalidInputError(
            f"a state of {'a tuple of ' if parts is not None else ''}shape "
            f"{expected if parts is not None else expected[0]} is expected; got "
            f"{found if isinstance(state, tuple) else found[0]}"
        )


def ravel(state: State, joint: bool) -> Tensor:
    """Return a state as ``(batch, n)``, or ``(1, batch·n)`` for a joint problem."""
    if isinstance(state, tuple):
        flat = torch.cat([p.flatten(1) for p in state], 1)
    else:
        flat = state if state.ndim == 2 else state.flatten(1)
    return flat.reshape(1, -1) if joint else flat


def unraveler(shape: Shape) -> Callable[[Tensor], State]:
    """Return the way back from :func:`ravel`, for any number of rows: solvers may drop some."""
    parts = _parts(shape)
    if parts is None:
        whole = cast("tuple[int, ...]", shape)
        # Views of vectors as themselves would be most of the cost of small solves.
        return lambda z: z if z.shape[1:] == whole else z.reshape(-1, *whole)
    sizes = [torch.Size(part).numel() for part in parts]

    def unravel(z: Tensor) -> State:
        split = z.reshape(-1, sum(sizes)).split(sizes, 1)
        return tuple(p.unflatten(1, part) for p, part in zip(split, parts, strict=True))

    return unravel
