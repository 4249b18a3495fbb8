"""Tiny parts of the kit's own: what objectives, attacks, integrators and solvers are tried on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..equilibrium import Equilibrium
from ..flow import Flow
from ..interfaces import (
    Backbone,
    Cell,
    Context,
    Descent,
    Dynamics,
    Features,
    FixedPointMap,
    Integrator,
    Potential,
    RightHandSide,
    Solver,
    SolverResult,
    Splitting,
    State,
    Trajectory,
    VectorField,
    lift_features,
)
from ..model import StabilityModel

__all__ = [
    "CLASSES",
    "IMAGE",
    "AffineMap",
    "Oscillator",
    "contraction",
    "stand_in_model",
    "stand_in_system",
]

IMAGE = (1, 4, 4)
"""Shape of the stand-in model's images."""

CLASSES = 3
_SIZE = 4


@final
class _OscillatorEnergy(Potential):
    """The energy ``p² + u² q²`` of harmonic oscillators."""

    state_shape, convex = (_SIZE,), True

    def forward(self, z: Tensor, context: Context | None = None) -> Tensor:
        assert context is not None
        assert context.features is not None
        q, p = z.chunk(2, -1)
        return (p.square() + (lift_features(context.features, z, 1) * q).square()).sum(-1)


@final
class Oscillator(VectorField):
    """Harmonic oscillators ``q' = p, p' = −u² q``; the state is ``(q, p)``, one after the other.

    Separable, so that symplectic integrators can be tried on it too; and its energy never rises,
    for integrators that need a field which descends a potential.
    """

    state_shape, feature_shape = (_SIZE,), (_SIZE // 2,)
    alpha = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.potential = _OscillatorEnergy()

    def context(self, u: Features = None) -> Context:
        """Return what the energy is evaluated with."""
        assert isinstance(u, Tensor)
        return Context(features=u, center=u.new_zeros(self.state_shape))

    def descent(self, t: float | Tensor, z: Tensor, u: Features = None) -> Descent:
        """Return velocity, energy, and zero, the rate of the energy."""
        value = self.potential(z, self.context(u))
        return Descent(self(t, z, u), value, torch.zeros_like(value))

    def forward(self, t: float | Tensor, z: Tensor, u: Features = None) -> Tensor:
        """Return ``(p, −u² q)``."""
        q, p = z.chunk(2, -1)
        return torch.cat([self.velocity(t, p, u), self.force(t, q, u)], -1)

    def velocity(self, t: float | Tensor, p: Tensor, u: Features = None) -> Tensor:
        """Return ``p``."""
        return p

    def force(self, t: float | Tensor, q: Tensor, u: Features = None) -> Tensor:
        """Return ``−u² q``."""
        assert isinstance(u, Tensor)
        return -(u**2) * q

    def exact(self, t: float, z: Float[Tensor, "batch 4"], u: Float[Tensor, "batch 2"]) -> Tensor:
        """Return the state a time ``t`` after ``z``."""
        q, p = z.chunk(2, -1)
        cosine, sine = (u * t).cos(), (u * t).sin()
        return torch.cat([cosine * q + sine * p / u, cosine * p - sine * u * q], -1)


def contraction(size: int, like: Tensor) -> Float[Tensor, "size size"]:
    """Return a fixed matrix ``A`` with ``‖A‖₂ = 1/2``, neither symmetric nor normal."""
    entries = torch.randn(size, size, generator=torch.Generator().manual_seed(7)).double()
    norm: Tensor = torch.linalg.matrix_norm(entries, 2)
    return (entries / (2 * norm)).to(like)


@dataclass
class AffineMap:
    """The contraction ``z ↦ Az + u`` by one half, for solvers of any map and for splitting ones.

    Attributes:
        matrix: ``A``.
        f: evaluated instead of ``Az + u``, where samples are to be spoiled.
        calls: applications of ``f``, and of resolvents.
    """

    matrix: Float[Tensor, "n n"]
    f: Callable[[Tensor, Tensor], Tensor] | None = None
    calls: int = 0

    def __call__(self, z: Tensor, u: Features) -> Tensor:
        """Evaluate the map."""
        assert isinstance(u, Tensor)
        self.calls += 1
        image: Tensor = z @ self.matrix.T + u if self.f is None else self.f(z, u)
        return image

    def split(self, u: Features) -> Splitting:
        """Return the map's parts: ``I − A ⪰ I/2`` and ``‖I − A‖ ≤ 3/2``."""
        assert isinstance(u, Tensor)
        identity = torch.eye(len(self.matrix)).to(u)

        def resolvent(step: float) -> Callable[[Tensor], Tensor]:
            inverse = torch.linalg.inv(identity + step * (identity - self.matrix))

            def apply(v: Tensor) -> Tensor:
                self.calls += 1
                found: Tensor = (v + step * u) @ inverse.T
                return found

            return apply

        return Splitting(lambda y: self(y, u), resolvent, lambda v, step: v, lambda: 1 / 1.5**2)


@final
class _Backbone(Backbone):
    in_shape, out_shape = IMAGE, (_SIZE,)

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, _SIZE)

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        return torch.tanh(self.linear(x.flatten(1)))


