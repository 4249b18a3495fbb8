"""The Monte Carlo Lyapunov loss: a condition on the field, without an ODE solve."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stabnet import Flow, InvalidOptionError, StabilityModel
from stabnet.interfaces import Objective, Solution
from stabnet.values import flag, number, whole

from ..samplers import Ball, Hypercube, Sampler, Trajectory, ball_radius, hypercube_size
from .schedules import GainSchedule, RateSchedule, paper_rate, released_rate
from .supervision import Supervision

__all__ = ["LyapunovMonteCarlo"]

Part = str | Mapping[str, Any] | nn.Module

_SAMPLERS: Mapping[str, type[Sampler]] = {
    "hypercube": Hypercube,
    "ball": Ball,
    "trajectory": Trajectory,
}


@final
class LyapunovMonteCarlo(Objective):
    r"""The point-wise Lyapunov loss, averaged over sampled states.

    .. math:: \frac1{N\,\Gamma} \sum_{i, j} \max\bigl(0,\;
              \nabla V_{y_i}(z_j)^\top F(t_j, z_j, u_i) + \kappa V_{y_i}(z_j)\bigr)

    Where it is zero on every state that a trajectory visits,
    :math:`V(z(t)) \le V(z(0))\,e^{-\kappa t}`. Training solves no ODE. That samples satisfy the
    condition is evidence, not proof; see :func:`stabnet_lyapunov.lyapunov_certificate`.

    The features are computed once, by the model's backbone; states that the batch shares are never
    expanded over it. A learned start of the flow gets a gradient from ``terminal_weight`` alone.
    In eval mode the samples are the same at every call and for every example, so that the mean
    over a set is a number, and the trajectories are solved for accuracy and evaluations.

    Args:
        mode: what options left at ``None`` come to. ``"paper"``: κ = 5, the hypercube of
            [LyaNet] (49), loss truncated at 1e-6. ``"official"``, as released: κ = log √(225 C),
            the ball of radius 15 √C, no truncation, ``κ V`` without gradient, and the gain schedule
            if ``gain_switch`` is given.
        kappa: the rate κ, positive.
        samples: Γ, states per step.
        sampler: ``"hypercube"``, ``"ball"`` or ``"trajectory"``; a dict with its options; or a
            :class:`stabnet_lyapunov.Sampler`.
        potential: :math:`V`, by default ``supervised``.
        detach: whether ``κ V`` is held constant in the gradient; matters to learned heads only.
        terminal_weight: weight of the plain loss of the model's outputs (cross entropy, for a
            potential that is), added to the Lyapunov loss. It takes an ODE solve per step.
        kappa_start: rate at the first step, for a schedule that moves linearly to ``kappa``.
        kappa_steps: steps of that schedule.
        gain_switch: run the released schedule of the field's gain, with a first phase of so many
            steps; see :class:`stabnet_lyapunov.GainSchedule`. ``None`` for a constant gain.

    Raises:
        InvalidOptionError: for options out of range.

    References:
        [LyaNet] (12), (13) and Algorithm 1; released code.
    """

    dynamics: Literal["any", "flow", "equilibrium"] = "flow"
    task: Literal["classification", "regression"] = "classification"

    def __init__(
        self,
        mode: Literal["paper", "official"] = "paper",
        kappa: float | None = None,
        samples: int = 512,
        sampler: str | Mapping[str, Any] | Sampler | None = None,
        potential: Part | None = None,
        detach: bool | None = None,
        terminal_weight: float = 0.0,
        kappa_start: float | None = None,
        kappa_steps: int = 0,
        gain_switch: int | None = None,
    ) -> None:
        super().__init__()
        if mode not in ("paper", "official"):
            raise InvalidOptionError(f"mode={mode!r} is unknown; it is 'paper' or 'official'")
        released = mode == "official"
        self.mode, self.samples = mode, whole("samples", samples, 1)
        self.kappa = None if kappa is None else number("kappa", kappa, above=0)
        self.detach = released if detach is None else flag("detach", detach)
        default = "ball" if released else "hypercube"
        self.sampler = _sampler(default if sampler is None else sampler)
        self.supervision = Supervision(potential, 0.0 if released else None, terminal_weight)
        self.task = self.supervision.task
        self.rate_schedule = RateSchedule(kappa_start, kappa_steps)
        self.gain_schedule = None if gain_switch is None else GainSchedule(gain_switch)

    def forward(
        self, model: nn.Module, x: Float[Tensor, "batch ..."], y: Int[Tensor, " batch"]
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Evaluate the loss of ``model`` on one batch.

        Args:
            model: a :class:`stabnet.StabilityModel` whose dynamics is a :class:`stabnet.Flow`
                driven by features.
            x: inputs ``(batch, *in_shape)``.
            y: class labels ``(batch,)``, or target values ``(batch, C)``.

        Returns:
            The loss; and to log ``loss``, ``lyapunov_loss``, the share of samples in ``violations``
            of the condition, ``kappa`` and ``gain`` where a schedule moves them; ``accuracy`` and
            ``nfe`` where trajectories were solved for.

        Raises:
            InvalidOptionError: if the model is not such, or a sampler needs a size.
            InvalidInputError: for labels that do not fit.
        """
        model, flow = _driven(model)
        u = model.features(x)
        assert isinstance(u, Tensor)
        final_rate = self.rate(model.num_outputs)
        kappa = self.rate_schedule(final_rate)
        lyapunov, violations = self._condition(model, flow, u, y, kappa, final_rate)
        logs = {"lyapunov_loss": lyapunov.detach(), "violations": violations}
        if isinstance(kappa, Tensor):
            logs["kappa"] = kappa
        if self.gain_schedule is not None:
            gain = _gain(flow)
            if self.training:
                self.gain_schedule(gain, violations)
            logs["gain"] = gain.detach().clone()
        loss = lyapunov
        if self.supervision.weight or not self.training:
            solution: Solution = flow(u)
            terminal, found = self.supervision.terminal(model.read(solution.state), y)
            if self.supervision.weight:  # else a solution that diverges would make it NaN
                loss = loss + self.supervision.weight * terminal
            logs |= {**found, "nfe": torch.full((), float(solution.nfe), device=loss.device)}
        return loss, {"loss": loss.detach(), **logs}

    def rate(self, num_outputs: int) -> float:
        """Return the final κ for a model with so many outputs."""
        if self.kappa is not None:
            return self.kappa
        return paper_rate() if self.mode == "paper" else released_rate(num_outputs)

    def _condition(
        self,
        model: StabilityModel,
        flow: Flow,
        u: Tensor,
        y: Tensor,
        kappa: float | Tensor,
        final_rate: float,
    ) -> tuple[Tensor, Tensor]:
        """Return the mean of ``max(0, V̇ + κV)``, and the share of samples where it is not zero."""
        potential = self.supervision.potential(flow.vector_field.state_shape)
        context = self.supervision.context(model, y)
        generator = None if self.training else torch.Generator(u.device).manual_seed(0)
        size = self._size(model, flow, final_rate)
        sums, counts, evaluations = [], [], 0
        for t, z in self.sampler(flow, u, self.samples, size, generator):
            velocity = flow.vector_field(t, z, u)
            value, rate = potential.value_and_rate(z, velocity, context)
            violation = torch.relu(rate + kappa * (value.detach() if self.detach else value))
            sums.append(violation.sum())
            counts.append((violation.detach() > 0).sum())
            evaluations += violation.numel()
        return torch.stack(sums).sum() / evaluations, torch.stack(counts).sum() / evaluations

    def _size(self, model: StabilityModel, flow: Flow, kappa: float) -> float:
        """Return the extent of the sampler's region."""
        if not self.sampler.needs_size:
            return 0.0
        if self.sampler.size is not None:
            return self.sampler.size
        shape = flow.vector_field.state_shape
        if type(model.head) is not nn.Identity or len(shape) != 1 or self.task != "classification":
            raise InvalidOptionError(
                "[LyaNet] (49) gives the size of the sampled region only where the state itself is "
                "the logits. Give one, sampler={'name': 'hypercube', 'size': 3.0}, or sample "
                "where inference takes place, sampler='trajectory'"
            )
        ball = isinstance(self.sampler, Ball)
        size = 15.0 if self.mode == "official" else hypercube_size(kappa, shape[0])
        return ball_radius(size, shape[0]) if ball else size


