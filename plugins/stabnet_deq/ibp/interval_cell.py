"""The interval extension of a cell: a cell on boxes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, final

from jaxtyping import Float
from torch import Tensor

from stabnet.interfaces import Cell, Features, State

if TYPE_CHECKING:
    from .cell import IBPMonotoneCell

__all__ = ["IntervalCell"]


@final
class IntervalCell(Cell):
    r"""The interval extension ``T`` of an :class:`IBPMonotoneCell`, as a cell in its own right.

    The state is a box ``(lower, upper)`` and so are the features. With the box's center
    :math:`\mu` and radius :math:`r`, and the features' :math:`[c_l, c_h]`,

    .. math:: T_h = \sigma(W\mu + |W| r + c_h), \qquad T_l = \sigma(W\mu - |W| r + c_l),

    which is the smallest box that contains :math:`f(z, u)` for all :math:`z` and :math:`u` in
    theirs, as :math:`\sigma` is non-decreasing. ``T`` is isotone (a larger box has a larger
    image), and in the order of boxes its differences are again bounded by :math:`|W|`: for the
    larger of the differences of both bounds, :math:`e`, that of the images is at most
    :math:`|W| e`. So it has one fixed box, found by plain iteration.

    Args:
        cell: the cell that is extended.

    References:
        Wei, Kolter: "Certified robustness for deep equilibrium models via interval bound
        propagation", 2022; with step one, since for weights dominated as here no smaller one is
        needed.
    """

    state_shape: tuple[tuple[int, ...], ...]

    def __init__(self, cell: IBPMonotoneCell) -> None:
        super().__init__()
        self.cell = cell
        (n,) = cell.state_shape
        self.state_shape = ((n,), (n,))
        self.feature_shape = cell.feature_shape

    def forward(
        self, z: State, u: Features = None
    ) -> tuple[Float[Tensor, "batch n"], Float[Tensor, "batch n"]]:
        """Evaluate ``T`` for boxes ``(lower, upper)`` of states and of features."""
        return self.at(u)(z)  # type: ignore[return-value]

    def at(self, u: Features) -> Callable[[State], State]:
        """Return ``box ↦ T(box, u)``, with ``W`` computed once."""
        assert isinstance(u, tuple)
        c_lower, c_upper = u
        weight, sigma = self.cell.weight(), self.cell.sigma
        magnitude = weight.abs()

        def image(z: State) -> tuple[Tensor, Tensor]:
            lower, upper = z
            center = (lower + upper) / 2 @ weight.T
            radius = (upper - lower) / 2 @ magnitude.T
            return sigma(center - radius + c_lower), sigma(center + radius + c_upper)

        return image
