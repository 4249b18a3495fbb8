"""Samplers: where in the state space a Lyapunov condition is asked for."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stabnet import Flow, InvalidOptionError
from stabnet.robustness import eval_mode
from stabnet.values import flag, number, whole

__all__ = ["Ball", "Hypercube", "Sampler", "Trajectory", "ball_radius", "hypercube_size"]

Groups = Sequence[tuple[float, Tensor]]
"""Times, and the states at each: ``(1, m, n)`` if the batch shares them, else ``(batch, m, n)``."""


def hypercube_size(kappa: float, classes: int) -> float:
    r"""Return half the side of the cube in which a rate of convergence is learned.

    .. math:: s = \tfrac12 \log \frac{C - 1}{\exp(e^{-\kappa}) - 1}

    At the corner with :math:`s` at the true class and :math:`-s` elsewhere the cross entropy of the
    state itself is :math:`e^{-\kappa}`: the least that decay from 1 at the rate needs to reach.

    Args:
        kappa: the rate, positive.
        classes: ``C``, at least 2.

    Raises:
        InvalidOptionError: if no cube of positive size does it, as for few classes and a small
            rate: for two classes it takes κ > 0.367.

    References:
        [LyaNet] (49).
    """
    if classes < 2 or not 0 < kappa < math.inf:
        raise InvalidOptionError(
            f"the cube of {classes} classes at kappa={kappa!r} is not defined; it takes at least "
            "two classes and a positive rate"
        )
    # For a large rate exp(e^{-κ}) − 1 is e^{-κ}, which may underflow; its logarithm does not.
    small = math.exp(-kappa)
    logarithm = math.log(math.expm1(small)) if small > 1e-300 else -kappa
    size = 0.5 * (math.log(classes - 1) - logarithm)
    if size <= 0:
        raise InvalidOptionError(
            f"[LyaNet] (49) gives no cube for {classes} classes at kappa={kappa:g}: its half side "
            f"would be {size:.3g}. Take a greater kappa, or give a size: "
            "sampler={'name': 'hypercube', 'size': 3.0}"
        )
    return size


def ball_radius(size: float, dimension: int) -> float:
    r"""Return ``size · √dimension``, the radius of the ball that reaches the cube's corners."""
    return size * math.sqrt(dimension)


class Sampler(nn.Module, ABC):
    """Draws times and states.

    Attributes:
        size: extent of the region in the state space; ``None`` where the objective is to take that
            of [LyaNet] (49).
        needs_size: whether there is a size at all.
    """

    size: float | None
    needs_size: bool

    @abstractmethod
    def forward(
        self, flow: Flow, u: Tensor, samples: int, size: float, generator: torch.Generator | None
    ) -> Groups:
        """Draw states on the device of the features, at least in single precision.

        Args:
            flow: whose states they are to be; its interval is where times are drawn.
            u: features ``(batch, …)``.
            samples: states in all, of the whole batch if it shares them, else of each example.
            size: extent of the region.
            generator: where random numbers come from, the same for every example, so that a mean
                over examples does not depend on how they are batched; torch's own if ``None``.
        """


@final
class Hypercube(Sampler):
    r"""Uniform in the cube :math:`[-s, s]^n`, with times uniform in the flow's interval.

    Args:
        size: :math:`s`, positive; ``None`` for that of :func:`hypercube_size`.
        per_example: draw states for each example, not one set for the batch.
        times: different times; the samples are split evenly among them.

    Raises:
        InvalidOptionError: for options out of range.

    References:
        [LyaNet] Algorithm 1.
    """

    needs_size = True

    def __init__(
        self, size: float | None = None, per_example: bool = False, times: int = 1
    ) -> None:
        super().__init__()
        self.size = None if size is None else number("size", size, above=0)
        self.per_example = flag("per_example", per_example)
        self.times = whole("times", times, 1)

    def forward(
        self, flow: Flow, u: Tensor, samples: int, size: float, generator: torch.Generator | None
    ) -> Groups:
        """Draw states; see :class:`Sampler`."""
        rows = len(u) if self.per_example and generator is None else 1
        shape = flow.vector_field.state_shape
        drawn = size * (2 * _uniform(u, generator, rows, samples, *shape) - 1)
        return _timed(drawn, _times(flow, min(self.times, samples), generator))


