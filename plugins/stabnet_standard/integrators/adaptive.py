"""Runge–Kutta methods that choose their steps, through torchdiffeq: dopri5, dopri8, and others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import final

import torch
import torch.utils._pytree as pytree
import torchdiffeq
from jaxtyping import Float
from torch import Tensor, nn

import stabnet
from stabnet.interfaces import Features, Integrator, RightHandSide, Trajectory

from .._checks import nonnegative, positive, positive_int

__all__ = ["AdaptiveRungeKutta", "adaptive_heun", "bosh3", "dopri5", "dopri8"]


def dopri5(
    rtol: float = 1e-4, atol: float = 1e-5, adjoint: bool = False, max_steps: int = 10_000
) -> AdaptiveRungeKutta:
    """Return the method of Dormand and Prince of order 5(4); the options are the class's.

    References:
        Dormand and Prince, "A family of embedded Runge–Kutta formulae", 1980.
    """
    return AdaptiveRungeKutta("dopri5", rtol, atol, adjoint, max_steps)


def dopri8(
    rtol: float = 1e-4, atol: float = 1e-5, adjoint: bool = False, max_steps: int = 10_000
) -> AdaptiveRungeKutta:
    """Return the method of Dormand and Prince of order 8, for tight tolerances in float64.

    References:
        Prince and Dormand, "High order embedded Runge–Kutta formulae", 1981.
    """
    return AdaptiveRungeKutta("dopri8", rtol, atol, adjoint, max_steps)


def bosh3(
    rtol: float = 1e-4, atol: float = 1e-5, adjoint: bool = False, max_steps: int = 10_000
) -> AdaptiveRungeKutta:
    """Return the method of Bogacki and Shampine of order 3(2), for loose tolerances.

    References:
        Bogacki and Shampine, "A 3(2) pair of Runge–Kutta formulas", 1989.
    """
    return AdaptiveRungeKutta("bosh3", rtol, atol, adjoint, max_steps)


def adaptive_heun(
    rtol: float = 1e-4, atol: float = 1e-5, adjoint: bool = False, max_steps: int = 10_000
) -> AdaptiveRungeKutta:
    """Return Heun's method of order 2(1), for fields with little smoothness."""
    return AdaptiveRungeKutta("adaptive_heun", rtol, atol, adjoint, max_steps)


