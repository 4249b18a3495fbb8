"""Explicit symplectic integrators of separable fields: symplectic_euler, leapfrog, yoshida4."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

import stabnet
from stabnet import InvalidInputError
from stabnet.interfaces import Features, Guarantee, Integrator, RightHandSide, Trajectory
from stabnet.values import number

from ..scheme import compose, is_separable, scheme_named, step
from ._guarantees import step_guarantee

__all__ = ["SymplecticIntegrator", "leapfrog", "symplectic_euler", "yoshida4"]


def symplectic_euler(step_size: float = 0.1) -> SymplecticIntegrator:
    r"""Return symplectic Euler, of order 1: a velocity and a force a step.

    .. math:: q^+ = q + h\,v(t, p), \qquad p^+ = p + h\,f(t + h, q^+)

    Args:
        step_size: the longest step.

    References:
        [SNN] (27)–(28).
    """
    return SymplecticIntegrator("symplectic_euler", step_size)


def leapfrog(step_size: float = 0.1) -> SymplecticIntegrator:
    """Return the leapfrog or Störmer–Verlet method, of order 2: a velocity and a force a step.

    Half a kick, a drift, half a kick; the halves of neighboring steps are one kick.

    Args:
        step_size: the longest step.

    References:
        Hairer, Lubich, Wanner: "Geometric numerical integration illustrated by the Störmer–Verlet
        method", 2003.
    """
    return SymplecticIntegrator("leapfrog", step_size)


def yoshida4(step_size: float = 0.1) -> SymplecticIntegrator:
    r"""Return Yoshida's method, of order 4: three velocities and three forces a step.

    Three steps of leapfrog, of lengths :math:`w_1 h, w_0 h, w_1 h` with
    :math:`w_1 = 1/(2 - 2^{1/3}) \approx 1.35` and :math:`w_0 = 1 - 2 w_1 \approx -1.70`.

    Args:
        step_size: the longest step.

    References:
        Yoshida: "Construction of higher order symplectic integrators", 1990.
    """
    return SymplecticIntegrator("yoshida4", step_size)


@final
class SymplecticIntegrator(Integrator):
    """An explicit symplectic method with steps of fixed size, for separable fields.

    Each interval between two times is cut into the smallest number of equal steps that are not
    longer than ``step_size``. With times given as numbers there is no host synchronization, and
    the method compiles and works under ``torch.func``. Times given as a tensor are read once, and
    gradients flow to them. Moves of one kind that meet between two steps are made as one.

    Args:
        scheme: name of the scheme; see :mod:`stabnet_hamiltonian.scheme`.
        step_size: the longest step, positive.

    Raises:
        InvalidOptionError: for another scheme, or a ``step_size`` that is not positive and finite.
    """

    def __init__(self, scheme: str, step_size: float) -> None:
        super().__init__()
        self.scheme, self._moves = scheme, scheme_named(scheme)
        self.step_size = number("step_size", step_size, above=0)

    def forward(
        self,
        vector_field: RightHandSide,
        z0: Float[Tensor, "batch ..."],
        times: Sequence[float] | Float[Tensor, " times"],
        u: Features = None,
    ) -> Trajectory:
        """Integrate from ``times[0]`` through all later times.

        Args:
            vector_field: a separable field (:class:`stabnet.interfaces.Separable`), such as
                ``separable_hamiltonian``, or any with methods ``velocity(t, p, u)`` and
                ``force(t, q, u)``.
            z0: states ``(q, p)`` at ``times[0]``, two halves along their first dimension.
            times: at least two finite, strictly monotone times; decreasing ones integrate
                backward.
            u: features, handed to every evaluation.

        Returns:
            The states at all ``times``, and the evaluations: a velocity and a force are one.

        Raises:
            InvalidInputError: for a field that is not separable, or states or times that are not
                as described.
        """
        if not is_separable(vector_field):
            raise InvalidInputError(
                f"{self.scheme} needs a separable field, with methods velocity(t, p, u) and "
                f"force(t, q, u), such as 'separable_hamiltonian'; {type(vector_field).__name__} "
                "has none. For any Hamiltonian field there is 'implicit_midpoint', for others "
                "'rk4'"
            )
        z, states, drifts, kicks = z0, [z0], 0, 0
        for steps in stabnet.time_steps(times, self.step_size):
            t, h = steps[0]
            scheme = compose(*[(self._moves, 1.0)] * len(steps))
            z = step(scheme, vector_field, t, z, h, u)
            states.append(z)
            drifted = sum(1 for kind, _ in scheme if kind == "drift")
            drifts, kicks = drifts + drifted, kicks + len(scheme) - drifted
        return Trajectory(torch.stack(states), nfe=max(drifts, kicks))

    def guarantees(self) -> list[Guarantee]:
        """Return that steps are symplectic for velocities and forces that are gradients."""
        needs = (
            "velocity and force are gradients in the state, and differentiable, as those of "
            "'separable_hamiltonian' are"
        )
        return [step_guarantee(needs, "[SNN] (22)–(23), (27)–(28); compositions are symplectic")]

    def extra_repr(self) -> str:
        """Return the options."""
        return f"scheme={self.scheme!r}, step_size={self.step_size}"
