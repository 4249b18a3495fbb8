"""The cell of the IBP-MonDEQ, whose equilibria have sound boxes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stabnet import Equilibrium, InvalidInputError, InvalidOptionError
from stabnet.bounds import NoBoundError, check_box
from stabnet.interfaces import Cell, Features, Guarantee, State, Status

from ..solvers.picard import Picard
from .activations import monotone_activation
from .enclosure import enclose_equilibrium
from .interval_cell import IntervalCell

__all__ = ["IBPMonotoneCell"]

_SMALLEST, _LARGEST = 2.0**-500, 2.0**500
"""Sizes of weights between which nothing over- or underflows in float64 on the way to ``W``."""


@final
class IBPMonotoneCell(Cell):
    r"""A layer with dominated weights: unique equilibria, and boxes that contain them.

    .. math:: f(z, u) = \sigma(W z + u), \qquad W = D^{-1/2} M D^{-1/2}, \qquad
              D = \operatorname{diag} \frac{|M| 1 + |M|^\top 1}{2 (1 - m)}

    with :math:`M` free and :math:`m` the monotonicity. **The constraint.** Let :math:`S` be the
    symmetric part of :math:`|M|`. Then :math:`D = \operatorname{diag}(S 1)/(1-m)`, and
    :math:`D^{-1/2} S D^{-1/2}` is similar to :math:`(1-m) \operatorname{diag}(S1)^{-1} S`, that is
    :math:`1-m` times a row-stochastic matrix. So the symmetric part of :math:`|W|` is at most
    :math:`(1-m) I`, and with :math:`x^\top W x \le |x|^\top |W| |x|` also

    .. math:: I - W \succeq m I, \qquad I - |W| \succeq m I, \qquad \rho(|W|) \le 1 - m ,

    the last because the spectral radius of a non-negative matrix is an eigenvalue with a real
    eigenvector. **Equilibria.** As :math:`\sigma` is 1-Lipschitz, :math:`|f(z, u) - f(z', u)| \le
    |W|\,|z - z'|`, so plain iteration of :math:`f` converges from any start, at the rate
    :math:`1-m` in the end, to the only fixed point; no smaller step is needed, and the activation
    need not be the proximal operator of a known function.

    A row of ``M`` that is zero together with its column leaves that entry of the state uncoupled.
    ``W`` does not change when ``M`` is scaled, so the size of its initial values acts on the speed
    of training alone.

    Args:
        state_shape: ``(n,)``.
        feature_shape: the same, since features are added to the state.
        monotonicity: ``m``, in (0, 1); the smaller, the stronger the feedback may be.
        activation: σ, non-decreasing and 1-Lipschitz: ``"relu"``, ``"leaky_relu"`` or ``"tanh"``.

    Raises:
        InvalidOptionError: for states that are not vectors, features of another shape, a
            monotonicity out of range or an activation that is not monotone.

    References:
        Wei, Kolter: "Certified robustness for deep equilibrium models via interval bound
        propagation", 2022.
    """

    state_shape: tuple[int, ...]

    def __init__(
        self,
        state_shape: Sequence[int],
        feature_shape: Sequence[int],
        monotonicity: float = 0.5,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        self.state_shape, self.feature_shape = tuple(state_shape), tuple(feature_shape)
        if len(self.state_shape) != 1 or self.state_shape != self.feature_shape:
            raise InvalidOptionError(
                f"the ibp_monotone cell adds features to a state vector: both need one shape (n,); "
                f"got states {self.state_shape} and features {self.feature_shape}. Choose a "
                "backbone with vector features, such as 'linear'"
            )
        if not 0 < monotonicity < 1:
            raise InvalidOptionError(f"monotonicity must be in (0, 1); got {monotonicity}")
        self.monotonicity = monotonicity
        self.activation = activation
        self.sigma: Callable[[Tensor], Tensor] = monotone_activation(activation)
        (n,) = self.state_shape
        self.M = nn.Parameter(torch.randn(n, n) / n**0.5)

    def weight(self, dtype: torch.dtype | None = None) -> Float[Tensor, "n n"]:
        """Return ``W``, computed in the parameters' precision or in another."""
        M = self.M.to(dtype or self.M.dtype)
        magnitude = M.abs()
        d = (magnitude.sum(0) + magnitude.sum(1)) / (2 * (1 - self.monotonicity))
        # Where d is zero, so are the row and the column, which any finite factor leaves so.
        scale = torch.where(d > 0, d, 1).rsqrt()
        return scale[:, None] * M * scale

    def forward(self, z: State, u: Features = None) -> Float[Tensor, "batch n"]:
        """Evaluate ``f(z, u)`` for states and features ``(batch, n)``."""
        image: Tensor = self.at(u)(z)  # type: ignore[assignment]
        return image

    def at(self, u: Features) -> Callable[[State], State]:
        """Return ``z ↦ f(z, u)``, with ``W`` computed once."""
        weight, sigma = self.weight(), self.sigma

        def f(z: State) -> Tensor:
            assert isinstance(z, Tensor)
            assert isinstance(u, Tensor)
            return sigma(torch.addmm(u, z, weight.T))

        return f

    def equilibrium_interval(
        self,
        lower: Float[Tensor, "batch n"],
        upper: Float[Tensor, "batch n"],
        *,
        sound: bool = False,
        tolerance: float | None = None,
        max_evaluations: int | None = None,
    ) -> tuple[Float[Tensor, "batch n"], Float[Tensor, "batch n"]]:
        r"""Return a box per sample that contains the equilibria of all features in a box.

        The interval extension :math:`T` of ``f`` (see :class:`IntervalCell`) has one fixed box. It
        contains the equilibrium of every :math:`u` in ``[lower, upper]``, but its iterates need
        not: ``sound`` widens the last one, and checks in rounded arithmetic that the result holds;
        see :func:`enclose_equilibrium`.

        Args:
            lower: lower bounds of the features.
            upper: upper bounds, nowhere below ``lower``.
            sound: return a proven box, in float64 and without gradients, whatever the precision of
                the parameters and however early the iteration stops. Otherwise return the fixed
                box to the tolerance, in the features' precision and differentiable implicitly, for
                training.
            tolerance: relative change at which the iteration stops; 1e-4 for training and 1e-9 for
                sound boxes if ``None``. A sound box is the tighter the smaller it is.
            max_evaluations: evaluations of ``T`` at most. If ``None``, 50 before a box is widened,
                and for training as many as the tolerance can need.

        Returns:
            Lower and upper bounds of the equilibria. A row that no box could be proven for (one
            with infinite features, say, or all if ``M`` is not finite) is ``(-inf, inf)``.

        Raises:
            InvalidInputError: for bounds of another shape, NaN, or a lower bound above its upper.
            NoBoundError: for a sound box, if an entry of ``M`` is not 0 and its size is outside
                2^±500.
        """
        self._check(lower, upper)
        if sound:
            return enclose_equilibrium(
                self._weight_to_bound(),
                self.sigma,
                lower.detach().double(),
                upper.detach().double(),
                1e-9 if tolerance is None else tolerance,
                50 if max_evaluations is None else max_evaluations,
            )
        tolerance = 1e-4 if tolerance is None else tolerance
        if max_evaluations is None:
            max_evaluations = self._enough_evaluations(tolerance)
        solver = Picard(tolerance, max_evaluations)
        box = Equilibrium(IntervalCell(self), solver)((lower, upper)).state
        assert isinstance(box, tuple)
        return box[0], box[1]

    def guarantees(self) -> list[Guarantee]:
        """Return what the parametrization guarantees."""
        source = 'Wei, Kolter: "Certified robustness for deep equilibrium models…", 2022'
        status: Status = "by construction"
        detail = ""
        if not bool(torch.isfinite(self.M).all()):
            status, detail = "falsified", "the weights hold NaN or infinite values"
        return [
            Guarantee(
                claim="every input has exactly one equilibrium, and plain iteration converges to "
                "it from any state",
                formula="I − |W| ⪰ mI, so |f(z) − f(z′)| ≤ |W||z − z′| with ρ(|W|) ≤ 1 − m",
                source=source,
                status=status,
                assumptions=("arithmetic is exact",),
                detail=detail,
            ),
            Guarantee(
                claim="the equilibria of all features in a box lie in the box that "
                "equilibrium_interval returns with sound=True (without it, in training, to the "
                "tolerance of the solve only)",
                formula="T(box) ⊆ box",
                source=source,
                status="verified",
                detail="the inclusion is checked in float64 with rounding margins, each time that "
                "a sound box is computed; a row where the check fails is returned as (−inf, inf)",
                assumptions=("exact evaluation of f at the given parameters",),
            ),
        ]

    def extra_repr(self) -> str:
        """Return the options."""
        return (
            f"{self.state_shape[0]}, monotonicity={self.monotonicity}, "
            f"activation={self.activation!r}"
        )

    def _weight_to_bound(self) -> Float[Tensor, "n n"]:
        """Return ``W`` in float64, each entry right to the roundings that the enclosure allows."""
        size = self.M.detach().double().abs()
        # Of NaN and infinity nothing is proven anyhow.
        strange = ((size > 0) & (size < _SMALLEST)) | (size.isfinite() & (size > _LARGEST))
        if bool(strange.any()):
            raise NoBoundError(
                f"{int(strange.sum())} entries of M are other than 0 and of a size outside 2^±500, "
                "so that W is not computed to a known precision; set the small ones to 0, or scale "
                "M, on which W does not depend"
            )
        return self.weight(torch.float64).detach()

    def _enough_evaluations(self, tolerance: float) -> int:
        """Return how many evaluations of ``T`` from zero bring any residual below a tolerance.

        The numerical radius of ``|W|`` is at most ``1 − m``, so that by Berger's inequality
        ``‖|W|ᵏ‖ ≤ 2(1 − m)ᵏ``, and the relative residual after ``k`` steps is below 12 (1 − m)ᵏ.
        """
        finest = max(tolerance, torch.finfo(torch.float64).eps)
        return math.ceil(math.log(finest / 12) / math.log1p(-self.monotonicity)) + 1

    def _check(self, lower: Tensor, upper: Tensor) -> None:
        if lower.shape != upper.shape or tuple(lower.shape[1:]) != self.feature_shape:
            raise InvalidInputError(
                f"bounds have shapes {tuple(lower.shape)} and {tuple(upper.shape)}; both are "
                f"(batch, {self.feature_shape[0]})"
            )
        check_box(lower, upper, finite=False)
