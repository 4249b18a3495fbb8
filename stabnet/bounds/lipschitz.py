"""Certified upper bounds of the Lipschitz constants of modules, in the l2 norm."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .boxes import NoBoundError
from .convolution import conv2d_norm_bound
from .layers import affine_parameters, check_forward, check_hooks, named
from .spectral import spectral_norm_bound

__all__ = ["lipschitz_bound", "lipschitz_product"]

Shape: TypeAlias = tuple[int, ...]
Bound: TypeAlias = Callable[[Any, Shape], float]
"""Bounds one layer: ``(layer, shape of one input)``."""


def lipschitz_bound(module: nn.Module, shape: Sequence[int]) -> float:
    r"""Return an upper bound of a module's Lipschitz constant in l2, sound in spite of rounding.

    .. math:: \|f(x) - f(y)\|_2 \le L \|x - y\|_2 \quad \text{for all } x, y

    A module bounds itself where it has a method ``lipschitz_bound()``, or ``affine()`` returning
    ``(weight, bias)`` of the map ``z ↦ Wz + b`` that it computes. Torch's own layers are bounded
    here: linear, two-dimensional convolution, batch normalization in eval mode, activations,
    pooling without overlap, reshapes, dropout in eval mode and sequences of all these, whose bound
    is the product.

    >>> net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU())
    >>> _ = nn.init.eye_(net[0].weight)
    >>> 1 <= lipschitz_bound(net, (2,)) < 1 + 1e-12
    True

    Args:
        module: the module, in the mode in which it is meant.
        shape: shape of one input, without the batch.

    Returns:
        The bound, of the map in exact arithmetic with the weights as they stand; nothing is
        cached. It is computed in float64 and rounded up.

    Raises:
        NoBoundError: if no bound is known for the module as it stands, or its own is no number or
            negative.
        InvalidInputError: for weights that are not finite.
    """
    sizes = tuple(int(n) for n in shape)
    for part in module.modules():
        check_unaltered(part)
    own = getattr(module, "lipschitz_bound", None)
    if callable(own):
        bound = float(own())
        if not bound >= 0:
            raise NoBoundError(f"{named(module)} bounds its Lipschitz constant by {bound}")
        return bound
    affine = affine_parameters(module)
    if affine is not None:
        return spectral_norm_bound(affine[0])
    for kind in type(module).__mro__:
        if kind in _LAYERS:
            check_forward(module, kind, "lipschitz_bound()")
            return _LAYERS[kind](module, sizes)
    raise NoBoundError(
        f"no Lipschitz bound is known for {named(module)}; known are Linear, "
        f"{', '.join(kind.__name__ for kind in _LAYERS)}, and modules with a method "
        "lipschitz_bound() or affine()"
    )


def check_unaltered(module: nn.Module) -> None:
    """Raise :class:`NoBoundError` for a module that need not compute what its class does."""
    check_hooks(module)
    if "forward" in module.__dict__:
        raise NoBoundError(
            f"{named(module)} was given a forward of its own, for which no bound is known; delete "
            "that attribute"
        )


def lipschitz_product(bounds: Sequence[float]) -> float:
    """Return an upper bound of a product of bounds, of maps applied one after another.

    Args:
        bounds: numbers that are not negative; infinite ones are allowed. A zero makes the
            product zero: such a map is constant.
    """
    if 0 in bounds:
        return 0.0
    product = 1.0
    for bound in bounds:
        if bound != 1:
            product = math.nextafter(product * bound, math.inf)
    return product


def _sequential(module: nn.Sequential, shape: Shape) -> float:
    bounds = []
    for layer in module:
        bounds.append(lipschitz_bound(layer, shape))
        shape = _out_shape(layer, shape)
    return lipschitz_product(bounds)


def _out_shape(layer: nn.Module, shape: Shape) -> Shape:
    """Return the shape of a layer's output, without running it on numbers or changing it."""
    known = getattr(layer, "out_shape", getattr(layer, "state_shape", None))
    if known is not None:
        return tuple(known)
    twin = copy.deepcopy(layer).eval().to("meta", torch.float32)
    out: Tensor = twin(torch.empty(1, *shape, dtype=torch.float32, device="meta"))
    return tuple(out.shape[1:])


def _one(module: nn.Module, shape: Shape) -> float:
    return 1.0


def _dropout(module: nn.Dropout, shape: Shape) -> float:
    if module.training and module.p > 0:
        raise _refuse(module, "it drops at random in training mode; use module.eval()")
    return 1.0