@final
class AdaptiveRungeKutta(Integrator):
    r"""An explicit Runge–Kutta method that chooses its steps by an estimate of their error.

    A step from :math:`z` to :math:`z^+` with error estimate :math:`e` is accepted if for every
    sample the root mean square of :math:`e / (\mathrm{atol} + \mathrm{rtol} \max(|z|, |z^+|))` is
    at most 1. The steps are shared by the batch, and end exactly at the requested times. Gradients
    hold the step sizes fixed. The number of steps depends on the data, so this neither compiles as
    one graph nor works under ``torch.func``; the fixed-step methods do.

    Args:
        method: torchdiffeq's name of the method.
        rtol: relative tolerance per step, positive.
        atol: absolute tolerance per step, at least 0.
        adjoint: compute gradients by the adjoint method: constant memory, first derivatives only,
            exact up to the tolerances. The vector field must be a module; gradients reach its
            parameters, ``z0``, ``u`` and the times, and nothing else that it may refer to.
        max_steps: steps between two times after which the integration gives up.

    Raises:
        InvalidOptionError: if a tolerance or ``max_steps`` is out of range.

    References:
        torchdiffeq; Chen et al., "Neural ordinary differential equations", appendix B and C.
    """

    def __init__(
        self, method: str, rtol: float, atol: float, adjoint: bool, max_steps: int
    ) -> None:
        super().__init__()
        self.method = method
        self.rtol = positive("rtol", rtol)
        self.atol = nonnegative("atol", atol)
        self.adjoint = adjoint
        self.max_steps = positive_int("max_steps", max_steps)

    def forward(
        self,
        vector_field: RightHandSide,
        z0: Float[Tensor, "batch ..."],
        times: Sequence[float] | Float[Tensor, " times"],
        u: Features = None,
    ) -> Trajectory:
        """Integrate from ``times[0]`` through all later times.

        Args:
            vector_field: the right-hand side ``F(t, z, u)``.
            z0: state at ``times[0]``.
            times: at least two finite, strictly monotone times; decreasing ones integrate
                backward.
            u: features, handed to every evaluation.

        Returns:
            The states at all ``times``, and the number of evaluations in this forward pass,
            those of rejected steps included.

        Raises:
            InvalidInputError: if ``times`` are not as described, or the adjoint method is given a
                vector field that is not a module.
            ConvergenceError: if the steps underflow, the state turns non-finite, or ``max_steps``
                do not suffice.
        """
        values = stabnet.checked_times(times)
        direction = 1.0 if values[0] < values[-1] else -1.0
        s = direction * torch.as_tensor(times, dtype=torch.float64, device=z0.device)
        field, leaves = vector_field, None
        if self.adjoint:
            field, u, leaves = _aliased(vector_field, z0.device.type, u)
        nfe = 0

        def reparametrized(s: Tensor, z: Tensor) -> Tensor:
            # In s = ±t time increases, which torchdiffeq's own reversal does not ensure for the
            # stops of the backward pass.
            nonlocal nfe
            nfe += 1
            return direction * field(direction * s, z, u).to(z.dtype)

        states = self._solve(reparametrized, z0, s, leaves)
        return Trajectory(states, nfe)

    def _solve(
        self,
        f: Callable[[Tensor, Tensor], Tensor],
        z0: Float[Tensor, "batch ..."],
        s: Float[Tensor, " times"],
        leaves: tuple[Tensor, ...] | None,
    ) -> Float[Tensor, "times batch ..."]:
        """Solve for increasing times; with the adjoint method, if its ``leaves`` are given."""
        solve = torchdiffeq.odeint
        if leaves is not None:
            solve = partial(torchdiffeq.odeint_adjoint, adjoint_params=leaves)
        options = {"norm": _largest_rms, "step_t": s.detach(), "max_num_steps": self.max_steps}
        tolerances = {"rtol": self.rtol, "atol": self.atol}
        try:
            states: Tensor = solve(f, z0, s, method=self.method, options=options, **tolerances)
        except AssertionError as error:
            reason = next((r for m, r in _FAILURES.items() if str(error).startswith(m)), None)
            if reason is None:
                raise
            raise stabnet.ConvergenceError(
                f"{self.method} gave up with rtol={self.rtol:g}, atol={self.atol:g}, "
                f"max_steps={self.max_steps}: {reason}. The field is stiff or unbounded, or not "
                "finite: check it, loosen the tolerances (float32 does not reach below about "
                "1e-6), raise max_steps, or take a fixed-step method such as rk4"
            ) from error
        return states


_FAILURES = {
    "underflow in dt": "the step size underflows",
    "non-finite values": "the state turns non-finite",
    "max_num_steps": "that many steps do not suffice",
}
"""What it means that an assertion of torchdiffeq with such a message fails."""


@torch.no_grad()
def _largest_rms(z: Float[Tensor, "batch ..."]) -> Float[Tensor, ""]:
    """Return the largest root mean square over the samples.

    torchdiffeq's own norm averages over the batch, so that many easy samples hide the error of a
    hard one.
    """
    return z.reshape(len(z), -1).square().mean(dim=1).sqrt().amax()


def _aliased(
    vector_field: RightHandSide, device: str, u: Features
) -> tuple[RightHandSide, Features, tuple[Tensor, ...]]:
    """Return the field on aliases of its parameters, aliases of the features, and all of them.

    The adjoint method differentiates the field in parameters and features as if they did not
    depend on each other. Fresh aliases don't, whatever graph the originals are part of: a feature
    computed with a weight that the field shares would otherwise be counted twice.

    Raises:
        InvalidInputError: if the field is not a module, so that its parameters are not known.
    """
    if not isinstance(vector_field, nn.Module):
        raise stabnet.InvalidInputError(
            "the adjoint method needs a vector field that is a module, to know its parameters; got "
            f"{type(vector_field).__name__}. Wrap it in a module, or take adjoint=False"
        )
    module = vector_field
    parameters = {n: p.view_as(p) for n, p in module.named_parameters() if p.requires_grad}
    features = pytree.tree_map_only(Tensor, lambda part: part.view_as(part), u)
    autocast, precision = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)

    def field(t: float | Tensor, z: Tensor, u: Features) -> Tensor:
        # The backward pass runs outside the caller's autocast, whose dtypes it must repeat.
        with torch.autocast(device, precision, autocast):
            value: Tensor = torch.func.functional_call(module, parameters, (t, z, u))
        return value

    inputs = (part for part in pytree.tree_leaves(features) if isinstance(part, Tensor))
    leaves = (*parameters.values(), *(part for part in inputs if part.requires_grad))
    return field, features, leaves
