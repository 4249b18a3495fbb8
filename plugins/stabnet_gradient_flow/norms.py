"""An estimate of an operator's norm for training, never for certificates."""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stabnet.values import whole

from .operators import Operator

__all__ = ["NormEstimate"]

_ROUND_UP = 8
"""Units by which a norm is rounded up: more than can be lost in it and in a step that it sets."""


@final
class NormEstimate(nn.Module):
    r"""The norm of an operator, tracked through training by warm-started power iteration.

    .. math:: v \leftarrow A^\top A v / \|A^\top A v\|, \qquad \hat\sigma = \|Av\| \le \|A\|_2

    In training mode one call makes a few iterations and returns the estimate, differentiable in the
    weights with ``v`` held fixed. It converges *from below*: what follows from it is no guarantee.
    In eval mode nothing is estimated: the last estimate is in a buffer, and evaluation is a fixed
    function. A certificate takes that number as a mere step size, and bounds the norm anew.

    Args:
        operator: the operator.
        weight: its first weights, of which the estimate starts with 20 steps.
        iterations: steps of every call, at least 1.

    Attributes:
        norm: the last estimate, or what :meth:`certify` found, a 0-dimensional buffer.
        vector: ``v``, a buffer.

    Raises:
        InvalidOptionError: for less than one iteration.

    References:
        [SNN] (31).
    """

    norm: Float[Tensor, ""]
    vector: Float[Tensor, "one ..."]

    def __init__(self, operator: Operator, weight: Tensor, iterations: int = 1) -> None:
        super().__init__()
        self.operator = operator
        self.iterations = whole("power_iterations", iterations, 1)
        start = torch.randn(1, *operator.state_shape)
        self.register_buffer("vector", start / start.norm())
        self.register_buffer("norm", torch.ones(()))
        with torch.no_grad():
            self.update(weight.detach(), 20)

    def forward(self, weight: Tensor) -> Float[Tensor, ""]:
        """Return the number that steps are made for; in training mode estimate it first."""
        return self.update(weight, self.iterations) if self.training else self.current(weight)

    def current(self, weight: Tensor) -> Float[Tensor, ""]:
        """Return the number that steps are made for in evaluation, without gradient.

        It is the last estimate; or the largest entry of the weights, which no norm is below,
        where that is greater: then they were edited since, and the estimate may be off by any
        factor, with steps that leave the range of numbers.
        """
        return torch.maximum(self.norm, weight.detach().abs().amax())

    def update(self, weight: Tensor, iterations: int) -> Float[Tensor, ""]:
        """Make a number of iterations, and return the estimate, differentiable in the weights."""
        # Divided by the largest entry, no square of them leaves the range of numbers.
        scale = _or_one(weight.detach().abs().amax())
        scaled = weight / scale
        with torch.no_grad():
            fixed, vector = scaled.detach(), self.vector
            for _ in range(iterations):
                image = self.operator(fixed, vector)
                back = self.operator.adjoint(fixed, image / _or_one(image.norm()))
                length = back.norm()
                vector = torch.where(length > 0, back / _or_one(length), vector)
            self.vector.copy_(vector)
            image = self.operator(fixed, vector)
            direction = image / _or_one(image.norm())
        norm = (direction * self.operator(scaled, vector)).sum() * scale
        with torch.no_grad():
            self.norm.copy_(norm)
        return norm

    @torch.no_grad()
    def certify(self, weight: Tensor) -> float:
        """Put a certified upper bound of the norm into the buffer, and return it.

        It is rounded up by enough that a step computed from it in the precision of the buffer is
        not too long.

        Raises:
            InvalidInputError: for weights that are not finite.
        """
        bound = self.operator.norm_bound(weight)
        self.norm.fill_(bound * (1 + _ROUND_UP * torch.finfo(self.norm.dtype).eps))
        return float(self.norm)


def _or_one(x: Tensor) -> Tensor:
    """Return a number, or one where it is zero, to divide by."""
    return torch.where(x > 0, x, torch.ones_like(x))
