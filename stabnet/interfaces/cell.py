"""Cells: the maps whose fixed points are equilibria."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .solution import Features, State

__all__ = ["Cell"]


class Cell(nn.Module, ABC):
    r"""A map :math:`f(z, u)`, whose fixed point :math:`z^* = f(z^*, u)` is the equilibrium.

    Its vector field is :math:`f(z, u) - z`; its residual is the norm of that, whatever scheme a
    solver uses to find the fixed point.

    Attributes:
        state_shape: shape of one state, without the batch; for a tuple state, a tuple of shapes.
        feature_shape: shape of one input's features.
    """

    state_shape: tuple[int, ...] | tuple[tuple[int, ...], ...]
    feature_shape: tuple[int, ...]

    @abstractmethod
    def forward(self, z: State, u: Features = None) -> State:
        """Evaluate ``f(z, u)``.

        Args:
            z: state ``(batch, *state_shape)``, or a tuple of such tensors.
            u: features ``(batch, *feature_shape)``.

        Returns:
            The image of ``z``, with its shape.
        """

    def at(self, u: Features) -> Callable[[State], State]:
        """Return the map ``z ↦ f(z, u)`` of these features, to be evaluated many times.

        A cell overrides it to compute once what does not depend on ``z``. The map is valid as long
        as parameters and modes stay as they are.
        """
        return lambda z: self(z, u)

    def pullback(self, z: State, u: Features) -> Callable[[State], State] | None:
        """Return the product ``w ↦ J_zᵀ w`` with the Jacobian at a state, in closed form.

        ``None`` where the cell knows none: it is then computed by automatic differentiation. It is
        called without gradients.
        """
        return None

    @property
    def per_sample(self) -> bool:
        """Whether each sample's image depends on that sample alone.

        Batch normalization in training mode couples the samples: the fixed point is then the
        batch's, and claims about single samples do not hold.
        """
        return not any(
            isinstance(m, _BatchNorm) and (m.training or m.running_mean is None)
            for m in self.modules()
        )
