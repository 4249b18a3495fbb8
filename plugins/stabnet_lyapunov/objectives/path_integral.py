"""The path-integral Lyapunov loss: a condition along the trajectories that a model takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stabnet import InvalidOptionError
from stabnet.interfaces import Context, Objective
from stabnet.values import flag, number, whole

from .path import Path, follow
from .schedules import RateSchedule, paper_rate, released_rate
from .supervision import Supervision

__all__ = ["LyapunovPathIntegral"]

Part = str | Mapping[str, Any] | nn.Module

_PAPER_DISCRETE = 0.999955
_RELEASED_DISCRETE = -math.expm1(-10 / 3 * 1 / 3)
"""``1 − exp(−10/3 Δt)`` for the released ``Δt = 1/3``: 0.6708."""


@final
class LyapunovPathIntegral(Objective):
    r"""The Lyapunov loss along the model's own trajectory.

    With ``condition="continuous"`` it is the mean over the times :math:`t_j` kept of every flow,

    .. math:: \max\bigl(0,\; \dot V_y(z(t_j)) + \kappa V_y(z(t_j))\bigr), \qquad
              \dot V_y(z) = \nabla V_y(z)^\top F(t, z, u),

    and with ``condition="discrete"`` over every two successive states

    .. math:: \max\bigl(0,\; V_y(z_j) + (\kappa - 1) V_y(z_{j-1})\bigr), \qquad 0 < \kappa < 1,

    along flows, and across blocks that keep the shape of the state: a plain residual network is a
    discrete-time system too. :math:`V_y` is the potential of the outputs that a state stands for.
    In a stack a state is read through the later stages that change its space (stitches, blocks of
    another shape, the final average) and the head; flows and blocks that carry it on in its own
    space are left out, for through them every state of a trajectory leads to the same outputs.

    Gradients flow through the trajectory. The model runs once, as in a plain forward, and what is
    evaluated besides (the field at the states kept, the reading of states) leaves the statistics
    of batch normalization alone; dropout there draws masks of its own. That the condition holds at
    the states kept is evidence of decay along these trajectories, not proof, and says nothing of
    perturbed inputs.

    Args:
        mode: what ``kappa`` and ``detach`` come to if ``None``. ``"paper"``: κ = 5 (continuous) or
            0.999955 (discrete), ``κV`` with gradient, loss truncated at 1e-6. ``"official"``, as
            released: κ = log √(225 C) or 0.6708, ``κV`` without gradient, no truncation.
        condition: the continuous-time or the discrete-time one.
        kappa: the rate κ, positive; below 1 for the discrete condition.
        points: number of evenly spaced times, both ends included, at which the states of a flow
            are kept; ``None`` for the flow's own times, or for four if it has a start and an end
            only. A method with fixed steps keeps its steps where these times are on its grid;
            elsewhere it takes smaller ones than in a plain forward.
        potential: :math:`V` as a function of the outputs, by default ``supervised``.
        detach: whether ``κV`` is held constant in the gradient.
        terminal_weight: weight of the plain, untruncated loss of the final outputs (cross entropy,
            for a potential that is), which the same run of the model gives.
        kappa_start: rate at the first step, for a schedule that moves linearly to ``kappa``.
        kappa_steps: steps of that schedule.

    Raises:
        InvalidOptionError: for options out of range.

    References:
        [LyaNet] (13), (16) and Algorithm 2; released code.
    """

    dynamics: Literal["any", "flow", "equilibrium"] = "flow"
    task: Literal["classification", "regression"] = "classification"

    def __init__(
        self,
        mode: Literal["paper", "official"] = "paper",
        condition: Literal["continuous", "discrete"] = "continuous",
        kappa: float | None = None,
        points: int | None = None,
        potential: Part | None = None,
        detach: bool | None = None,
        terminal_weight: float = 0.0,
        kappa_start: float | None = None,
        kappa_steps: int = 0,
    ) -> None:
        super().__init__()
        if mode not in ("paper", "official"):
            raise InvalidOptionError(f"mode={mode!r} is unknown; it is 'paper' or 'official'")
        if condition not in ("continuous", "discrete"):
            raise InvalidOptionError(
                f"condition={condition!r} is unknown; it is 'continuous' or 'discrete'"
            )
        limit = math.inf if condition == "continuous" else 1.0
        for name, rate in (("kappa", kappa), ("kappa_start", kappa_start)):
            if rate is not None:
                number(name, rate, above=0, below=limit, where=f"for the {condition} condition")
        if points is not None:
            whole("points", points, 2)
        released = mode == "official"
        self.mode, self.condition, self.kappa, self.points = mode, condition, kappa, points
        self.detach = released if detach is None else flag("detach", detach)
        self.supervision = Supervision(potential, 0.0 if released else None, terminal_weight)
        self.task = self.supervision.task
        self.dynamics = "flow" if condition == "continuous" else "any"
        self.rate_schedule = RateSchedule(kappa_start, kappa_steps)

    def forward(
        self, model: nn.Module, x: Float[Tensor, "batch ..."], y: Tensor
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Evaluate the loss of ``model`` on one batch.

        Args:
            model: a :class:`stabnet.StabilityModel` whose dynamics is a :class:`stabnet.Flow`, or
                a :class:`stabnet.Stack` of flows and blocks.
            x: inputs ``(batch, *in_shape)``.
            y: class labels ``(batch,)``, or target values ``(batch, num_outputs)``.

        Returns:
            The loss; and to log ``loss``, ``lyapunov_loss``, the share of ``violations`` of the
            condition, ``potential``, its mean at the end, ``accuracy`` of the final outputs,
            ``nfe`` of the run, and ``kappa`` where a schedule moves it.

        Raises:
            InvalidOptionError: if the model has no trajectory, or for the continuous condition no
                flow.
            InvalidInputError: for targets that do not fit.
        """
        if not torch.compiler.is_compiling() and torch.is_inference_mode_enabled():
            # Forward-mode derivatives do not mix with tensors of inference mode.
            with torch.inference_mode(False), torch.no_grad():
                return self(model, x.clone(), y.clone())  # type: ignore[no-any-return]
        path = follow(model, x, self.points)
        kappa = self.rate_schedule(self.rate(path.outputs.shape[1]))
        terms = self._continuous if self.condition == "continuous" else self._discrete
        excess = terms(path, y, kappa)
        lyapunov = torch.relu(excess).mean()
        terminal, logs = self.supervision.terminal(path.outputs, y)
        loss = (
            lyapunov + self.supervision.weight * terminal if self.supervision.weight else lyapunov
        )
        if isinstance(kappa, Tensor):
            logs["kappa"] = kappa.detach()
        return loss, {
            "loss": loss.detach(),
            "lyapunov_loss": lyapunov.detach(),
            "violations": (excess.detach() > 0).float().mean(),
            "potential": self._potential(path.outputs.detach(), y).mean(),
            "nfe": torch.full((), float(path.nfe), device=loss.device),
            **logs,
        }

    def rate(self, num_outputs: int) -> float:
        """Return the final κ for a model with so many outputs."""
        if self.kappa is not None:
            return self.kappa
        if self.condition == "discrete":
            return _PAPER_DISCRETE if self.mode == "paper" else _RELEASED_DISCRETE
        return paper_rate() if self.mode == "paper" else released_rate(num_outputs)

    def _continuous(
        self, path: Path, y: Tensor, kappa: float | Tensor
    ) -> Float[Tensor, "states batch"]:
        """Return ``V̇ + κV`` at every state kept of every flow."""
        terms = []
        for leg in path.legs:
            for t, z in zip(leg.times or (), leg.states, strict=False):
                outputs, moved = map(_full, path.decode_and_rate(leg, t, z))
                potential = self.supervision.potential(tuple(outputs.shape[1:]))
                value, rate = potential.value_and_rate(outputs, moved, Context(label=y))
                terms.append(rate + kappa * (value.detach() if self.detach else value))
        if not terms:
            raise InvalidOptionError(
                "the continuous Lyapunov condition speaks of flows, and this model has none; for a "
                "discrete-time network use condition='discrete'"
            )
        return torch.stack(terms)

    def _discrete(
        self, path: Path, y: Tensor, kappa: float | Tensor
    ) -> Float[Tensor, "pairs batch"]:
        """Return ``V(z_j) + (κ − 1)V(z_{j−1})`` for every two successive states."""
        terms: list[Tensor] = []
        before: Tensor | None = None
        for leg in path.legs:
            if before is None or not leg.carries:
                before = self._potential(path.decode(leg, leg.states[0]), y)
            # Elsewhere the leg before ended at the same outputs: between are only stages that
            # both readings pass through.
            for z in leg.states[1:]:
                value = self._potential(path.decode(leg, z), y)
                decrease = kappa * (before.detach() if self.detach else before)
                terms.append(value - before + decrease)
                before = value
        if not terms:
            raise InvalidOptionError(
                "the discrete Lyapunov condition speaks of successive states of one shape, and no "
                "stage of this model keeps the shape of its state"
            )
        return torch.stack(terms)

    def _potential(self, outputs: Tensor, y: Tensor) -> Float[Tensor, " batch"]:
        """Return the potential of outputs."""
        full = _full(outputs)
        value: Tensor = self.supervision.potential(tuple(full.shape[1:]))(full, Context(label=y))
        return value


def _full(outputs: Tensor) -> Tensor:
    """Return outputs that autocast computed in half precision as single precision."""
    return outputs.float() if outputs.dtype in (torch.float16, torch.bfloat16) else outputs
