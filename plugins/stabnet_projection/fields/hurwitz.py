"""Linear fields whose matrix has all its eigenvalues in the left half plane."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stabnet import InvalidOptionError
from stabnet.interfaces import (
    Context,
    Descent,
    Features,
    Guarantee,
    VectorField,
    check_field_state,
    driving_features,
)
from stabnet.values import number, shape

from ..center import center_of, offset_from
from ..potentials.quadratic import Quadratic
from .descent import descent_guarantees, field_context
from .equilibrium import CenterOption, split_center
from .lyapunov import solve_lyapunov

__all__ = ["HurwitzField"]

_TOLERANCE = 1e-8
"""Relative error of factors in float64 beyond which they are refused."""


@final
class HurwitzField(VectorField):
    r"""A linear field whose matrix is Hurwitz for every value of its parameters.

    .. math:: F(z) = A(z - c), \qquad A = (J - R)P - \rho I, \qquad
              J = S - S^\top, \quad R = C^\top C, \quad P = I + L^\top L.

    Every such ``A`` has its eigenvalues in :math:`\operatorname{Re} \lambda \le -\rho`: the
    quadratic form :math:`V = (z - c)^\top P (z - c)` decays at rate :math:`2\rho` at least,

    .. math:: \dot V = -2\,\|C P (z - c)\|^2 - 2\rho V.

    Every matrix with eigenvalues in :math:`\operatorname{Re} \lambda < -\rho` is such an ``A``:
    :math:`B = A + \rho I` solves :math:`B^\top P + P B = -Q` with some :math:`P, Q \succ 0`, both
    scaled until :math:`P \succeq I`. Then :math:`B P^{-1} = J - R` with the symmetric part
    :math:`-R = -P^{-1} Q P^{-1} / 2 \preceq 0`.

    The parameters are the plain matrices ``S`` and ``C``, and ``L`` of the potential: no
    exponentials, no eigenvalues, and the state is multiplied by six matrices in turn.

    Args:
        state_shape: shape of one state; ``n`` is its number of entries.
        feature_shape: shape of one input's features, with ``center="features"`` only.
        rate: the rate ``ρ > 0``.
        center: the equilibrium: a point, ``None`` for the origin, or ``"features"`` for each
            sample's features, which are then states.
        matrix: the matrix ``A`` to begin with, ``n`` rows of ``n`` numbers; see :meth:`fit`. A
            random one if ``None``.

    Attributes:
        potential: ``V``.
        alpha: its rate, ``2ρ``.

    Raises:
        InvalidOptionError: for a rate that is not positive, features that are no center, or a
            matrix whose eigenvalues do not lie in ``Re λ < −ρ``.

    References:
        Gillis and Sharma, "On computing the distance to stability for matrices using linear
        dissipative Hamiltonian systems", 2017, for (J − R)P; Khalil, "Nonlinear systems", 2002,
        theorem 4.6, for Lyapunov's equation.
    """

    def __init__(
        self,
        state_shape: Sequence[int],
        feature_shape: Sequence[int] | None = None,
        rate: float = 0.01,
        center: CenterOption = None,
        matrix: Sequence[Sequence[float]] | None = None,
    ) -> None:
        super().__init__()
        self.state_shape = shape("state_shape", state_shape)
        self.feature_shape = tuple(feature_shape or ())
        self.rate = number("rate", rate, above=0)
        self.alpha = 2 * self.rate
        self.center, at = split_center(center, self.state_shape, self.feature_shape)
        if self.feature_shape and self.center != "features":
            raise InvalidOptionError(
                f"a linear field depends on features as its center alone; got feature_shape="
                f"{self.feature_shape}. Choose center='features', or feature_shape=None"
            )
        self.potential = Quadratic(self.state_shape, 1.0, at)
        n = math.prod(self.state_shape)
        self.turning = nn.Parameter(torch.empty(n, n).uniform_(-1, 1) / math.sqrt(n))
        self.damping = nn.Parameter(torch.eye(n))
        if matrix is not None:
            self.fit(matrix)

    def forward(
        self, t: float | Tensor, z: Float[Tensor, "..."], u: Features = None
    ) -> Float[Tensor, "..."]:
        """Evaluate the field; see :class:`stabnet.interfaces.VectorField`."""
        return self.descent(t, z, u).velocity

    def context(self, u: Features = None) -> Context:
        """Return what the potential is evaluated with; see :class:`stabnet.interfaces.Descends`."""
        return field_context(self.potential, self.center, driving_features(u, self.feature_shape))

    def descent(self, t: float | Tensor, z: Tensor, u: Features = None) -> Descent:
        r"""Evaluate the field, ``V`` and :math:`\dot V = -2\|CP(z - c)\|^2 - 2\rho V`.

        Autocast is switched off: its rounding of the products could outweigh ``ρ``.

        Args:
            t: time, which the field does not depend on.
            z: states, as in :meth:`forward`; also a single state without a batch.
            u: features; those of an autonomous field are ignored.
        """
        check_field_state(z, self.state_shape)
        context, ndim = self.context(u), len(self.state_shape)
        with torch.autocast(z.device.type, enabled=False):
            S, C = self.turning, self.damping
            z = z.to(torch.promote_types(z.dtype, S.dtype))
            x, _ = offset_from(center_of(self.potential, context), z, ndim)
            value, gradient = self.potential.value_and_gradient(z, context)
            y = gradient.flatten(-ndim) / 2  # P(z − c)
            damped = F.linear(y, C)
            flat = F.linear(y, S) - y @ S - damped @ C - self.rate * x
            rate = -2 * damped.square().sum(-1) - self.alpha * value
            return Descent(flat.unflatten(-1, self.state_shape), value, rate)

    @property
    def matrix(self) -> Float[Tensor, "n n"]:
        """The matrix ``A``, differentiable in the parameters."""
        S, C = self.turning, self.damping
        identity = torch.eye(len(S), dtype=S.dtype, device=S.device)
        return (S - S.mT - C.mT @ C) @ self.potential.P - self.rate * identity

    @torch.no_grad()
    def fit(self, matrix: Sequence[Sequence[float]] | Float[Tensor, "n n"]) -> None:
        """Set the parameters so that the matrix of the field is a given one.

        It is, up to the rounding of the parameters' precision times the condition number of ``P``,
        which cannot be small for a matrix far from normal.

        Args:
            matrix: the matrix ``A``, with all eigenvalues in ``Re λ < −ρ``.

        Raises:
            InvalidOptionError: for any other, with its spectral abscissa; or for one that float64
                has no such factors of.
        """
        n = len(self.turning)
        A = _square(matrix, n).to(self.turning.device)
        eye = torch.eye(n, dtype=A.dtype, device=A.device)
        abscissa = float(torch.linalg.eigvals(A).real.max())
        if not abscissa < -self.rate:
            raise InvalidOptionError(
                f"the matrix has the spectral abscissa {abscissa:.6g}, which is not below −rate = "
                f"{-self.rate:g}. Give one with all eigenvalues in Re λ < {-self.rate:g}; "
                "for a Hurwitz one a smaller rate will do"
            )
        B = A + self.rate * eye
        P = _metric(B)
        mixed = torch.linalg.solve_ex(P, B.mT).result.mT  # J − R
        S, C = (mixed - mixed.mT) / 4, _root(-(mixed + mixed.mT) / 2)
        L = _root(P - eye)
        found = (S - S.mT - C.mT @ C) @ (eye + L.mT @ L) - self.rate * eye
        error = float((found - A).norm() / A.norm())
        if not error <= _TOLERANCE:
            raise InvalidOptionError(
                f"the matrix, of spectral abscissa {abscissa:.6g}, is too close to unstable ones "
                f"for −rate = {-self.rate:g}: in float64 its factors multiply to it with a "
                f"relative error of {error:.2g}. Give a matrix nearer to a normal one, or with "
                "eigenvalues further to the left"
            )
        for parameter, value in (
            (self.turning, S),
            (self.damping, C),
            (self.potential.factor, L),
        ):
            parameter.copy_(value)

    def guarantees(self) -> list[Guarantee]:
        """Return the decay of the potential, and of the distance between trajectories."""
        rate = f"{self.rate:g}"
        return [
            *descent_guarantees(
                self.potential, self.alpha, source="Gillis & Sharma 2017; Lyapunov's theorem"
            ),
            Guarantee(
                claim="two trajectories of the field with the same features approach each other "
                "exponentially, in the state (this says nothing of perturbed inputs)",
                formula=f"‖z(t) − z′(t)‖_P ≤ e^(−{rate} t) ‖z(0) − z′(0)‖_P, ‖x‖_P² = xᵀPx",
                source="the difference of two trajectories of a linear field is one of A",
                status="by construction",
                assumptions=("exact arithmetic, up to rounding", "the flow is exact"),
            ),
        ]

    def extra_repr(self) -> str:
        """Return the rate, and whether the center is the features."""
        return f"rate={self.rate}" + (", center='features'" if self.center == "features" else "")


def _square(matrix: Any, n: int) -> Float[Tensor, "n n"]:
    """Return a square matrix in float64.

    Raises:
        InvalidOptionError: unless it is one of finite numbers, of size ``n``.
    """
    try:
        given = torch.as_tensor(matrix, dtype=torch.float64).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidOptionError(f"matrix must be {n} rows of {n} numbers") from error
    if given.shape != (n, n) or not bool(given.isfinite().all()):
        raise InvalidOptionError(
            f"matrix must be {n} rows of {n} finite numbers, one per entry of a state; got "
            f"{given.tolist()!r}"
        )
    return given


def _metric(matrix: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    r"""Return a solution of :math:`B^\top P + P B \preceq 0` with least eigenvalue 2.

    The better conditioned of two is taken: of Lyapunov's equation, which is singular where an
    eigenvalue nears the imaginary axis, and of the eigenvectors, :math:`V^{-H} V^{-1}`, which are
    where two of them meet.
    """
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    dual = torch.linalg.inv_ex(torch.linalg.eig(matrix).eigenvectors).inverse
    best, condition = identity, math.inf
    for P in (solve_lyapunov(matrix, identity), (dual.mH @ dual).real):
        if bool(P.isfinite().all()):
            spectrum = torch.linalg.eigvalsh(P)
            ratio = float(spectrum[-1] / spectrum[0])
            if spectrum[0] > 0 and ratio < condition:
                best, condition = P * (2 / spectrum[0]), ratio
    return best


def _root(matrix: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """Return the symmetric square root of a positive semidefinite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = (vectors * values.clamp_min(0).sqrt()) @ vectors.mT
    return root
