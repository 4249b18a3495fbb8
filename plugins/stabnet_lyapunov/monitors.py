"""Monitors: whether trained flows decay as they were trained to, and how early they can stop."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast, final

import torch
from jaxtyping import Float
from torch import Tensor

import stabnet
from stabnet import Flow, InvalidInputError, InvalidOptionError, StabilityModel
from stabnet.interfaces import Context, Guarantee, Potential
from stabnet.robustness import eval_mode

from .potential import SupervisedPotential

__all__ = ["DecayReport", "EarlyTermination", "decay_share", "early_termination"]

Batch = tuple[Tensor, Tensor]

_TIMES = 11
"""Times looked at by default, evenly spaced with both ends."""

_CHUNK = 256
"""Samples of one batch, where they are not given in batches."""

_ROUNDING = 4
"""Units of rounding of V(0) that a decayed potential may miss its bound by."""


@final
@dataclass(frozen=True)
class DecayReport:
    r"""How often a potential was below its exponential bound: evidence, and no proof.

    Between the times and for other inputs nothing is known, and nothing for perturbed ones.

    Attributes:
        share: share of the pairs of a sample and a time after the start where
            :math:`V(t) \le \mathrm{slack} \cdot V(0)\, e^{-\kappa t}`, up to rounding.
        worst_ratio: the largest :math:`V(t) / (V(0)\, e^{-\kappa t})`, up to rounding; infinite
            where a potential that was zero grew, or is not finite.
        kappa: the rate.
        slack: by how much the bound may be missed.
        times: the start and the times looked at.
        potential: the mean of ``V`` over the samples at each of them.
        samples: how many samples there were.
    """

    share: float
    worst_ratio: float
    kappa: float
    slack: float
    times: tuple[float, ...]
    potential: tuple[float, ...]
    samples: int

    def guarantee(self) -> Guarantee:
        """Return the finding as a statement: ``sampled``, or ``falsified`` by any exception."""
        return Guarantee(
            claim="the potential of the state decays exponentially along the trajectories of the "
            "inputs; nothing is said of perturbed inputs",
            formula=f"V(z(t)) ≤ {self.slack:g} V(z(0)) exp(−{self.kappa:g} t)",
            source="[LyaNet] (14)",
            status="sampled" if self.share == 1 else "falsified",
            assumptions=("the computed trajectories are the flow's",),
            detail=f"holds at {100 * self.share:.4g} % of {self.samples} inputs × "
            f"{len(self.times) - 1} times up to {self.times[-1]:g}; largest V(t) is "
            f"{self.worst_ratio:.4g} times V(0) exp(−{self.kappa:g} t)",
        )


@final
@dataclass(frozen=True)
class EarlyTermination:
    """What a model comes to when it is stopped early.

    Attributes:
        times: when its state is read.
        loss: mean loss at each time: cross entropy, or half the squared distance to target values.
        accuracy: accuracy at each time, outputs that are not finite being wrong; ``None`` for
            target values.
        samples: how many samples there were.
    """

    times: tuple[float, ...]
    loss: tuple[float, ...]
    accuracy: tuple[float, ...] | None
    samples: int


def decay_share(
    model: StabilityModel,
    x: Float[Tensor, "samples ..."],
    y: Tensor,
    kappa: float,
    *,
    times: Sequence[float] | None = None,
    slack: float = 1.01,
    potential: str | Mapping[str, Any] | Potential | None = None,
) -> DecayReport:
    r"""Count how often the potential is below its exponential bound along trajectories.

    A pair of a sample and a time :math:`t` after the start counts if

    .. math:: V(z(t)) \le \mathrm{slack} \cdot V(z(0))\, (e^{-\kappa t} + 4 \varepsilon)

    with :math:`\varepsilon` the unit of rounding of the potential's numbers. Where :math:`V(z(0))`
    is zero, so must be :math:`V(z(t))`; a truncated potential is not disturbed by rounding there.

    The model is in eval mode, and its modules' modes are restored. There is one integration for
    all times: choose them on the grid of a fixed-step integrator, which takes smaller steps
    elsewhere.

    Args:
        model: a model whose dynamics is a :class:`stabnet.Flow`.
        x: inputs.
        y: class labels ``(samples,)``, or target values ``(samples, num_outputs)``.
        kappa: the rate κ, positive.
        times: increasing times, none before the flow's own start; by default eleven, evenly spaced
            over its interval.
        slack: factor by which the bound may be missed, at least 1.
        potential: ``V`` as a function of the state, given label and head: a name, a dict with
            options, or a potential; by default ``supervised``.

    Returns:
        The share, the worst ratio and the mean potential along time.

    Raises:
        InvalidOptionError: for a model without a flow, or a rate or slack out of range.
        InvalidInputError: for times that do not increase, or inputs and targets that do not fit.
    """
    if not 0 < kappa < math.inf or not 1 <= slack < math.inf:
        raise InvalidOptionError(
            f"kappa={kappa!r} must be positive, and slack={slack!r} at least 1; both finite"
        )
    flow = _flow(model)
    grid, _ = _grid(flow, times)
    loss = "squared_error" if y.is_floating_point() else "cross_entropy"
    v: Potential = stabnet.build(
        {"name": "supervised", "loss": loss} if potential is None else potential,
        kind="potential",
        state_shape=flow.vector_field.state_shape,
    )
    parts: list[Tensor] = []
    eps = 0.0
    with eval_mode(model), eval_mode(v), torch.no_grad():
        for inputs, labels in _batches((x, y), model):
            u = model.features(inputs)
            states = flow(u, grid).states
            features = u if isinstance(u, Tensor) else None
            context = Context(features=features, label=labels, head=model.decode)
            values = torch.stack([v(z, context) for z in states])
            eps = torch.finfo(values.dtype).eps
            parts.append(values.cpu().double())
    along = torch.cat(parts, 1)
    start = along[0]
    after = torch.tensor([t - grid[0] for t in grid[1:]], dtype=torch.float64)
    bound = start * (torch.exp(-kappa * after) + _ROUNDING * eps)[:, None]
    # Zero below a bound of zero is as it should be; what is not finite is above every bound.
    ratio = torch.where(along[1:] == 0, 0.0, along[1:] / bound).nan_to_num(
        nan=math.inf, posinf=math.inf
    )
    ratio = torch.where(start.isfinite(), ratio, math.inf)
    return DecayReport(
        share=float((ratio <= slack).double().mean()),
        worst_ratio=float(ratio.max()),
        kappa=float(kappa),
        slack=float(slack),
        times=tuple(grid),
        potential=tuple(along.mean(1).tolist()),
        samples=along.shape[1],
    )


def early_termination(
    model: StabilityModel,
    data: Batch | Iterable[Batch],
    times: Sequence[float] | None = None,
) -> EarlyTermination:
    """Evaluate a model that is stopped at each of several times.

    The model is in eval mode, and its modules' modes are restored. There is one integration for
    all times: choose them on the grid of a fixed-step integrator, which takes smaller steps
    elsewhere.

    Args:
        model: a model whose dynamics is a :class:`stabnet.Flow`.
        data: inputs and targets ``(x, y)``, or batches of them, such as a loader; targets are class
            labels ``(samples,)`` or values ``(samples, num_outputs)``.
        times: increasing times, none before the flow's own start; by default eleven, evenly spaced
            over its interval. The trajectory begins at that start even where it is not among them.

    Returns:
        Loss and accuracy at each time.

    Raises:
        InvalidOptionError: for a model without a flow.
        InvalidInputError: for times that do not increase, no sample, or targets that do not fit.

    References:
        [LyaNet] Figure 3.
    """
    flow = _flow(model)
    grid, asked = _grid(flow, times)
    losses = torch.zeros(len(asked), dtype=torch.float64)
    right = torch.zeros(len(asked), dtype=torch.float64)
    samples, classified = 0, True
    with eval_mode(model), torch.no_grad():
        for x, y in _batches(data, model):
            classified = not y.is_floating_point()
            plain = SupervisedPotential(
                (model.num_outputs,), "cross_entropy" if classified else "squared_error", 0.0
            )
            states = flow(model.features(x), grid).states
            for k, z in enumerate(states[-len(asked) :]):
                outputs = model.decode(z)
                losses[k] += plain(outputs, Context(label=y)).cpu().double().sum()
                if classified:
                    finite = outputs.isfinite().all(1)  # else argmax finds the first NaN
                    right[k] += ((outputs.argmax(1) == y) & finite).sum().cpu()
            samples += len(x)
    return EarlyTermination(
        times=asked,
        loss=tuple((losses / samples).tolist()),
        accuracy=tuple((right / samples).tolist()) if classified else None,
        samples=samples,
    )


def _flow(model: StabilityModel) -> Flow:
    dynamics = getattr(model, "dynamics", None)
    if not isinstance(model, StabilityModel) or not isinstance(dynamics, Flow):
        found = type(model).__name__ if dynamics is None else f"a {type(dynamics).__name__}"
        raise InvalidOptionError(
            f"decay along time is defined for a StabilityModel whose dynamics is a Flow; got "
            f"{found}. Build such a model, for example 'lyanet' or 'neural_ode'"
        )
    return dynamics


def _grid(flow: Flow, times: Sequence[float] | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the times to integrate through, from the flow's start on, and the times asked for."""
    start, end = flow.times[0], flow.times[-1]
    if times is None:
        steps = _TIMES - 1
        times = [start + k / steps * (end - start) for k in range(steps)] + [end]
    asked = tuple(float(t) for t in times)
    # A comparison with NaN is false.
    grid = asked if asked and asked[0] == start else (start, *asked)
    if len(grid) < 2 or not all(a < b < math.inf for a, b in pairwise(grid)):
        raise InvalidInputError(
            f"times={list(asked)}; expected finite, increasing ones from the flow's start "
            f"{start:g} on, at least one after it"
        )
    return grid, asked


def _batches(data: Batch | Iterable[Batch], model: StabilityModel) -> Iterator[Batch]:
    """Yield batches on the model's device; raise if there is no sample."""
    device = next((t.device for t in (*model.parameters(), *model.buffers())), None)
    whole = isinstance(data, (tuple, list)) and len(data) == 2 and isinstance(data[0], Tensor)
    some = False
    for x, y in cast(Iterable[Batch], [data] if whole else data):
        if len(x) != len(y):
            raise InvalidInputError(f"{len(x)} inputs have {len(y)} targets; give one for each")
        size = _CHUNK if whole else max(len(x), 1)
        for inputs, targets in zip(x.split(size), y.split(size), strict=True):
            if len(inputs):
                some = True
                yield inputs.to(device), targets.to(device)
    if not some:
        raise InvalidInputError("there is no sample to look at; give at least one")
