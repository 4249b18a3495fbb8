"""APGD: projected gradient ascent that chooses its own step size.

It is run neither by pyautoattack nor by torchattacks. Both take one radius for all images, where a
certificate has one for each; they carry a gradient of NaN into the images, convert double precision
to single, and seed torch's global random numbers; they add 1e-12 to the norm of a gradient, which
shrinks the steps on confident models; and in l2 they scale a point back to the ball before they
clip it to [0, 1], which is not the nearest point of both, and costs a little among black pixels.
"""

from __future__ import annotations

import math
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from stabnet import InvalidOptionError

from .balls import Ball
from .search import BallAttack, Search
from .steps import check_radius

__all__ = ["APGD"]

MOMENTUM = 0.75
"""Weight ``α`` of the new step; the rest goes on in the direction of the last one."""

RISES = 0.75
"""Share ``ρ`` of steps that must raise the loss, for the step size to stay."""


@final
class APGD(BallAttack):
    r"""Auto-PGD: ascent with momentum, from random starts, that halves its steps when they fail.

    .. math:: z_{k+1} = Π(x_k + η\, d(g_k)), \quad
        x_{k+1} = Π(x_k + α (z_{k+1} - x_k) + (1 - α)(x_k - x_{k-1})), \quad α = 0.75

    with :math:`d` the sign of the gradient for l-infinity and its direction for l2, and Π the
    projection to the nearest point in the ball and in [0, 1]. It begins with :math:`η = 2ε`. At
    checkpoints, an image whose loss rose in too few of the last steps, or which found nothing
    better since the last checkpoint with the same η, halves its η and goes back to the highest loss
    it has seen. Of all points on the way the best is kept, where another class leads the true
    one by most.

    Starts are drawn from torch's global random numbers, uniformly from the ball.

    Args:
        norm: ``"linf"`` or ``"l2"``.
        eps: radius, positive, in pixel units; at most 1 for l-infinity.
        steps: gradient steps of one run, at least 1; checkpoints are made for 100.
        restarts: runs, each from a random start of its own, at least 1. Later runs attack the
            images that are still classified rightly.
        loss: ``"cross_entropy"``, ``"dlr"`` (at least three classes) or ``"margin"``, as for
            :class:`PGDL2`.

    Raises:
        InvalidOptionError: for an option out of range.

    References:
        Croce, Hein: "Reliable evaluation of adversarial robustness with an ensemble of diverse
        parameter-free attacks", 2020, algorithm 1.
    """

    def __init__(
        self,
        *,
        norm: Literal["linf", "l2"] = "linf",
        eps: float = 8 / 255,
        steps: int = 100,
        restarts: int = 1,
        loss: str = "cross_entropy",
    ) -> None:
        if norm not in ("linf", "l2"):
            raise InvalidOptionError(f"norm={norm!r} is unknown; it is one of linf, l2")
        if norm == "linf":
            check_radius("eps", eps)
        super().__init__(norm, eps, steps, restarts, loss)

    def _climb(self, search: Search, within: Ball, x: Float[Tensor, "batch ..."]) -> None:
        step = 2 * within.radius
        loss, move = search.ascend(x, within)
        previous = x
        best, best_loss, best_move = x, loss, move
        seen, rises, halved = loss, torch.zeros_like(loss), torch.zeros_like(search.flipped)
        last, checkpoints = 0, _checkpoints(self.steps)
        for k in range(1, self.steps + 1):
            target = within.nearest(x + within.lengths(step) * move)
            if k > 1:
                target = within.nearest(
                    x + MOMENTUM * (target - x) + (1 - MOMENTUM) * (x - previous)
                )
            previous, x = x, target
            before = loss
            loss, move = search.ascend(x, within)
            rises += loss > before
            higher = loss > best_loss
            best, best_move = _pick(higher, x, best), _pick(higher, move, best_move)
            best_loss = torch.where(higher, loss, best_loss)
            if k in checkpoints:
                halved = (rises < RISES * (k - last)) | (~halved & (best_loss <= seen))
                step = torch.where(halved, step / 2, step)
                x, move = _pick(halved, best, x), _pick(halved, best_move, move)
                loss = torch.where(halved, best_loss, loss)
                seen, rises, last = best_loss, torch.zeros_like(rises), k


def _pick(
    which: Tensor, yes: Float[Tensor, "batch ..."], no: Float[Tensor, "batch ..."]
) -> Float[Tensor, "batch ..."]:
    """Return some images of one batch and the rest of another."""
    return torch.where(which.view(-1, *[1] * (yes.ndim - 1)), yes, no)


def _checkpoints(steps: int) -> frozenset[int]:
    r"""Return the steps at which progress is judged, :math:`⌈p_j N⌉`.

    .. math:: p_0 = 0, \quad p_1 = 0.22, \quad
        p_{j+1} = p_j + \max(p_j - p_{j-1} - 0.03,\; 0.06)
    """
    found, share, interval = set(), 22, 22  # in hundredths, free of rounding
    while share <= 100:
        found.add(math.ceil(share * steps / 100))
        interval = max(interval - 3, 6)
        share += interval
    return frozenset(found)