@final
class _Cell(Cell):
    state_shape, feature_shape = (_SIZE,), (_SIZE,)

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(contraction(_SIZE, torch.zeros(())))

    def forward(self, z: State, u: Features = None) -> Tensor:
        assert isinstance(z, Tensor)
        assert isinstance(u, Tensor)
        return torch.tanh(z @ self.weight.T + u)


@final
class _Field(VectorField):
    state_shape, feature_shape = (_SIZE,), (_SIZE,)

    def __init__(self) -> None:
        super().__init__()
        self.cell = _Cell()

    def forward(self, t: float | Tensor, z: Tensor, u: Features = None) -> Tensor:
        assert isinstance(u, Tensor)
        image: Tensor = self.cell(z, u if z.ndim == 2 else u.unsqueeze(1))
        return image - z


@final
class _Picard(Solver):
    def forward(
        self, f: FixedPointMap, z0: Float[Tensor, "batch n"], u: Features = None
    ) -> SolverResult:
        z = z0
        for _ in range(50):
            z = f(z, u)
        difference = torch.linalg.vector_norm(f(z, u) - z, dim=-1)
        return SolverResult(z, difference, difference < 1e-4, 51)


@final
class _Euler(Integrator):
    def forward(
        self,
        vector_field: RightHandSide,
        z0: Float[Tensor, "batch ..."],
        times: object,
        u: Features = None,
    ) -> Trajectory:
        points = torch.as_tensor(times, dtype=torch.float64).tolist()
        states, nfe = [z0], 0
        for start, end in pairwise(points):
            h, z = (end - start) / 4, states[-1]
            for k in range(4):
                z = z + h * vector_field(start + k * h, z, u)
            states.append(z)
            nfe += 4
        return Trajectory(torch.stack(states), nfe)


def stand_in_model(dynamics: Literal["any", "flow", "equilibrium"] = "any") -> StabilityModel:
    """Return a tiny classifier of images ``(1, 4, 4)``; an equilibrium unless a flow is wanted."""
    inner: Dynamics = (
        Flow(_Field(), _Euler()) if dynamics == "flow" else Equilibrium(_Cell(), _Picard())
    )
    return StabilityModel(IMAGE, CLASSES, _Backbone(), inner, nn.Linear(_SIZE, CLASSES))


@final
class _States(Backbone):
    """The states themselves."""

    in_shape, out_shape = (CLASSES,), (CLASSES,)

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        return x


@final
class _Autonomous(VectorField):
    state_shape, feature_shape = (CLASSES,), ()

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(contraction(CLASSES, torch.zeros(())))

    def forward(self, t: float | Tensor, z: Tensor, u: Features = None) -> Tensor:
        return torch.tanh(z @ self.weight.T) - z


def stand_in_system() -> StabilityModel:
    """Return a tiny system of states ``(3,)``, which are its inputs and its outputs."""
    flow = Flow(_Autonomous(), _Euler(), "features")
    return StabilityModel((CLASSES,), CLASSES, _States(), flow, nn.Identity())
