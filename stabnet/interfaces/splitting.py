"""Splittings: fixed-point problems that come apart into an affine and a proximal part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from .solution import Features

__all__ = ["SplitCell", "SplitMap", "Splitting"]

Map: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Splitting:
    r"""A fixed-point problem :math:`y = \operatorname{prox}_{\varphi}(W y + c)`, taken apart.

    Its solution is the zero of :math:`(I - W)y - c + \partial\varphi(y)`. Where
    :math:`I - W \succeq m I`, :math:`m > 0`, that zero is unique, and forward–backward and
    Peaceman–Rachford splitting find it. All parts act on rows.

    Attributes:
        affine: ``y ↦ Wy + c``.
        resolvent: ``α ↦ (v ↦ (I + α(I − W))⁻¹(v + αc))``; factors once for each ``α``.
        proximal: ``(v, α) ↦ prox_{αφ}(v)``.
        step_limit: ``2m/‖I − W‖²`` to rounding, or less: below it forward–backward steps contract.
        solution: what the problem asked for, computed from the fixed point ``y``; ``None`` if that
            is ``y`` itself.

    References:
        Winston, Kolter: "Monotone operator equilibrium networks", 2020, section 3.3.
    """

    affine: Map
    resolvent: Callable[[float], Map]
    proximal: Callable[[Tensor, float], Tensor]
    step_limit: Callable[[], float]
    solution: Map | None = None


@runtime_checkable
class SplitCell(Protocol):
    """A cell whose equilibrium, and the adjoint equation there, come apart into splittings."""

    def split(self, u: Features) -> Splitting:
        """Return the splitting of ``z = f(z, u)``, acting on states."""
        ...

    def split_adjoint(
        self, z: Float[Tensor, "batch ..."], u: Features, g: Float[Tensor, "batch ..."]
    ) -> Splitting:
        """Return the splitting of the adjoint equation ``w = J_zᵀ w + g`` at the equilibrium.

        With ``f(z) = σ(Wz + c)`` and ``D = diag σ'(Wz + c)`` it reads ``y = D(Wᵀy + g)``, and
        ``w = Wᵀy + g`` is its ``solution``.
        """
        ...


@runtime_checkable
class SplitMap(Protocol):
    """A map for a solver, on raveled states, that a splitting method may take apart."""

    def __call__(self, z: Tensor, u: Features) -> Tensor:
        """Evaluate the map."""
        ...

    def split(self, u: Features) -> Splitting | None:
        """Return its parts for the rows of ``u``; ``None`` if the map does not come apart."""
        ...
