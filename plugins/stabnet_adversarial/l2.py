"""PGD in the l2 ball.

It is not run by torchattacks, whose version divides the gradient by its norm plus 1e-10: where the
gradient of the batch's mean loss is smaller than that, as it is for confident models, the steps
shrink, and the model looks robust.
"""

from __future__ import annotations

import math
import warnings
from numbers import Real
from typing import Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from stabnet import InvalidInputError, InvalidOptionError
from stabnet.interfaces import Attack
from stabnet.robustness import (
    AttackError,
    check_images,
    check_logits,
    check_perturbation,
    eval_mode,
)

from .steps import check_steps

__all__ = ["PGDL2"]


@final
class PGDL2(Attack):
    r"""Projected gradient ascent in the l2 ball from a random start.

    .. math:: x_{k+1} = Π\Big(x_k + h \frac{g_k}{\|g_k\|_2}\Big), \quad
        g_k = ∇_x \mathrm{CE}(f(x_k), y), \quad x_0 = Π(x + ξ)

    with ξ uniform in the ball of radius ``eps`` and Π the projection to the nearest point that is
    in the ball around ``x`` and in [0, 1]. The steps have their full length however small the
    gradient is, image by image; where it is exactly zero, or not finite, the image stays.

    The start is drawn from torch's global random numbers. One start, no restarts. Steps that are
    together shorter than ``eps`` search the neighborhood of their start and no more: ten of 2/255
    in the ball of 127/255, the setting of [LyaNet], are a very weak attack.

    Args:
        eps: radius, positive, in pixel units; it is compared with the length of the whole
            perturbation, so it may exceed 1.
        step_size: length ``h`` of one step, positive; ``None`` for ``2.5 eps / steps``, enough to
            cross the ball and to turn around.
        steps: number of steps, at least 1.

    Raises:
        InvalidOptionError: for an option out of range.

    References:
        Madry et al. 2018, section 2.1, and its step size for l2.
    """

    norm: Literal["linf", "l2"] = "l2"

    def __init__(
        self, *, eps: float = 127 / 255, step_size: float | None = None, steps: int = 20
    ) -> None:
        self.eps = _checked_length("eps", eps)
        self.steps = check_steps(steps)
        self.step_size = (
            2.5 * eps / steps if step_size is None else _checked_length("step_size", step_size)
        )

    def __call__(
        self, model: nn.Module, x: Float[Tensor, "batch ..."], y: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch ..."]:
        """Search for adversarial images; see :class:`stabnet.interfaces.Attack`.

        Raises:
            InvalidInputError: for images or labels that cannot be attacked, or images so small
                that the ball holds every image there is.
            AttackError: if the model gives no gradient, or the result breaks the rules.

        Warns:
            RuntimeWarning: if the gradient is not finite in some image, which a step then leaves
                alone.
        """
        check_images(x, y)
        self._check_size(x)
        with torch.inference_mode(False), torch.enable_grad(), eval_mode(model):
            x = x.detach().clone()  # a tensor made in inference mode takes part in no gradient
            labels = y.detach().clone().long()
            found = _nearest(x + _uniform_in_ball(x, self.eps), x, self.eps)
            stuck = torch.zeros(len(x), dtype=torch.bool, device=x.device)
            for step in range(self.steps):
                gradient = _gradient(model, found, labels, check=step == 0)
                direction, finite = _unit(gradient)
                stuck |= ~finite
                found = _nearest(found + self.step_size * direction, x, self.eps)
        _warn_of(stuck)
        check_perturbation(found, x, eps=self.eps, norm="l2")
        return found

    def _check_size(self, x: Float[Tensor, "batch ..."]) -> None:
        """Raise if the ball holds the whole unit cube, as with a radius in grey levels."""
        diameter = math.sqrt(x[0].numel())
        if self.eps > diameter:
            raise InvalidInputError(
                f"eps={self.eps!r} exceeds {diameter:.6g}, the l2 distance of any two images of "
                f"shape {tuple(x.shape[1:])}; it is in units of images in [0, 1], so half of the "
                "grey levels are written 127/255"
            )


def _checked_length(option: str, value: float) -> float:
    """Return a length in pixel units if it is positive and finite."""
    if isinstance(value, bool) or not (isinstance(value, Real) and 0 < value < math.inf):
        raise InvalidOptionError(
            f"{option}={value!r} must be a positive finite number, the l2 length of a perturbation "
            "of images in [0, 1], such as 127/255 = 0.498"
        )
    return value


def _gradient(
    model: nn.Module, x: Float[Tensor, "batch ..."], labels: Int[Tensor, " batch"], *, check: bool
) -> Float[Tensor, "batch ..."]:
    """Return the gradient of each image's cross entropy; ``check`` looks at the logits too."""
    x = x.requires_grad_()
    logits: Tensor = model(x)
    if check:
        check_logits(logits, labels)
    # The sum, because a mean over the batch would make small gradients smaller still.
    loss = F.cross_entropy(logits, labels, reduction="sum")
    gradient = None
    if loss.requires_grad:
        (gradient,) = torch.autograd.grad(loss, x, allow_unused=True)
    if gradient is None:
        raise AttackError(
            "the model's logits do not depend differentiably on the images, so a gradient attack "
            "cannot run and would call any such model robust; use an attack without gradients"
        )
    return gradient


def _unit(
    gradient: Float[Tensor, "batch ..."],
) -> tuple[Float[Tensor, "batch ..."], Bool[Tensor, " batch"]]:
    """Return each gradient at length 1, or 0 where it is 0 or not finite, and which are finite."""
    rows = gradient.flatten(1)
    largest = rows.abs().amax(1, keepdim=True)  # dividing by it first keeps squares in range
    finite = largest.isfinite()
    scaled = torch.where(finite & (largest > 0), rows / largest, 0)
    length = torch.linalg.vector_norm(scaled, dim=1, keepdim=True).clamp_min(1)
    return (scaled / length).view_as(gradient), finite.squeeze(1)


def _uniform_in_ball(x: Float[Tensor, "batch ..."], eps: float) -> Float[Tensor, "batch ..."]:
    """Return one draw per image from the uniform distribution on the ball around 0."""
    direction, _ = _unit(torch.randn_like(x))
    u = torch.rand(len(x), dtype=x.dtype, device=x.device)
    radius = eps * u ** (1 / x[0].numel())
    return direction * radius.view(-1, *[1] * (x.ndim - 1))


def _nearest(
    v: Float[Tensor, "batch ..."], x: Float[Tensor, "batch ..."], eps: float
) -> Float[Tensor, "batch ..."]:
    r"""Return the point nearest to ``v`` within ``eps`` of ``x`` and in [0, 1].

    By the conditions of Karush, Kuhn and Tucker it is :math:`x + \mathrm{clip}(s (v - x))`, each
    pixel clipped to the room it has in [0, 1], with the largest :math:`s ≤ 1` at which it is in the
    ball. The squared distance :math:`\sum_i \min(s a_i, r_i)^2` (``a`` the length of the move,
    ``r`` the room, pixel by pixel) is a parabola in ``s`` between the breakpoints
    :math:`r_i / a_i`, so that ``s`` has a closed form once they are sorted.
    """
    center = x.detach().flatten(1).double()
    move = v.detach().flatten(1).double() - center
    length, room = move.abs(), torch.where(move > 0, 1 - center, center)
    breakpoints, order = torch.where(length > 0, room / length, torch.inf).sort(1)
    clipped = F.pad(room.gather(1, order).square().cumsum(1), (1, 0))
    free = F.pad(length.gather(1, order).square().flip(1).cumsum(1).flip(1), (0, 1))
    # At its own breakpoint a pixel is as good as free: comparing there counts the clipped ones.
    at = clipped[:, :-1] + breakpoints.square() * free[:, :-1]
    count = (at < eps**2).sum(1, keepdim=True)
    left = (eps**2 - clipped.gather(1, count)).clamp_min(0)
    s = (left / free.gather(1, count)).sqrt().nan_to_num(1.0).clamp_max(1)
    nearest = center + torch.minimum(s * length, room).copysign(move)
    return nearest.clamp(0, 1).to(x.dtype).view_as(x)


def _warn_of(stuck: Bool[Tensor, " batch"]) -> None:
    count = int(stuck.sum())
    if count:
        warnings.warn(
            f"the model's input gradient is not finite in {count} of {len(stuck)} images; the "
            "attack makes no progress there, and they look more robust than they are",
            RuntimeWarning,
            stacklevel=3,
        )
