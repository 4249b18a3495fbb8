"""The implicit midpoint method, symplectic for every Hamiltonian field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, cast, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

import stabnet
from stabnet import ConvergenceError, InvalidInputError
from stabnet.interfaces import (
    Cell,
    Features,
    Guarantee,
    Integrator,
    RightHandSide,
    Solver,
    State,
    Trajectory,
)
from stabnet.values import number

from ._guarantees import step_guarantee

__all__ = ["ImplicitMidpoint"]

Part: TypeAlias = str | Mapping[str, Any] | nn.Module

_TIGHT = {"name": "broyden", "tolerance": 1e-14, "max_evaluations": 100}
"""As close as rounding allows: a step is as symplectic as its equation is solved.

Broyden's method finds midpoints of stiff steps, too, where Anderson acceleration goes in circles.
"""


@final
class ImplicitMidpoint(Integrator):
    r"""The implicit midpoint method, of order 2 and symplectic for every Hamiltonian field.

    .. math:: z^+ = z + h F\Bigl(t + \frac{h}{2}, \frac{z + z^+}{2}\Bigr)
              \quad\Longleftrightarrow\quad
              z^+ = 2m - z, \quad m = z + \frac{h}{2} F\Bigl(t + \frac{h}{2}, m\Bigr)

    The midpoint ``m`` is found by a solver, and differentiated implicitly. The equation is a
    contraction where :math:`h L < 2` for a field with the Lipschitz constant ``L``; longer steps
    often succeed. Its own inverse is the step of length ``-h``.

    Args:
        step_size: the longest step, positive.
        solver: finds the midpoint; Broyden's method to rounding if ``None``. Looser ones are
            faster, and symplectic to their tolerance only.

    Raises:
        InvalidOptionError: if ``step_size`` is not positive and finite.

    References:
        Hairer, Lubich, Wanner: "Geometric numerical integration", 2006, II.1 and VI.4.
    """

    def __init__(self, step_size: float = 0.1, solver: Part | None = None) -> None:
        super().__init__()
        self.step_size = number("step_size", step_size, above=0)
        self.solver: Solver = stabnet.build(_TIGHT if solver is None else solver, kind="solver")

    def forward(
        self,
        vector_field: RightHandSide,
        z0: Float[Tensor, "batch ..."],
        times: Sequence[float] | Float[Tensor, " times"],
        u: Features = None,
    ) -> Trajectory:
        """Integrate from ``times[0]`` through all later times.

        Args:
            vector_field: the right-hand side ``F(t, z, u)``, a module: gradients reach its
                parameters, ``z0`` and ``u``, and nothing else that it may refer to.
            z0: state at ``times[0]``.
            times: at least two finite, strictly monotone times, without gradient; decreasing ones
                integrate backward.
            u: features, handed to every evaluation.

        Returns:
            The states at all ``times``, and the evaluations of the field.

        Raises:
            InvalidInputError: for a field that is no module, or states or times that are not as
                described.
            ConvergenceError: if a midpoint was not found to the solver's tolerance. Under
                transforms of ``torch.func`` the states of such a sample are NaN instead; ``vmap``
                needs a solver with fixed iterations.
        """
        if not isinstance(vector_field, nn.Module):
            raise InvalidInputError(
                "implicit_midpoint differentiates implicitly and needs a vector field that is a "
                f"module, to know its parameters; got {type(vector_field).__name__}. Wrap it in "
                "a module"
            )
        if isinstance(times, Tensor) and times.requires_grad:
            raise InvalidInputError(
                "implicit_midpoint has no gradient with respect to times; pass times.detach(), or "
                "take another integrator"
            )
        if z0.ndim < 2 or not z0.is_floating_point():
            raise InvalidInputError(
                f"states are (batch, …) of floating point; got shape {tuple(z0.shape)} and dtype "
                f"{z0.dtype}. Give a single state as z[None], and whole numbers as z.double()"
            )
        z, states, nfe = z0, [z0], 0
        converged = torch.ones(len(z0), dtype=torch.bool, device=z0.device)
        for steps in stabnet.time_steps(times, self.step_size):
            for t, h in steps:
                cell = _Midpoint(vector_field, t + h / 2, h / 2, tuple(z.shape[1:]), u)
                solution = stabnet.Equilibrium(cell, self.solver)(cell.inputs(z), initial=z)
                z = 2 * cast("Tensor", solution.state) - z
                nfe += solution.nfe
                converged = converged & cast("Tensor", solution.converged)
            states.append(z)
        found = torch.stack(states)
        if torch._C._are_functorch_transforms_active():
            # What is mapped over a batch cannot be looked at.
            lost = ~converged.view(-1, *[1] * (z0.ndim - 1))
            return Trajectory(torch.where(lost, torch.nan, found), nfe)
        # One look at the end: a step may go on from a midpoint that was not found.
        if not bool(converged.all()):
            raise ConvergenceError(
                f"implicit_midpoint found no midpoint for {int((~converged).sum())} of "
                f"{len(converged)} samples with step_size={self.step_size:g}; take shorter steps "
                "(h times the field's Lipschitz constant below 2), more evaluations, or a "
                "tolerance within the rounding of the field"
                + ("" if bool(z0.isfinite().all()) else ". The states given are not all finite")
            )
        return Trajectory(found, nfe)

    def guarantees(self) -> list[Guarantee]:
        """Return that steps are symplectic for Hamiltonian fields."""
        needs = "the field is J∇H, as 'hamiltonian_field' and 'separable_hamiltonian' are"
        solved = "each midpoint is found exactly: the step is symplectic to the solver's tolerance"
        source = "[SNN] (22)–(23); Hairer, Lubich, Wanner 2006, theorem VI.4.2"
        return [step_guarantee(needs, source, solved)]

    def extra_repr(self) -> str:
        """Return the step size."""
        return f"step_size={self.step_size}"


@final
class _Midpoint(Cell):
    """The map ``m ↦ z + l F(t, m, u)``, driven by ``z`` and the features of the field."""

    def __init__(
        self,
        field: nn.Module,
        t: float | Tensor,
        length: float | Tensor,
        state_shape: tuple[int, ...],
        u: Features,
    ) -> None:
        super().__init__()
        self.field, self.t, self.length = field, t, length
        self.state_shape, self.feature_shape = state_shape, state_shape
        self.plain = isinstance(u, Tensor)
        self.rest: tuple[Tensor, ...] = () if u is None else (u,) if isinstance(u, Tensor) else u

    def inputs(self, z: Tensor) -> tuple[Tensor, ...]:
        """Return the features of the cell: the state that the step starts at, and the field's."""
        return (z, *self.rest)

    def forward(self, z: State, u: Features = None) -> State:
        assert isinstance(u, tuple)
        start, *rest = u
        features = None if not rest else rest[0] if self.plain else tuple(rest)
        return start + self.length * cast("Tensor", self.field(self.t, z, features))
