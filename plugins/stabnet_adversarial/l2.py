"""PGD in the l2 ball.

It is not run by torchattacks, whose version divides the gradient by its norm plus 1e-10: where the
gradient of the batch's mean loss is smaller than that, as it is for confident models, the steps
shrink, and the model looks robust.
"""

from __future__ import annotations

from typing import final

from jaxtyping import Float
from torch import Tensor

from .balls import Ball
from .search import BallAttack, Search
from .steps import check_length

__all__ = ["PGDL2"]


@final
class PGDL2(BallAttack):
    r"""Projected gradient ascent in the l2 ball from random starts.

    .. math:: x_{k+1} = Π\Big(x_k + h \frac{g_k}{\|g_k\|_2}\Big), \quad
        g_k = ∇_x \ell(f(x_k), y), \quad x_0 = Π(x + ξ)

    with ξ uniform in the ball of radius ``eps`` and Π the projection to the nearest point that is
    in the ball around ``x`` and in [0, 1]. The steps have their full length however small the
    gradient is, image by image; where it is exactly zero, or not finite, the image stays. Of all
    points on the way the best is kept, where another class leads the true one by most.

    Starts are drawn from torch's global random numbers. Steps that are together shorter than
    ``eps`` search the neighborhood of their start and no more: ten of 2/255 in the ball of 127/255,
    the setting of [LyaNet], are a very weak attack.

    Args:
        eps: radius, positive, in pixel units; it is compared with the length of the whole
            perturbation, so it may exceed 1.
        step_size: length ``h`` of one step, positive; ``None`` for ``2.5 eps / steps``, enough to
            cross the ball and to turn around. At other radii (:meth:`within`) it is in proportion.
        steps: number of steps of one run, at least 1.
        restarts: runs, each from a random start of its own, at least 1. Later runs attack the
            images that are still classified rightly.
        loss: ``"cross_entropy"``, whose gradient vanishes where the model is confident, and hardly
            tells the runner-up from other classes where all logits are small; ``"margin"``,
            :math:`\max_{j \ne y} f_j - f_y`, which is what certificates by Lipschitz constants
            speak of; or ``"dlr"``, the margin relative to the spread of the top three.

    Raises:
        InvalidOptionError: for an option out of range.

    References:
        Madry et al. 2018, section 2.1, and its step size for l2.
    """

    def __init__(
        self,
        *,
        eps: float = 127 / 255,
        step_size: float | None = None,
        steps: int = 20,
        restarts: int = 1,
        loss: str = "cross_entropy",
    ) -> None:
        super().__init__("l2", eps, steps, restarts, loss)
        self.step_size = (
            2.5 * eps / steps if step_size is None else check_length("step_size", step_size)
        )

    def _climb(self, search: Search, within: Ball, x: Float[Tensor, "batch ..."]) -> None:
        length = within.lengths(self.step_size * (within.radius / self.eps))
        for _ in range(self.steps):
            _, move = search.ascend(x, within)
            x = within.nearest(x + length * move)
        search.look(x)
