"""The cell of monotone operator equilibrium networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast, final

import torch
from jaxtyping import Float
from torch import Tensor

from stabnet import InvalidOptionError
from stabnet.interfaces import Cell, Features, Guarantee, Splitting, State, Status

from .activations import ProximalActivation, proximal_activation
from .operator import BlockOperator
from .weights import CircularWeight, DenseWeight

__all__ = ["MonotoneCell"]


@final
class MonotoneCell(Cell):
    r"""One layer whose equilibrium exists, is unique, and is Lipschitz in the features.

    .. math:: f(z, u) = \sigma(W z + u), \qquad W = (1 - m) I - A^\top A + B - B^\top

    For vectors ``A`` and ``B`` are matrices; for images ``(C, H, W)`` they are convolutions with
    circular padding, and ``W`` is applied through the fast Fourier transform. Since
    :math:`I - W \succeq mI` and :math:`\sigma` is a proximal operator, every ``u`` has exactly one
    equilibrium :math:`z^*(u)`, with :math:`\|z^*(u) - z^*(u')\| \le \|u - u'\| / m`. The map itself
    need not contract: ``picard`` may diverge where ``forward_backward`` and
    ``peaceman_rachford`` converge.

    Args:
        state_shape: ``(n,)``, or ``(C, H, W)`` for images.
        feature_shape: the same, since features are added to ``Wz``.
        monotonicity: the constant ``m``, positive; at the default of one equilibria are no further
            apart than features.
        activation: ``σ`` by name (``relu``, ``leaky_relu``, ``elu``, ``hardtanh``, ``sigmoid``,
            ``softplus``, ``soft_threshold``, ``tanh``), or a :class:`ProximalActivation`, with
            which a model cannot be saved by description.
        kernel_size: for images, edge of the kernels of ``A`` and ``B``; 3 if ``None``.

    Raises:
        InvalidOptionError: for a shape, constant or kernel that cannot be, or an activation
            without proximal operator.

    References:
        Winston, Kolter: "Monotone operator equilibrium networks", 2020, section 3;
        Pabbaraju, Winston, Kolter: "Estimating Lipschitz constants of monotone deep equilibrium
        models", 2021.
    """

    def __init__(
        self,
        state_shape: Sequence[int],
        feature_shape: Sequence[int],
        monotonicity: float = 1.0,
        activation: str | ProximalActivation = "relu",
        kernel_size: int | None = None,
    ) -> None:
        super().__init__()
        self.state_shape, self.feature_shape = tuple(state_shape), tuple(feature_shape)
        self.monotonicity = monotonicity
        self.activation = proximal_activation(activation)
        self._tried = isinstance(activation, ProximalActivation)
        if not 0 < monotonicity < math.inf:
            raise InvalidOptionError(
                f"monotonicity must be positive and finite; got {monotonicity}"
            )
        if self.state_shape != self.feature_shape or len(self.state_shape) not in (1, 3):
            raise InvalidOptionError(
                "the monotone cell adds features to a state of their shape, a vector (n,) or an "
                f"image (C, H, W); got states {self.state_shape} and features {self.feature_shape}"
            )
        self.weight: DenseWeight | CircularWeight
        if len(self.state_shape) == 3:
            channels, height, width = self.state_shape
            edge = 3 if kernel_size is None else kernel_size
            self.weight = CircularWeight(channels, (height, width), edge, monotonicity)
        elif kernel_size is None:
            self.weight = DenseWeight(self.state_shape[0], monotonicity)
        else:
            raise InvalidOptionError(
                f"kernel_size={kernel_size} is for images, and states {self.state_shape} are "
                "vectors; leave it out, or choose a backbone with features (C, H, W)"
            )

    def forward(self, z: State, u: Features = None) -> Float[Tensor, "batch ..."]:
        """Evaluate ``σ(Wz + u)`` for states and features ``(batch, *state_shape)``."""
        return self.at(u)(z)

    def at(self, u: Features) -> Callable[[State], Tensor]:
        """Return the map ``z ↦ σ(Wz + u)``, with ``W`` computed once."""
        W = self.weight()
        return lambda z: self.activation(W(cast(Tensor, z)) + cast(Tensor, u))

    def split(self, u: Features) -> Splitting:
        """Return the splitting of ``z = σ(Wz + u)``; see :class:`stabnet.interfaces.SplitCell`."""
        return self._splitting(self.weight(), cast(Tensor, u), self.activation.proximal)

    def split_adjoint(
        self, z: Float[Tensor, "batch ..."], u: Features, g: Float[Tensor, "batch ..."]
    ) -> Splitting:
        """Return the splitting of ``y = D(Wᵀy + g)``; see :class:`stabnet.interfaces.SplitCell`.

        ``D`` is the derivative of the activation at ``Wz + u``. For each entry ``d`` of it the
        proximal operator at step ``α`` is ``v ↦ dv / (d + α(1 − d))``.
        """
        W = self.weight()
        d = self.activation.slope(W(z) + cast(Tensor, u))
        adjoint = self._splitting(W.adjoint(), g, lambda v, alpha: v * d / (d + alpha * (1 - d)))
        return replace(adjoint, solution=adjoint.affine)

    def _splitting(
        self, W: BlockOperator, c: Tensor, proximal: Callable[[Tensor, float], Tensor]
    ) -> Splitting:
        def resolvent(alpha: float) -> Callable[[Tensor], Tensor]:
            V = W.resolvent(alpha)
            return lambda v: V(v + alpha * c)

        def step_limit() -> float:
            # At least m, which rounding may have lost.
            norm = max(W.complement_norm(), self.monotonicity)
            return 2 * self.monotonicity / norm / norm

        return Splitting(
            affine=lambda y: W(y) + c,
            resolvent=resolvent,
            proximal=proximal,
            step_limit=step_limit,
        )

    def feature_lipschitz_bound(self) -> float:
        """Return ``1/m``, which bounds the l2 Lipschitz constant of ``u ↦ z*(u)``."""
        return 1 / self.monotonicity

    def guarantees(self) -> list[Guarantee]:
        """Return that equilibria exist, are unique, and are Lipschitz in the features."""
        assumptions = ("arithmetic is exact", "the equilibrium equation is solved exactly")
        status: Status = "by construction"
        detail = ""
        if self._tried:
            status = "conditional"
            detail = (
                "the activation was given as an object: that it does not decrease and has slopes "
                "of at most 1 was checked at sampled points only"
            )
        if not all(bool(torch.isfinite(p).all()) for p in self.parameters()):
            status, detail = "falsified", "the weights hold NaN or infinite values"
        return [
            Guarantee(
                claim="for all features the equilibrium exists and is unique",
                formula="I − W ⪰ mI, m > 0, and σ = prox_φ, φ convex",
                source="Winston, Kolter 2020, section 3",
                status=status,
                assumptions=assumptions[:1],
                detail=detail,
            ),
            Guarantee(
                claim="the equilibrium is Lipschitz in the features with constant 1/m = "
                f"{self.feature_lipschitz_bound():.6g} (of inputs it says nothing before the "
                "backbone's own constant is known)",
                formula="‖z*(u) − z*(u′)‖₂ ≤ ‖u − u′‖₂ / m",
                source="Pabbaraju, Winston, Kolter 2021, with U = I",
                status=status,
                assumptions=assumptions,
                detail=detail,
            ),
        ]
