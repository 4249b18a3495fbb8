"""A learned factor of bounded size, which sets the Lipschitz constant of a network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stabnet import InvalidInputError, InvalidOptionError
from stabnet.interfaces import Block, Features, Guarantee, check_block_state
from stabnet.values import number, shape

__all__ = ["Scale"]


@final
class Scale(Block):
    r"""Multiplies the state by a learned number within :math:`[-L, L]`.

    .. math:: z \mapsto \operatorname{clamp}(c, -L, L)\, z

    Behind non-expansive blocks it makes a network of Lipschitz constant :math:`L`. The gradient of
    a plain clamp vanishes for all :math:`c` outside of :math:`[-L, L]`, so that a step of the
    optimizer that leaves the interval is the last: the factor stays at the bound, whatever the
    loss. Here the values are those of the clamp, and so is the gradient but for one case: outside,
    it passes if a step against it leads back. So the factor can always return, and no gradient
    pulls ``c`` further away than it is.

    Args:
        state_shape: shape of one state.
        largest: ``L``, the largest size of the factor, positive.
        initial: the factor at first, within ``[−L, L]``; ``None`` for 1, or for ``L`` if it is
            smaller.

    Attributes:
        factor: ``c``, a 0-dimensional parameter, unclamped.
        largest: ``L``, a 0-dimensional buffer, so that networks of different bounds can be stacked
            by :func:`torch.func.stack_module_state`. It is rebuilt from the option, not loaded.

    Raises:
        InvalidOptionError: for an option out of range.

    References:
        [SNN] section 6.1.
    """

    largest: Float[Tensor, ""]

    def __init__(
        self, state_shape: Sequence[int], *, largest: float, initial: float | None = None
    ) -> None:
        super().__init__()
        self.state_shape = shape("state_shape", state_shape)
        bound = number("largest", largest, above=0)
        start = min(1.0, bound) if initial is None else number("initial", initial)
        if abs(start) > bound:
            raise InvalidOptionError(
                f"initial={start:g} is beyond largest={bound:g}, where the factor would be "
                f"clamped from the first; give a number from {-bound:g} to {bound:g}"
            )
        self.register_buffer("largest", _at_most(bound), persistent=False)
        self.factor = nn.Parameter(torch.tensor(start))

    def forward(
        self, z: Float[Tensor, "batch ..."], u: Features = None
    ) -> Float[Tensor, "batch ..."]:
        """Return the scaled state.

        Raises:
            InvalidInputError: for states of another shape.
        """
        check_block_state(z, self.state_shape)
        return self._clamped() * z

    def lipschitz_bound(self) -> float:
        """Return ``|clamp(c, −L, L)|`` as it stands, which is the Lipschitz constant exactly.

        Raises:
            InvalidInputError: if the factor is not a number.
        """
        bound = abs(float(self._clamped().detach()))
        if not math.isfinite(bound):
            raise InvalidInputError(
                f"the learned factor of a scale block is {bound}, so its Lipschitz constant has no "
                "bound; go back to weights from before training diverged"
            )
        return bound

    def guarantees(self) -> list[Guarantee]:
        """Return that distances of states grow at most by the factor ``L``."""
        return [
            Guarantee(
                claim=f"distances between states z grow at most by the factor {self.largest:g}",
                formula="‖clamp(c, −L, L) z − clamp(c, −L, L) w‖ ≤ L ‖z − w‖",
                source="[SNN] section 6.1",
                status="by construction",
                assumptions=("the learned factor is a number", "exact arithmetic"),
            )
        ]

    def extra_repr(self) -> str:
        """Return the bound."""
        return f"largest={self.largest:g}"

    def _clamped(self) -> Float[Tensor, ""]:
        clamped: Tensor = _Clamp.apply(self.factor, self.largest)
        return clamped


def _at_most(bound: float) -> Tensor:
    """Return the largest number of the default precision that is at most a given one."""
    rounded = torch.tensor(bound)
    return torch.where(rounded.double() > bound, rounded.nextafter(torch.zeros(())), rounded)


class _Clamp(torch.autograd.Function):
    """Clamps a number to ``[−L, L]``, and lets gradients through that lead back there."""

    generate_vmap_rule = True

    @staticmethod
    def forward(c: Tensor, largest: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(c, -largest), largest)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        c, largest = ctx.saved_tensors
        # A step of descent goes against the gradient: above L a positive one leads back.
        passes = (c.abs() <= largest) | (c.sign() * gradient > 0)
        return torch.where(passes, gradient, torch.zeros_like(gradient)), None
