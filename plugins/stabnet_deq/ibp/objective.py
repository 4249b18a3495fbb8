"""Certified training by interval bounds."""

from __future__ import annotations

from typing import Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from stabnet import InvalidOptionError
from stabnet.certify import margin_bounds
from stabnet.interfaces import Objective, Solution

__all__ = ["IntervalCrossEntropy"]


@final
class IntervalCrossEntropy(Objective):
    r"""Cross entropy of the logits and of the worst logits that interval bounds allow.

    .. math:: (1 - \kappa)\, \mathrm{CE}(\mathrm{logits}, y)
              + \kappa\, \mathrm{CE}(\underline{\mathrm{logits}}, y), \qquad
              \underline{\mathrm{logits}}_k = \max_{z \in \mathrm{box}} (w_k - w_y)^\top z
              + b_k - b_y

    over the box of equilibria of all images within ``eps`` in the maximum norm, cut off to [0, 1].

    In training mode :math:`\kappa` and the radius rise linearly from 0 to ``kappa`` and
    ``train_eps``, in ``ramp_steps`` steps after ``warmup_steps`` steps without perturbation. Steps
    are counted in a buffer, so that a resumed training goes on where it was. In eval mode the loss
    is that of ``kappa`` and ``eps`` themselves.

    **The accuracy that it logs is the share of samples verified by its bounds**, not that of clean
    predictions, which is ``clean_accuracy``: training keeps the epoch of the best accuracy on the
    validation set, and that must be the one that verifies most. In training it is verified at the
    radius of the step, so it starts high and falls while the radius grows.

    Args:
        eps: radius that the model is to be verified at, at least 0, in pixel units.
        kappa: final share of the worst case, in [0, 1].
        warmup_steps: training steps before the ramp.
        ramp_steps: training steps of the ramp.
        train_eps: final radius in training; somewhat above ``eps`` it verifies more at ``eps``.
            ``eps`` if ``None``.

    Attributes:
        step: training steps so far.

    Raises:
        InvalidOptionError: for options out of range.

    References:
        Gowal et al.: "On the effectiveness of interval bound propagation for training verifiably
        robust models", 2018; Wei, Kolter: "Certified robustness for deep equilibrium models via
        interval bound propagation", 2022.
    """

    dynamics: Literal["any", "flow", "equilibrium"] = "equilibrium"
    task: Literal["classification", "regression"] = "classification"

    step: Tensor

    def __init__(
        self,
        eps: float = 0.1,
        kappa: float = 0.5,
        warmup_steps: int = 500,
        ramp_steps: int = 5000,
        train_eps: float | None = None,
    ) -> None:
        super().__init__()
        radii = {"eps": eps, "train_eps": eps if train_eps is None else train_eps}
        for name, value in radii.items():
            if not 0 <= value <= 1:
                raise InvalidOptionError(
                    f"{name}={value} must be in [0, 1]; it is a radius in the units of images in "
                    "[0, 1], such as 8/255"
                )
        if not 0 <= kappa <= 1:
            raise InvalidOptionError(f"kappa={kappa} must be in [0, 1]")
        for name, steps in (("warmup_steps", warmup_steps), ("ramp_steps", ramp_steps)):
            if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
                raise InvalidOptionError(f"{name}={steps!r} must be a whole number, at least 0")
        self.eps, self.train_eps, self.kappa = radii["eps"], radii["train_eps"], kappa
        self.warmup_steps, self.ramp_steps = warmup_steps, ramp_steps
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def schedule(self) -> tuple[float, float]:
        """Return the radius and ``κ`` that the next call uses, in the mode as it is."""
        if not self.training:
            return self.eps, self.kappa
        step = int(self.step)
        if step < self.warmup_steps:
            return 0.0, 0.0
        share = min((step - self.warmup_steps + 1) / max(self.ramp_steps, 1), 1.0)
        return share * self.train_eps, share * self.kappa

    def forward(
        self, model: nn.Module, x: Float[Tensor, "batch ..."], y: Int[Tensor, " batch"]
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Evaluate the loss of ``model`` on one batch, and in training mode count a step.

        Args:
            model: a :class:`stabnet.StabilityModel` that :func:`stabnet.certify.margin_bounds` can
                bound, such as ``ibp_mondeq``.
            x: images ``(batch, *in_shape)`` in [0, 1].
            y: class labels ``(batch,)``.

        Returns:
            The loss; and to log ``loss``; ``clean_accuracy``; ``accuracy``, the share of samples
            that the bounds show to be classified rightly for every perturbation; the radius
            ``eps`` that was used; and what the solver did. The bounds are those of training,
            without the margins for rounding that a certificate needs.

        Raises:
            NoBoundError: if the model cannot be bounded.
            InvalidInputError: for images outside [0, 1] or labels that do not fit.
        """
        eps, kappa = self.schedule()
        if self.training:
            self.step += 1
        logits, solution = model.run(x)  # type: ignore[operator]
        loss = F.cross_entropy(logits, y)
        right = logits.detach().argmax(1) == y
        bounded = right
        if eps > 0:
            margins = margin_bounds(model, x, y, eps)
            worst = F.cross_entropy(-margins, y)
            loss = (1 - kappa) * loss + kappa * worst
            bounded = (margins.detach().scatter(1, y[:, None], 1.0) > 0).all(1)
        logs = {
            "loss": loss.detach(),
            "accuracy": bounded.float().mean(),
            "clean_accuracy": right.float().mean(),
            "eps": torch.full((), eps, device=x.device),
            **_statistics(solution, x.device),
        }
        return loss, logs


def _statistics(solution: Solution, device: torch.device) -> dict[str, Tensor]:
    """Return what the solver did, as detached scalars."""
    assert solution.converged is not None
    return {
        "nfe": torch.full((), float(solution.nfe), device=device),
        "converged": solution.converged.detach().float().mean(),
    }