@final
class Ball(Sampler):
    r"""A uniform radius times a uniform direction, with times uniform in the flow's interval.

    .. math:: z = r\, d, \qquad r \sim U(0, R), \quad d \text{ uniform on the unit sphere}

    This is not uniform in the ball but biased to the origin, which in high dimension uniform
    samples hardly ever come near.

    Args:
        size: :math:`R`, positive; ``None`` for :func:`ball_radius` of :func:`hypercube_size`.
        per_example: draw states for each example, not one set for the batch.
        times: different times; the samples are split evenly among them.

    Raises:
        InvalidOptionError: for options out of range.

    References:
        [LyaNet] Algorithm 3.
    """

    needs_size = True

    def __init__(
        self, size: float | None = None, per_example: bool = False, times: int = 1
    ) -> None:
        super().__init__()
        self.size = None if size is None else number("size", size, above=0)
        self.per_example = flag("per_example", per_example)
        self.times = whole("times", times, 1)

    def forward(
        self, flow: Flow, u: Tensor, samples: int, size: float, generator: torch.Generator | None
    ) -> Groups:
        """Draw states; see :class:`Sampler`."""
        rows = len(u) if self.per_example and generator is None else 1
        drawn = _ball(u, generator, rows, samples, flow.vector_field.state_shape, size)
        return _timed(drawn, _times(flow, min(self.times, samples), generator))


@final
class Trajectory(Sampler):
    """Along the model's own trajectories, with noise around them: where inference takes place.

    The trajectories are solved for without gradients and in eval mode, as for inference, of which
    it costs about one a step. It is the sampler for states whose region no equation gives. Each
    example gets ``samples // times`` states, but at least one, at each time; without noise there
    is one state per time.

    Args:
        times: times uniform in the flow's interval.
        noise: radius of a ball around the trajectory, sampled as by :class:`Ball`; at least 0.

    Raises:
        InvalidOptionError: for options out of range.

    References:
        [LyaNet] Algorithm 2 takes such states, evenly spaced, with gradients through the solve.
    """

    needs_size = False
    size = None

    def __init__(self, times: int = 8, noise: float = 0.0) -> None:
        super().__init__()
        self.times = whole("times", times, 1)
        self.noise = number("noise", noise, least=0)

    def forward(
        self, flow: Flow, u: Tensor, samples: int, size: float, generator: torch.Generator | None
    ) -> Groups:
        """Draw states; see :class:`Sampler`."""
        times = sorted(set(_times(flow, min(self.times, samples), generator)))
        if flow.times[-1] < flow.times[0]:
            times.reverse()
        with torch.no_grad(), eval_mode(flow):
            states = flow(u, [flow.times[0], *times]).states
        assert isinstance(states, Tensor)
        groups = [(t, z.unsqueeze(1)) for t, z in zip(times, states[1:], strict=True)]
        if not self.noise:
            return groups
        rows, m = len(u) if generator is None else 1, max(1, samples // len(times))
        shape = flow.vector_field.state_shape
        return [(t, z + _ball(u, generator, rows, m, shape, self.noise)) for t, z in groups]


def _uniform(u: Tensor, generator: torch.Generator | None, *shape: int) -> Float[Tensor, "..."]:
    return torch.rand(shape, generator=generator, dtype=_precision(u), device=u.device)


def _ball(
    u: Tensor,
    generator: torch.Generator | None,
    rows: int,
    samples: int,
    shape: tuple[int, ...],
    radius: float,
) -> Float[Tensor, "rows samples ..."]:
    n = math.prod(shape)
    normal = torch.randn(
        (rows, samples, n), generator=generator, dtype=_precision(u), device=u.device
    )
    drawn = radius * _uniform(u, generator, rows, samples, 1) * F.normalize(normal, dim=-1)
    return drawn.reshape(rows, samples, *shape)


def _precision(u: Tensor) -> torch.dtype:
    """Return the precision of states: that of the features, but no less than single."""
    return torch.promote_types(u.dtype, torch.float32)


def _times(flow: Flow, count: int, generator: torch.Generator | None) -> list[float]:
    """Draw times on the host, where integrators and piecewise fields want them; none the start."""
    host = generator if generator is not None and generator.device.type == "cpu" else None
    if generator is not None and host is None:
        host = torch.Generator().manual_seed(generator.initial_seed())
    start, end = flow.times[0], flow.times[-1]
    # Whole numbers, because a compiled program can take no others from a tensor.
    drawn = torch.randint(2**24, (count,), generator=host).tolist()
    return [end + (start - end) * (k / 2**24) for k in drawn]


def _timed(drawn: Tensor, times: list[float]) -> Groups:
    """Split the samples evenly among the times."""
    return list(zip(times, drawn.tensor_split(len(times), dim=1), strict=True))
