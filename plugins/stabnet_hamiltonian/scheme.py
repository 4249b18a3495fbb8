r"""Symplectic schemes for separable fields: sequences of drifts and kicks.

For :math:`\dot q = v(t, p)`, :math:`\dot p = f(t, q)` each of two moves is solved exactly: a drift
with ``p`` held, and a kick with ``q`` held,

.. math:: (q, p) \mapsto (q + a h\, v(t, p),\, p), \qquad (q, p) \mapsto (q,\, p + b h\, f(t, q)).

Their Jacobians are triangular with unit diagonal, and symplectic where ``v`` and ``f`` are
gradients, for then the block beside the diagonal is symmetric. So is any sequence of moves, and it
is undone by the opposite moves in opposite order.

A state is ``z = (q, p)``, two halves along the first dimension of a state.

References:
    [SNN] (27)–(28). Hairer, Lubich, Wanner: "Geometric numerical integration", 2006, II.5. Yoshida:
    "Construction of higher order symplectic integrators", 1990.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, TypeGuard

import torch
from jaxtyping import Float
from torch import Tensor

from stabnet import InvalidInputError, InvalidOptionError
from stabnet.interfaces import Features, Separable

__all__ = [
    "SCHEMES",
    "Scheme",
    "compose",
    "halves",
    "inverse_step",
    "is_separable",
    "scheme_named",
    "step",
    "timed",
]

SubStep: TypeAlias = tuple[Literal["drift", "kick"], float]

Scheme: TypeAlias = tuple[SubStep, ...]
"""Moves in the order in which they are made, each with its share of the step."""


def compose(*parts: tuple[Scheme, float]) -> Scheme:
    """Return the scheme that makes one step of each scheme in turn, each for its share of a step.

    Neighboring moves of one kind are merged: what they depend on does not change in between.

    >>> compose((SCHEMES["leapfrog"], 1.0), (SCHEMES["leapfrog"], 1.0))
    (('kick', 0.5), ('drift', 1.0), ('kick', 1.0), ('drift', 1.0), ('kick', 0.5))
    """
    moves: list[SubStep] = []
    for scheme, share in parts:
        for kind, weight in scheme:
            if moves and moves[-1][0] == kind:
                moves[-1] = (kind, moves[-1][1] + share * weight)
            else:
                moves.append((kind, share * weight))
    return tuple(moves)


_LEAPFROG: Scheme = (("kick", 0.5), ("drift", 1.0), ("kick", 0.5))
_OUTER = 1 / (2 - 2 ** (1 / 3))

SCHEMES: Mapping[str, Scheme] = MappingProxyType(
    {
        "symplectic_euler": (("drift", 1.0), ("kick", 1.0)),
        "leapfrog": _LEAPFROG,
        "yoshida4": compose((_LEAPFROG, _OUTER), (_LEAPFROG, 1 - 2 * _OUTER), (_LEAPFROG, _OUTER)),
    }
)
"""The schemes by name, of orders 1, 2 and 4."""


def scheme_named(name: str) -> Scheme:
    """Return one of :data:`SCHEMES`.

    Raises:
        InvalidOptionError: for another name.
    """
    if isinstance(name, str) and name in SCHEMES:
        return SCHEMES[name]
    raise InvalidOptionError(f"scheme={name!r} is unknown; it is one of {', '.join(SCHEMES)}")


def step(
    scheme: Scheme,
    field: Separable,
    t: float | Tensor,
    z: Float[Tensor, "batch ..."],
    h: float | Tensor,
    u: Features = None,
) -> Float[Tensor, "batch ..."]:
    """Make one step of a scheme.

    Drifts advance the time at which forces are evaluated, and kicks that of velocities: with these
    two clocks as further coordinates the moves are still exact flows, so that a scheme keeps its
    order for fields that depend on time.

    Args:
        scheme: the scheme, such as ``SCHEMES["leapfrog"]``.
        field: the field.
        t: time at which the step starts.
        z: states ``(batch, *state_shape)``.
        h: length of the step; negative backward in time.
        u: features, handed to every evaluation.

    Returns:
        The states at ``t + h``.

    Raises:
        InvalidInputError: for states that have no two equal halves.
    """
    return _moved(timed(scheme), field, t, z, h, 1, u)


def inverse_step(
    scheme: Scheme,
    field: Separable,
    t: float | Tensor,
    z: Float[Tensor, "batch ..."],
    h: float | Tensor,
    u: Features = None,
) -> Float[Tensor, "batch ..."]:
    """Return the states that :func:`step` maps to ``z``, exactly up to rounding.

    Args:
        scheme: as given to :func:`step`.
        field: as given to :func:`step`.
        t: time at which that step started, as given to it.
        z: the states that it returned.
        h: as given to :func:`step`.
        u: as given to :func:`step`.

    Raises:
        InvalidInputError: for states that have no two equal halves.
    """
    return _moved(timed(scheme)[::-1], field, t, z, h, -1, u)


def is_separable(field: Any) -> TypeGuard[Separable]:
    """Return whether a field has a velocity and a force.

    By attributes: ``isinstance`` with a protocol breaks a compiled graph.
    """
    return hasattr(field, "velocity") and hasattr(field, "force")


def halves(
    z: Float[Tensor, "..."], field: object
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."], int]:
    """Return positions, momenta, and the dimension along which states hold them.

    It is the first one of a state: that of the field's ``state_shape`` or, where it names none, the
    one after the batch.

    Raises:
        InvalidInputError: for states that have no two equal halves.
    """
    shape = getattr(field, "state_shape", None)
    axis = 1 - z.ndim if shape is None else -len(shape)
    if not 1 <= -axis <= z.ndim or z.shape[axis] % 2:
        wanted = "" if shape is None else f" of shape (batch, {', '.join(map(str, shape))})"
        raise InvalidInputError(
            f"a Hamiltonian state is (q, p), two equal halves along its first dimension; expected "
            f"states{wanted} with an even size there, got {tuple(z.shape)}"
        )
    q, p = z.chunk(2, axis)
    return q, p, axis


def timed(scheme: Scheme) -> list[tuple[str, float, float]]:
    """Return kind and weight of each move, and the time of its evaluation as a share of the step.

    In the order of the moves, for an inverse to go through backward: it evaluates at these times.
    """
    moves: list[tuple[str, float, float]] = []
    drifted = kicked = 0.0
    for kind, weight in scheme:
        if kind == "drift":
            moves.append((kind, weight, kicked))
            drifted += weight
        else:
            moves.append((kind, weight, drifted))
            kicked += weight
    return moves


def _moved(
    moves: Sequence[tuple[str, float, float]],
    field: Separable,
    t: float | Tensor,
    z: Tensor,
    h: float | Tensor,
    sign: int,
    u: Features,
) -> Tensor:
    """Make moves in the order given, forward or, with ``sign`` −1, each of them undone."""
    q, p, axis = halves(z, field)
    for kind, weight, node in moves:
        if kind == "drift":
            q = _added(q, field.velocity(t + node * h, p, u), sign * weight * h)
        else:
            p = _added(p, field.force(t + node * h, q, u), sign * weight * h)
    return torch.cat([q, p], axis)


def _added(x: Tensor, slope: Tensor, length: float | Tensor) -> Tensor:
    """Return ``x + length · slope``."""
    if isinstance(length, Tensor):  # of times that may want a gradient
        return x + length * slope
    return torch.add(x, slope, alpha=length)  # one kernel, and no scaled copy
