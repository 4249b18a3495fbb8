"""Forward-mode products that have right gradients, also through normalization layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["jvp"]


def jvp(function: Callable[[Tensor], Tensor], z: Tensor, velocity: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return a function's value and :math:`J(z)\,v`, both with right gradients.

    torch's own product is right, but not its gradient where the function normalizes by statistics
    of its input: batch normalization in training mode, instance and layer normalization. Their
    fused forward derivative takes the saved mean and deviation for constants (seen in torch 2.15).
    Here these layers are computed in elementary operations instead, and update no running
    statistics.

    Args:
        function: the function; layers that it calls must not be compiled or scripted.
        z: where it is differentiated.
        velocity: ``v``, with the shape and dtype of ``z``.
    """
    with _Elementary():  # and forward mode takes no expanded tensors
        product = torch.func.jvp(function, (z.contiguous(),), (velocity.contiguous(),))
    return product[0], product[1]


class _Elementary(TorchFunctionMode):
    """Computes normalization by statistics of the input in elementary operations."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        replacement = _REPLACED.get(func)
        return (replacement or func)(*args, **(kwargs or {}))


def _normalized(x: Tensor, dims: list[int], eps: float) -> Tensor:
    """Return ``x`` with mean 0 and variance 1 over the given dimensions."""
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    variance, mean = torch.var_mean(wide, dims, correction=0, keepdim=True)
    return (wide - mean) * (variance + eps).rsqrt()


def _scaled(x: Tensor, weight: Tensor | None, bias: Tensor | None, like: Tensor) -> Tensor:
    x = x if weight is None else x * weight
    x = x if bias is None else x + bias
    return x.to(like.dtype)


def _per_channel(parameter: Tensor | None, x: Tensor) -> Tensor | None:
    return None if parameter is None else parameter.view(-1, *[1] * (x.ndim - 2))


# With the signatures of torch.nn.functional.


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, eps=eps)
    dims = [d for d in range(input.ndim) if d != 1]
    scale, shift = _per_channel(weight, input), _per_channel(bias, input)
    return _scaled(_normalized(input, dims, eps), scale, shift, input)


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not use_input_stats:
        return F.instance_norm(input, running_mean, running_var, weight, bias, False, eps=eps)
    scale, shift = _per_channel(weight, input), _per_channel(bias, input)
    return _scaled(_normalized(input, list(range(2, input.ndim)), eps), scale, shift, input)


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    dims = list(range(-len(normalized_shape), 0))
    return _scaled(_normalized(input, dims, eps), weight, bias, input)


_REPLACED: Mapping[Callable[..., Any], Callable[..., Tensor]] = {
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    F.layer_norm: _layer_norm,
}
