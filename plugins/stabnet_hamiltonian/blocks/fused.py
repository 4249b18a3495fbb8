"""The inverse of one step together with its vector–Jacobian product, from the same evaluations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from stabnet.interfaces import Features, Separable

from ..fields.energy import LayerEnergy
from ..fields.separable_hamiltonian import SeparableHamiltonian
from ..scheme import Scheme, halves, timed
from .closed import has_closed_form, layer_gradient

__all__ = ["Pull", "added", "inverse_step_with_vjp", "linearized"]

Pull: TypeAlias = Callable[[Tensor], tuple[Tensor | None, ...]]
"""``g ↦ Jᵀg``, one gradient for each input; ``None`` for one that nothing depends on."""


def linearized(
    f: Callable[[Tensor], Tensor], x: Tensor, others: Sequence[Tensor]
) -> tuple[Tensor, Pull]:
    """Return ``f(x)``, and the vector–Jacobian product there.

    Args:
        f: a function, evaluated once.
        x: where.
        others: further tensors that ``f`` depends on, and that require a gradient.

    Returns:
        The value, without gradient; and the map from a gradient of it to those of ``x`` and of the
        others, to be called once at most.
    """
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        value = f(leaf)

    def pull(g: Tensor) -> tuple[Tensor | None, ...]:
        if not value.requires_grad:
            return (None,) * (1 + len(others))
        return torch.autograd.grad(value, (leaf, *others), g, allow_unused=True)

    return value.detach(), pull


def inverse_step_with_vjp(
    scheme: Scheme,
    field: Separable,
    t: float,
    z: Float[Tensor, "batch ..."],
    h: float,
    u: Features,
    others: Sequence[Tensor],
) -> tuple[Float[Tensor, "batch ..."], Pull]:
    r"""Return the states that a step maps to ``z``, and the vector–Jacobian product of it there.

    A kick :math:`p^+ = p + \beta f(q)` is undone by :math:`p = p^+ - \beta f(q)`, and takes
    gradients :math:`(g_q, g_p)` to :math:`(g_q + \beta f'(q)^\top g_p,\; g_p)`: with the same
    ``q``, so that one evaluation of the force serves both. Likewise a drift.

    Args:
        scheme: as given to :func:`stabnet_hamiltonian.step`.
        field: likewise.
        t: time at which the step started.
        z: the states that it returned.
        h: its length.
        u: features; leaves where gradients are wanted.
        others: features and parameters of the field that require a gradient.

    Returns:
        The states, and the map from a gradient at ``z`` to those of the states and of the others.
        Call it once at most.
    """
    with torch.no_grad():
        q, p, axis = halves(z, field)
        pulls: list[tuple[bool, float, Pull]] = []
        for kind, weight, node in reversed(timed(scheme)):
            drift = kind == "drift"
            sign, value, pull = _slope(field, drift, t + node * h, p if drift else q, u, others)
            length = sign * weight * h
            pulls.append((drift, length, pull))
            if drift:
                q = torch.sub(q, value, alpha=length)
            else:
                p = torch.sub(p, value, alpha=length)
        return torch.cat([q, p], axis), partial(_pulled, pulls, axis, len(others))


def _slope(
    field: Separable, drift: bool, t: float, x: Tensor, u: Features, others: Sequence[Tensor]
) -> tuple[int, Tensor, Pull]:
    """Return a velocity or a force up to a sign, the sign, and the vector–Jacobian product."""
    if isinstance(field, SeparableHamiltonian):
        energy = field.kinetic_potential if drift else field.potential
        if isinstance(energy, LayerEnergy) and has_closed_form(energy, x):
            return 1 if drift else -1, *layer_gradient(energy, x, others)
    evaluate = field.velocity if drift else field.force
    return 1, *linearized(lambda x: evaluate(t, x, u), x, others)


def _pulled(
    pulls: list[tuple[bool, float, Pull]], axis: int, count: int, g: Tensor
) -> tuple[Tensor | None, ...]:
    """Carry a gradient back through all moves, the last of which is the first in the list."""
    g_q, g_p = g.chunk(2, axis)
    found: list[Tensor | None] = [None] * count
    for drift, length, pull in pulls:
        towards, *others = pull(length * (g_q if drift else g_p))
        if drift:
            g_p = added(g_p, towards)
        else:
            g_q = added(g_q, towards)
        found = [b if a is None else added(a, b) for a, b in zip(found, others, strict=True)]
    return torch.cat([g_q, g_p], axis), *found


def added(a: Tensor, b: Tensor | None) -> Tensor:
    """Return a sum in which nothing counts as zero."""
    return a if b is None else a + b
