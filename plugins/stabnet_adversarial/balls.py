"""Balls around images, cut to [0, 1]: what an attack moves in. Every image has its own radius."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["Ball", "L2Ball", "LinfBall", "ball"]


class Ball(ABC):
    """The images in [0, 1] that are near given ones.

    Args:
        center: images ``(batch, …)`` in [0, 1].
        radius: one radius per image ``(batch,)``, at least 0.
    """

    def __init__(self, center: Float[Tensor, "batch ..."], radius: Float[Tensor, " batch"]) -> None:
        self.center, self.radius = center, radius

    def lengths(self, length: Float[Tensor, " batch"]) -> Float[Tensor, "batch ..."]:
        """Return one number per image in the shape and dtype that multiplies images."""
        return length.to(self.center.dtype).view(-1, *[1] * (self.center.ndim - 1))

    def start(self) -> Float[Tensor, "batch ..."]:
        """Return one random point per image, from torch's global random numbers."""
        return self.nearest(self.center + self.draw())

    @abstractmethod
    def draw(self) -> Float[Tensor, "batch ..."]:
        """Return one draw per image from the uniform distribution on the ball around 0."""

    @abstractmethod
    def nearest(self, v: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """Return the point of each ball that is nearest to ``v``."""

    @abstractmethod
    def ascent(
        self, gradient: Float[Tensor, "batch ..."]
    ) -> tuple[Float[Tensor, "batch ..."], Bool[Tensor, " batch"]]:
        """Return the move of norm 1 that raises the loss most, and which gradients are finite.

        Where the gradient is 0 or not finite the move is 0.
        """


@final
class LinfBall(Ball):
    """The images within the radius in every pixel."""

    def draw(self) -> Float[Tensor, "batch ..."]:
        """Return one draw per image from the uniform distribution on the ball around 0."""
        return self.lengths(self.radius) * (2 * torch.rand_like(self.center) - 1)

    def nearest(self, v: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """Return the point of each ball that is nearest to ``v``, pixel by pixel."""
        center, radius = self.center.double(), self.radius.double()
        radius = radius.view(-1, *[1] * (v.ndim - 1))
        nearest = torch.clamp(v.double(), center - radius, center + radius).clamp(0, 1)
        return _rounded_inwards(nearest, self.center)

    def ascent(
        self, gradient: Float[Tensor, "batch ..."]
    ) -> tuple[Float[Tensor, "batch ..."], Bool[Tensor, " batch"]]:
        """Return the sign of the gradient, and which gradients are finite."""
        rows = gradient.flatten(1)
        finite = rows.isfinite().all(1)
        move = torch.where(finite[:, None], rows.sign(), 0)
        return move.view_as(gradient), finite


@final
class L2Ball(Ball):
    """The images within the radius in Euclidean distance."""

    def draw(self) -> Float[Tensor, "batch ..."]:
        """Return one draw per image from the uniform distribution on the ball around 0."""
        direction, _ = self.ascent(torch.randn_like(self.center))
        u = torch.rand(len(direction), dtype=direction.dtype, device=direction.device)
        share = u ** (1 / self.center[0].numel())
        return direction * self.lengths(self.radius) * self.lengths(share)

    def nearest(self, v: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        r"""Return the point of each ball that is nearest to ``v``.

        By the conditions of Karush, Kuhn and Tucker it is :math:`x + \mathrm{clip}(s (v - x))`,
        each pixel clipped to the room it has in [0, 1], with the largest :math:`s ≤ 1` at which it
        is in the ball. The squared distance :math:`\sum_i \min(s a_i, r_i)^2` (``a`` the length of
        the move, ``r`` the room, pixel by pixel) is a parabola in ``s`` between the breakpoints
        :math:`r_i / a_i`, so that ``s`` has a closed form once they are sorted.
        """
        center = self.center.flatten(1).double()
        square = self.radius.double().square()[:, None]
        move = v.flatten(1).double() - center
        length, room = move.abs(), torch.where(move > 0, 1 - center, center)
        breakpoints, order = torch.where(length > 0, room / length, torch.inf).sort(1)
        clipped = F.pad(room.gather(1, order).square().cumsum(1), (1, 0))
        free = F.pad(length.gather(1, order).square().flip(1).cumsum(1).flip(1), (0, 1))
        # At its own breakpoint a pixel is as good as free: comparing there counts the clipped ones.
        at = clipped[:, :-1] + breakpoints.square() * free[:, :-1]
        count = (at < square).sum(1, keepdim=True)
        left = (square - clipped.gather(1, count)).clamp_min(0)
        s = (left / free.gather(1, count)).sqrt().nan_to_num(1.0).clamp_max(1)
        nearest = center + torch.minimum(s * length, room).copysign(move)
        return _rounded_inwards(nearest.clamp(0, 1).view_as(v), self.center)

    def ascent(
        self, gradient: Float[Tensor, "batch ..."]
    ) -> tuple[Float[Tensor, "batch ..."], Bool[Tensor, " batch"]]:
        """Return the gradient at length 1 however small it is, and which gradients are finite."""
        rows = gradient.flatten(1)
        largest = rows.abs().amax(1, keepdim=True)  # dividing by it first keeps squares in range
        finite = largest.isfinite()
        scaled = torch.where(finite & (largest > 0), rows / largest, 0)
        length = torch.linalg.vector_norm(scaled, dim=1, keepdim=True).clamp_min(1)
        return (scaled / length).view_as(gradient), finite.squeeze(1)


def _rounded_inwards(
    exact: Float[Tensor, "batch ..."], center: Float[Tensor, "batch ..."]
) -> Float[Tensor, "batch ..."]:
    """Return points in the dtype of the images, no pixel farther from its center than it was.

    What tests a certificate must not be outside of the ball by rounding.
    """
    rounded = exact.to(center.dtype)
    beyond = (rounded.double() - center.double()).abs() > (exact - center.double()).abs()
    return torch.where(beyond, rounded.nextafter(center), rounded)


def ball(
    norm: Literal["linf", "l2"],
    center: Float[Tensor, "batch ..."],
    radius: Float[Tensor, " batch"],
) -> Ball:
    """Return the balls of a norm around images."""
    return (L2Ball if norm == "l2" else LinfBall)(center, radius)
