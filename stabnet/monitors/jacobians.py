r"""The Jacobians of layers in their states, at the states that inputs go through.

Singular values say how a layer stretches small differences of states, and its transpose the
gradients that come back. Of a symplectic layer they come in pairs :math:`(s, 1/s)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import InvalidInputError
from ..interfaces import Block, Cell, Features
from ..values import whole
from .layers import Layer, inspected
from .lengths import lengths

__all__ = ["block_norms", "jacobian_norms", "singular_values"]


def singular_values(
    model: nn.Module, x: Float[Tensor, "batch ..."], *, u: Features = None, max_size: int = 1024
) -> list[Float[Tensor, "batch k"]]:
    r"""Return the singular values of the Jacobian of every layer.

    .. math:: \sigma(J_i), \qquad J_i = \frac{\partial z_{i+1}}{\partial z_i}

    exactly, from full Jacobians and one batched decomposition per layer. A layer takes as many
    vector–Jacobian products as its outgoing state has entries.

    Args:
        model: a :class:`stabnet.StabilityModel` or a :class:`stabnet.interfaces.Block`.
        x: inputs ``(batch, *in_shape)`` of the model, or states of the block.
        u: features, for a block that depends on them; a model computes its own.
        max_size: largest number of entries of a state that is accepted. Memory grows with its
            square, times the batch.

    Returns:
        For each layer, ``(batch, k)`` values in descending order, with ``k`` the smaller size of
        its Jacobian; NaN for samples whose Jacobian is not finite.

    Raises:
        InvalidInputError: for a model without layers, inputs that it does not take, states that are
            too large, or layers that couple the samples of a batch in eval mode.

    References:
        [SNN] (23), Figure 4.
    """
    size, found = whole("max_size", max_size, 1), []
    with inspected(model, x, u) as (layers, z, features):
        for layer in layers:
            _check_uncoupled(layer)
            _check_size(z, f"before {layer}", size)
            at = _Linearization((layer,), z, features)
            z = at.out
            _check_size(z, f"behind {layer}", size)
            found.append(_decomposed(torch.stack(list(_rows(at)), 1)))
    return found


def jacobian_norms(
    model: nn.Module,
    x: Float[Tensor, "batch ..."],
    iterations: int = 20,
    *,
    u: Features = None,
) -> Float[Tensor, "layers batch"]:
    r"""Estimate the operator norm of the Jacobian of every layer, from below.

    By power iteration on :math:`J_i^\top J_i`, for states of any size. Its start is random but the
    same in every call. The estimate is a lower bound, up to rounding, and nothing more: it may miss
    a direction that is stretched further. Products with the Jacobian are those with the transpose,
    differentiated: a layer must allow second derivatives.

    Args:
        model: a :class:`stabnet.StabilityModel` or a :class:`stabnet.interfaces.Block`.
        x: inputs ``(batch, *in_shape)`` of the model, or states of the block.
        iterations: at least 1, each a product with the Jacobian and one with its transpose.
        u: features, for a block that depends on them; a model computes its own.

    Returns:
        One estimate for each layer and sample, NaN where the Jacobian is not finite.

    Raises:
        InvalidOptionError: for fewer iterations than one.
        InvalidInputError: for a model without layers, inputs that it does not take, or layers that
            couple the samples of a batch in eval mode or whose gradients cannot be differentiated.
    """
    count, found = whole("iterations", iterations, 1), []
    with inspected(model, x, u) as (layers, z, features):
        for layer in layers:
            z, norm = _power_iteration((layer,), z, features, count)
            found.append(norm)
    return torch.stack(found)


def block_norms(
    block: Block, z: Float[Tensor, "batch ..."], u: Features = None, iterations: int = 20
) -> Float[Tensor, " batch"]:
    """Estimate the operator norm of the Jacobian of one block, from below.

    As :func:`jacobian_norms`, but a block that is a sequence of blocks counts as one map. States
    are stored, also those within chains that recompute theirs.

    Args:
        block: the block.
        z: states ``(batch, *state_shape)``.
        u: features, for a block that depends on them.
        iterations: at least 1.

    Returns:
        One estimate for each state.

    Raises:
        InvalidOptionError: for fewer iterations than one.
        InvalidInputError: for what is no block, states that it does not take, or a block that
            couples the samples of a batch in eval mode or whose gradient cannot be differentiated.
    """
    if not isinstance(block, Block):
        raise InvalidInputError(
            f"a {type(block).__name__} is no block; give a stabnet.interfaces.Block, or use "
            "jacobian_norms for the layers of a model"
        )
    count = whole("iterations", iterations, 1)
    with inspected(block, z, u) as (layers, start, features):
        return _power_iteration(layers, start, features, count)[1]


def _check_uncoupled(layer: Layer) -> None:
    """Raise :class:`stabnet.InvalidInputError` where samples of a batch depend on each other."""
    for m in layer.module.modules():
        coupled = m.running_mean is None if isinstance(m, _BatchNorm) else False
        if coupled or (isinstance(m, Cell) and not m.per_sample):
            raise InvalidInputError(
                f"{layer} has a {type(m).__name__} that couples the samples of a batch even in "
                "eval mode, so that no sample has a Jacobian of its own"
            )


def _check_size(z: Tensor, where: str, size: int) -> None:
    if z[0:1].numel() > size:
        raise InvalidInputError(
            f"the state {where} has {z[0:1].numel()} entries, more than max_size={size} allows for "
            "full Jacobians; use jacobian_norms, which needs none, or raise max_size"
        )


@final
class _Linearization:
    """The Jacobian ``J`` at states of one or more layers in a row, as linear maps.

    By automatic differentiation as in training, which all layers know; not all know ``torch.func``.

    Attributes:
        out: the states behind the layers.
    """

    def __init__(self, layers: Sequence[Layer], z: Tensor, u: Features) -> None:
        self._layers = layers
        with torch.enable_grad():
            self._z = self._out = z.detach().requires_grad_()
            for layer in layers:
                self._out = layer(self._out, u)
        self.out = self._out.detach()

    def pull(self, w: Tensor) -> Tensor:
        """Return ``Jᵀw``."""
        return _gradient(self._out, self._z, w)

    def pushing(self) -> Callable[[Tensor], Tensor]:
        """Return ``v ↦ Jv``: the transpose of ``w ↦ Jᵀw``, which is linear.

        Raises:
            InvalidInputError: if autograd does not know that ``Jᵀw`` depends on ``w``.
        """
        with torch.enable_grad():
            w = torch.ones_like(self.out).requires_grad_()
            pulled = _gradient(self._out, self._z, w, create_graph=True)
        if not pulled.requires_grad and bool(pulled.any()):
            raise InvalidInputError(
                f"gradients through {', '.join(map(str, self._layers))} are not computed by "
                "autograd, and cannot be differentiated; use singular_values, which needs no "
                "second derivatives"
            )
        return lambda v: _gradient(pulled, w, v)


def _gradient(out: Tensor, z: Tensor, w: Tensor, create_graph: bool = False) -> Tensor:
    """Return the gradient of ``⟨out, w⟩`` in ``z``, zero where ``out`` does not depend on it."""
    if not out.requires_grad:
        return torch.zeros_like(z)
    return torch.autograd.grad(
        out, z, w, retain_graph=True, create_graph=create_graph, materialize_grads=True
    )[0]


def _rows(at: _Linearization) -> Iterator[Float[Tensor, "batch n"]]:
    """Yield the rows of the Jacobian of each sample.

    Samples do not depend on each other, so that one product serves all of them. (To vectorize over
    rows would save little beside the decomposition, and not all layers allow it.)
    """
    entries = at.out.flatten(1)
    for k in range(entries.shape[1]):
        # A new one for each row, which may be a view of it.
        direction = torch.zeros_like(entries)
        direction[:, k] = 1
        yield at.pull(direction.view(at.out.shape)).flatten(1)


def _decomposed(jacobian: Float[Tensor, "batch m n"]) -> Float[Tensor, "batch k"]:
    """Return singular values, NaN for a matrix that has none; the others must not suffer by it."""
    finite = jacobian.isfinite().all(2).all(1)
    # Half precision has no decomposition.
    precise = torch.where(finite[:, None, None], jacobian, 0).to(
        torch.promote_types(jacobian.dtype, torch.float32)
    )
    values = torch.linalg.svdvals(precise)
    return torch.where(finite[:, None], values, torch.nan).to(jacobian.dtype)


def _power_iteration(
    layers: Sequence[Layer], z: Tensor, u: Features, iterations: int
) -> tuple[Tensor, Float[Tensor, " batch"]]:
    """Return the state behind layers, and a lower bound of their Jacobian's norm per sample."""
    for layer in layers:
        _check_uncoupled(layer)
    at = _Linearization(layers, z, u)
    push = at.pushing()
    generator = torch.Generator(z.device).manual_seed(0)
    v = _unit(torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device))
    for _ in range(iterations):
        v = _unit(at.pull(_unit(push(v))))
    return at.out, lengths(push(v))


def _unit(v: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
    """Return vectors of length one, and zero for zero."""
    found = lengths(v)
    return v / torch.where(found == 0, 1, found).view(-1, *[1] * (v.ndim - 1))
