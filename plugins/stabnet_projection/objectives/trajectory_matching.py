"""Learning a vector field from observed trajectories, by shooting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stabnet import Flow, InvalidOptionError, StabilityModel
from stabnet.interfaces import Objective
from stabnet.values import number, whole

from .matching import check_target, model_of_states, relative_error, scale_of, scaled

__all__ = ["TrajectoryMatching"]


@final
class TrajectoryMatching(Objective):
    r"""The squared error of trajectories that start at observed states.

    A trajectory is observed at the times :math:`t_j = j\Delta`, as :math:`y_0 = x` and
    :math:`y_1, \dots, y_T`. It is cut into segments of ``segment`` steps; the last may be shorter.
    With the flow :math:`\varphi`, what is predicted of :math:`y_j` starts at the node
    :math:`\nu(j)`, the last start of a segment before ``j``:

    .. math:: \hat y_j = \varphi_{(j - \nu(j)) \Delta}(y_{\nu(j)}), \qquad
              \text{loss} = \frac1{T n} \sum_{j=1}^{T} \|\hat y_j - y_j\|^2
              + \frac{w}{(K - 1)\,n} \sum_{k=1}^{K-1} \|\hat y_{\nu_k} - y_{\nu_k}\|^2,

    averaged over the batch. The last sum is over the gaps between the end of a segment and the
    start of the next. Since every segment starts at what was observed, a gap is the error there,
    and ``w`` is the weight that such an error has besides its own; with noise in the observations
    no gap of even the true system is zero. (In Bock's method the starts are unknowns of the
    optimization and the gaps constraints; with neural networks it is common to start at the data.)

    Short segments keep the loss smooth where trajectories diverge, and are integrated in parallel,
    as one batch (a shorter last one in full, and what is beyond the data dropped); long ones are
    matched in what matters, the accumulated error. A segment starts at ``t = 0``, so the field
    should not depend on time.

    Args:
        interval: the time :math:`\Delta` between observations.
        segment: steps per segment; ``None`` for a single one, which is single shooting.
        continuity_weight: the weight ``w`` of the gaps, not negative.
        scale: the units of the components, which all errors are divided by; all are 1 if ``None``.

    Raises:
        InvalidOptionError: for an option out of range.

    References:
        Bock, Plitt: "A multiple shooting algorithm for direct solution of optimal control
        problems", 1984.
    """

    dynamics: Literal["any", "flow", "equilibrium"] = "flow"
    task: Literal["classification", "regression"] = "regression"
    scale: Tensor | None

    def __init__(
        self,
        interval: float,
        segment: int | None = None,
        continuity_weight: float = 1.0,
        scale: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.interval = number("interval", interval, above=0)
        self.segment = None if segment is None else whole("segment", segment, 1)
        self.continuity_weight = number("continuity_weight", continuity_weight, least=0)
        self.register_buffer("scale", scale_of(scale), persistent=False)

    def forward(
        self, model: nn.Module, x: Float[Tensor, "batch ..."], y: Float[Tensor, "batch ..."]
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Evaluate the loss of ``model`` on one batch.

        Args:
            model: a :class:`stabnet.StabilityModel` with a flow. For more than one segment its
                inputs must be the states, as those of ``stable_dynamics`` are; a single one takes
                any, whose outputs along the trajectory are matched.
            x: initial states ``(batch, *in_shape)``.
            y: what was observed after them, flattened to ``(batch, T, n)``; ``(batch, n)`` for a
                single time.

        Returns:
            The loss; and to log ``loss``, ``relative_error`` (the norm of the error over that of
            the observations, in the batch and without the scale), ``gap`` (the mean square of the
            gaps) where there are several segments, and ``nfe``.

        Raises:
            InvalidOptionError: for another model, or a scale of another length.
            InvalidInputError: if a shape does not fit.
        """
        flow = getattr(model, "dynamics", None)
        if not isinstance(model, StabilityModel) or not isinstance(flow, Flow):
            raise InvalidOptionError(
                "trajectory_matching needs a StabilityModel whose dynamics is one Flow; this is a "
                f"{type(model).__name__} with {type(flow).__name__}"
            )
        single = y.ndim == 2
        wanted = (len(x), *(() if single else ("times",)), model.num_outputs)
        check_target(y, wanted, "observations")
        observed = y[:, None] if single else y
        steps = observed.shape[1]
        length = min(self.segment or steps, steps)
        starts = self._starts(model, x, observed, length)
        predicted, nfe = self._shoot(model, starts, length, len(x))
        residual = predicted[:, :steps] - observed
        errors = scaled(residual, self.scale).square()
        loss = errors.mean()
        logs = {
            "relative_error": relative_error(residual, observed),
            "nfe": torch.full((), float(nfe), device=y.device),
        }
        if length < steps:
            gaps = errors[:, length - 1 : steps - 1 : length].mean()
            loss = loss + self.continuity_weight * gaps
            logs["gap"] = gaps.detach()
        return loss, {"loss": loss.detach(), **logs}

    def _starts(
        self, model: StabilityModel, x: Tensor, observed: Tensor, length: int
    ) -> Float[Tensor, "segments ..."]:
        """Return where segments start, all those of one trajectory after one another."""
        if length == observed.shape[1]:
            return x
        model_of_states(model, "trajectory_matching with several segments")
        later = observed[:, length - 1 : -1 : length].unflatten(2, model.in_shape).to(x)
        return torch.cat([x[:, None], later], 1).flatten(0, 1)

    def _shoot(
        self, model: StabilityModel, starts: Tensor, length: int, batch: int
    ) -> tuple[Float[Tensor, "batch times n"], int]:
        """Return the outputs along all segments, one after another, and the evaluations spent."""
        times = [self.interval * step for step in range(length + 1)]
        solution = model.solve(starts, times)
        states = cast(Tensor, solution.states)[1:].transpose(0, 1)
        outputs = model.read(states.flatten(0, 1))
        return outputs.reshape(batch, -1, outputs.shape[1]), solution.nfe