def _sampler(spec: str | Mapping[str, Any] | Sampler) -> Sampler:
    if isinstance(spec, Sampler):
        return spec
    options: dict[str, Any] = {"name": spec}
    if isinstance(spec, Mapping):
        options = dict(spec)
    name = options.pop("name", "")
    if not isinstance(name, str) or name not in _SAMPLERS:
        raise InvalidOptionError(
            f"sampler {name!r} is unknown; it is one of {', '.join(_SAMPLERS)}, or a dict with "
            "that 'name' and options"
        )
    try:
        return _SAMPLERS[name](**options)
    except TypeError as error:
        raise InvalidOptionError(
            f"sampler {name!r} does not take these options: {error}"
        ) from error


def _driven(model: nn.Module) -> tuple[StabilityModel, Flow]:
    """Return the model and its flow.

    Raises:
        InvalidOptionError: if it has none, or one that no features drive.
    """
    flow = getattr(model, "dynamics", None)
    if not isinstance(model, StabilityModel) or not isinstance(flow, Flow):
        raise InvalidOptionError(
            "lyapunov_monte_carlo needs a StabilityModel whose dynamics is one Flow; this is a "
            f"{type(model).__name__} with {type(flow).__name__}. For stages and discrete-time "
            "networks use lyapunov_path_integral"
        )
    if flow.initial == "features":
        raise InvalidOptionError(
            "lyapunov_monte_carlo needs a field driven by the features; this flow starts at them "
            "(initial='features') and would learn nothing about the input. Use "
            "lyapunov_path_integral"
        )
    return model, flow


def _gain(flow: Flow) -> Tensor:
    gain = getattr(flow.vector_field, "gain", None)
    if not isinstance(gain, Tensor):
        raise InvalidOptionError(
            f"gain_switch needs a field with a buffer 'gain', such as data_controlled; "
            f"{type(flow.vector_field).__name__} has none"
        )
    return gain
