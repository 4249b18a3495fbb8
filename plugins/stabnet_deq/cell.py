"""The cell of the LyaDEQ paper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stabnet import InvalidOptionError
from stabnet.interfaces import Cell, Features, State

__all__ = ["DEQCell"]


@final
class DEQCell(Cell):
    r"""Two linear layers with ReLU and batch normalization, driven by the features.

    .. math:: f(z, u) = \mathrm{BN}(\mathrm{ReLU}(u + W_2 q + b_2)), \qquad
              q = \mathrm{BN}(\mathrm{ReLU}(W_1 z + b_1))

    Batch normalization in training mode couples the samples: the equilibrium is then the batch's.
    In evaluation mode each sample has its own.

    Args:
        state_shape: ``(n,)``.
        feature_shape: the same, since features are added to the state.
        hidden: width of the inner layer; ``n`` if ``None``.
        weight_scale: factor on PyTorch's default initialization of both weights. Normalization
            undoes the scale of the state, so the map contracts where the features outweigh
            ``W₂ q``; at the default scale of one the first batches have no equilibrium to find.

    Raises:
        InvalidOptionError: for states that are not vectors, or features of another shape.

    References:
        [LyaDEQ] (11). The paper does not give the initialization; the factor is ours.
    """

    def __init__(
        self,
        state_shape: Sequence[int],
        feature_shape: Sequence[int],
        hidden: int | None = None,
        weight_scale: float = 0.03,
    ) -> None:
        super().__init__()
        self.state_shape, self.feature_shape = tuple(state_shape), tuple(feature_shape)
        if len(self.state_shape) != 1 or self.state_shape != self.feature_shape:
            raise InvalidOptionError(
                f"the deq cell adds features to a state vector: both need one shape (n,); got "
                f"states {self.state_shape} and features {self.feature_shape}. Choose a backbone "
                "with vector features, such as 'linear' or 'resnet20'"
            )
        size = self.state_shape[0]
        width = size if hidden is None else hidden
        self.inner, self.inner_norm = nn.Linear(size, width), nn.BatchNorm1d(width)
        self.outer, self.outer_norm = nn.Linear(width, size), nn.BatchNorm1d(size)
        for layer in (self.inner, self.outer):
            layer.weight.data.mul_(weight_scale)

    def forward(self, z: State, u: Features = None) -> Float[Tensor, "batch n"]:
        """Evaluate ``f(z, u)`` for states and features ``(batch, n)``."""
        q = self.inner_norm(self.inner(z).relu())
        image: Tensor = self.outer_norm((u + self.outer(q)).relu())
        return image

    def at(self, u: Features) -> Callable[[State], State]:
        """Return ``z ↦ f(z, u)``; in evaluation mode normalization is folded into the weights."""
        assert isinstance(u, Tensor)
        if not self._folds(u):
            return lambda z: self(z, u)
        offset, weight, scale, shift = self._fold(u)
        inner_weight, inner_bias = self.inner.weight.T, self.inner.bias

        def f(z: State) -> State:
            assert isinstance(z, Tensor)
            q = torch.addmm(inner_bias, z, inner_weight).relu_()
            return torch.addcmul(shift, torch.addmm(offset, q, weight).relu_(), scale)

        return f

    def pullback(self, z: State, u: Features) -> Callable[[State], State] | None:
        """Return ``w ↦ W₁ᵀ D₁ W₂ᵀ D₂ w`` in evaluation mode, normalization folded in."""
        assert isinstance(z, Tensor)
        assert isinstance(u, Tensor)
        if not self._folds(u):
            return None
        offset, weight, scale, _ = self._fold(u)
        q = torch.addmm(self.inner.bias, z, self.inner.weight.T).relu_()
        outer_slope = (torch.addmm(offset, q, weight) > 0) * scale
        inner_slope, inner_weight, weight = (q > 0).to(q.dtype), self.inner.weight, weight.T

        def pull(w: State) -> State:
            assert isinstance(w, Tensor)
            return ((w * outer_slope) @ weight).mul_(inner_slope) @ inner_weight

        return pull

    def _folds(self, u: Tensor) -> bool:
        # Half precision would round folded weights to those of another map.
        half = torch.is_autocast_enabled(u.device.type) or torch.finfo(u.dtype).bits < 32
        return not half and self.per_sample

    def _fold(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return offset and weight of the outer layer, and scale and shift of its normalization.

        The inner normalization is folded into the former two.
        """
        inner_scale, inner_shift = _affine(self.inner_norm)
        offset = u + torch.addmv(self.outer.bias, self.outer.weight, inner_shift)
        return offset, (self.outer.weight * inner_scale).T, *_affine(self.outer_norm)


def _affine(norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Return scale and shift of a normalization in evaluation mode."""
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    scale = norm.weight * torch.rsqrt(variance + norm.eps)
    return scale, torch.addcmul(norm.bias, mean, scale, value=-1)