def _conv2d(module: nn.Conv2d, shape: Shape) -> float:
    if type(module)._conv_forward is not nn.Conv2d._conv_forward:
        raise _refuse(module, "it has a _conv_forward of its own")
    padding: Any = module.padding
    if padding == "valid":
        padding = 0
    if padding == "same":
        reach = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        if any(r % 2 for r in reach):
            raise _refuse(module, "padding='same' is not symmetric for this kernel")
        padding = tuple(r // 2 for r in reach)
    mode: Any = module.padding_mode
    if not any((padding,) if isinstance(padding, int) else padding):
        mode = "zeros"
    return conv2d_norm_bound(
        module.weight,
        shape[1:],
        stride=module.stride,
        padding=padding,
        dilation=module.dilation,
        groups=module.groups,
        padding_mode=mode,
    )


def _batch_norm(module: _BatchNorm, shape: Shape) -> float:
    variance = module.running_var
    if module.training or variance is None:
        raise _refuse(
            module,
            "it normalizes by the statistics of the batch, which couples the samples; use "
            "module.eval(), and track_running_stats=True",
        )
    # One rounding each of sum, root and quotient, and some to spare.
    std = (variance.double() + module.eps).sqrt()
    scale = torch.ones_like(std) if module.weight is None else module.weight.detach().double()
    largest = float((scale.abs() / std).max()) * (1 + 2.0**-50)
    if not math.isfinite(largest):
        raise _refuse(module, "its weights or statistics are not finite, or it divides by zero")
    return largest


def _max_pool(module: nn.MaxPool2d, shape: Shape) -> float:
    size, stride = _pair(module.kernel_size), _pair(module.stride)
    if module.return_indices:
        raise _refuse(module, "it also returns indices; use return_indices=False")
    if any(k > s for k, s in zip(size, stride, strict=True)) or _pair(module.dilation) != (1, 1):
        raise _refuse(module, "its windows overlap, so that one pixel may count several times")
    return 1.0


def _average(module: nn.AvgPool2d, shape: Shape) -> float:
    size, stride = _pair(module.kernel_size), _pair(module.stride)
    if any(k > s for k, s in zip(size, stride, strict=True)):
        raise _refuse(module, "its windows overlap")
    if module.divisor_override or any(_pair(module.padding)) or module.ceil_mode:
        raise _refuse(module, "windows at the border have a divisor of their own")
    return _over_root(math.prod(size))


def _global_average(module: nn.AdaptiveAvgPool2d, shape: Shape) -> float:
    if _pair(module.output_size) != (1, 1):
        raise _refuse(module, "its windows may overlap; use output_size=1, or AvgPool2d")
    return _over_root(math.prod(shape[1:]))


def _over_root(count: int) -> float:
    """Return ``1/√count``, the norm of the average of so many numbers, rounded up."""
    return math.nextafter(1 / math.nextafter(math.sqrt(count), 0.0), math.inf)


def _leaky(module: nn.LeakyReLU, shape: Shape) -> float:
    return _largest_slope(module, float(module.negative_slope))


def _prelu(module: nn.PReLU, shape: Shape) -> float:
    return _largest_slope(module, float(module.weight.detach().abs().max()))


def _elu(module: nn.ELU, shape: Shape) -> float:
    return _largest_slope(module, float(module.alpha))


def _largest_slope(module: nn.Module, below: float) -> float:
    """Return the largest slope of a function whose slopes above zero are at most one."""
    if not math.isfinite(below):
        raise _refuse(module, "its slope is not finite")
    return max(1.0, abs(below))


def _quarter(module: nn.Sigmoid, shape: Shape) -> float:
    return 0.25


def _pair(n: Any) -> tuple[int, ...]:
    return (n, n) if isinstance(n, int) else tuple(n)


def _refuse(module: nn.Module, why: str) -> NoBoundError:
    return NoBoundError(f"no Lipschitz bound is known for {named(module)}: {why}")


_LAYERS: Mapping[type[nn.Module], Bound] = MappingProxyType(
    {
        nn.Sequential: _sequential,
        nn.Identity: _one,
        nn.Flatten: _one,
        nn.Unflatten: _one,
        nn.PixelShuffle: _one,
        nn.PixelUnshuffle: _one,
        nn.Dropout: _dropout,
        nn.Dropout2d: _dropout,
        nn.Conv2d: _conv2d,
        nn.BatchNorm1d: _batch_norm,
        nn.BatchNorm2d: _batch_norm,
        nn.MaxPool2d: _max_pool,
        nn.AvgPool2d: _average,
        nn.AdaptiveAvgPool2d: _global_average,
        nn.ReLU: _one,
        nn.ReLU6: _one,
        nn.Hardtanh: _one,
        nn.Tanh: _one,
        nn.Sigmoid: _quarter,
        nn.LeakyReLU: _leaky,
        nn.PReLU: _prelu,
        nn.ELU: _elu,
    }
)
