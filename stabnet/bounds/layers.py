"""Boxes through modules: which layers can be bounded, and the one function that does it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .affine import batch_norm_interval, conv2d_interval, linear_interval
from .boxes import Box, NoBoundError, check_box, in_double, known_where, ordered
from .monotone import monotone_interval, softplus_interval
from .rounding import TINY, gamma, round_down, round_up

__all__ = ["affine_parameters", "interval"]

Bound: TypeAlias = Callable[[Any, Tensor, Tensor, bool], Box]
"""Bounds one layer: ``(layer, lower, upper, sound)``."""


def interval(
    module: nn.Module,
    lower: Float[Tensor, "batch ..."],
    upper: Float[Tensor, "batch ..."],
    *,
    sound: bool = False,
) -> tuple[Float[Tensor, "batch ..."], Float[Tensor, "batch ..."]]:
    """Return bounds of a module's outputs over a box of inputs.

    A module bounds itself where it has a method ``interval(lower, upper, *, sound=False)``, or
    ``affine()`` returning ``(weight, bias)`` of the map ``z ↦ Wz + b`` that it computes. Torch's
    own layers are bounded here: linear, two-dimensional convolution, batch normalization in eval
    mode, PReLU, ReLU and other activations that do not decrease, pooling, flatten, dropout in eval
    mode and sequences of all these.

    Sound bounds may be infinite, going in and coming out: then nothing is known of that entry.

    Args:
        module: the module, in the mode in which it is meant.
        lower: lower bounds of its input.
        upper: upper bounds of its input.
        sound: round outwards in float64; see :mod:`stabnet.bounds`.

    Returns:
        Lower and upper bounds of its output.

    Raises:
        NoBoundError: if no bound is known for the module as it stands.
        InvalidInputError: for NaN, a lower bound above an upper one, or an infinite bound where
            ``sound`` is false.
    """
    check_box(lower, upper, finite=not sound)
    return _bounded(module, lower, upper, sound)


def affine_parameters(module: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """Return ``(W, b)`` of a module that computes ``z ↦ Wz + b``; ``None`` for any other.

    That is a linear layer, or a module that says so by a method ``affine() -> (weight, bias)``.
    """
    check_hooks(module)
    own = getattr(module, "affine", None)
    if callable(own):
        weight, bias = own()
        return weight, bias
    if not isinstance(module, nn.Linear):
        return None
    check_forward(module, nn.Linear, "affine()")
    return module.weight, module.bias


def _bounded(module: nn.Module, lower: Tensor, upper: Tensor, sound: bool) -> Box:
    check_hooks(module)
    own = getattr(module, "interval", None)
    if callable(own):
        return _own_interval(module, own, lower, upper, sound)
    affine = affine_parameters(module)
    if affine is not None:
        return linear_interval(lower, upper, *affine, sound=sound)
    for kind in type(module).__mro__:
        if kind in _LAYERS:
            check_forward(module, kind, "interval(lower, upper, *, sound=False)")
            return _LAYERS[kind](module, lower, upper, sound)
    raise NoBoundError(
        f"no interval bound is known for {named(module)}; known are {_KNOWN}, and modules with a "
        "method interval(lower, upper, *, sound=False) or affine()"
    )


def named(module: nn.Module) -> str:
    """Return how messages name a module: on one line, with its options if they fit there."""
    first, *more = repr(module).splitlines()
    return f"{type(module).__name__}" if more else first


def _own_interval(
    module: nn.Module, own: Callable[..., Box], lower: Tensor, upper: Tensor, sound: bool
) -> Box:
    if "sound" in inspect.signature(own).parameters:
        return own(lower, upper, sound=sound)
    if sound:
        raise NoBoundError(
            f"{type(module).__name__}.interval takes no `sound`, so nothing is known of its "
            "rounding; give it the signature interval(lower, upper, *, sound=False)"
        )
    return own(lower, upper)


def check_forward(module: nn.Module, kind: type[nn.Module], method: str) -> None:
    """Raise if a layer computes something else than its class says.

    Args:
        module: the layer.
        kind: the class of torch's that it is taken for.
        method: what would bound it all the same.

    Raises:
        NoBoundError: says what to do.
    """
    if type(module).forward is not kind.forward or "forward" in module.__dict__:
        raise NoBoundError(
            f"{type(module).__name__} is a {kind.__name__} with a forward of its own, for which no "
            f"bound is known; give it a method {method}"
        )


def check_hooks(module: nn.Module) -> None:
    """Raise :class:`NoBoundError` for a module with forward hooks."""
    if module._forward_hooks or module._forward_pre_hooks:
        raise NoBoundError(
            f"{named(module)} has forward hooks, which may change what it computes; remove them "
            "(for spectral_norm and weight_norm use those of torch.nn.utils.parametrizations)"
        )


def _refuse(module: nn.Module, why: str) -> NoBoundError:
    return NoBoundError(f"no interval bound is known for {named(module)}: {why}")


def _sequential(module: nn.Sequential, lower: Tensor, upper: Tensor, sound: bool) -> Box:
    for layer in module:
        lower, upper = _bounded(layer, lower, upper, sound)
    return lower, upper


def _identity(module: nn.Module, lower: Tensor, upper: Tensor, sound: bool) -> Box:
    return _exact(lambda x: x, lower, upper, sound)


def _exact(f: Callable[[Tensor], Tensor], lower: Tensor, upper: Tensor, sound: bool) -> Box:
    """Bound a function that does not decrease in any input, and does not round."""
    if sound:
        lower, upper = in_double(lower, upper)
    return f(lower), f(upper)


def _selection(module: nn.Module, lower: Tensor, upper: Tensor, sound: bool) -> Box:
    if getattr(module, "return_indices", False):
        raise _refuse(module, "it also returns indices; use return_indices=False")
    return _exact(module, lower, upper, sound)


def _dropout(module: nn.Dropout, lower: Tensor, upper: Tensor, sound: bool) -> Box:
    if module.training and module.p > 0:
        raise _refuse(module, "it drops at random in training mode; use module.eval()")
    return _identity(module, lower, upper, sound)


def _conv2d(module: nn.Conv2d, lower: Tensor, upper: Tensor, sound: bool) -> Box:
    padding: Any = module.padding
    if module.padding_mode != "zeros":
        # The copies of one pixel are bounded as if they were several: soundly, if not tightly.
        amounts = module._reversed_padding_repeated_twice
        lower, upper = (F.pad(x, amounts, module.padding_mode) for x in (lower, upper))
        padding = 0
    return conv2d_interval(
        lower,
        upper,
        module.weight,
        module.bias,
        stride=module.stride,
        padding=padding,
        dilation=module.dilation,
        groups=module.groups,
        sound=sound,
    )


def _batch_norm(module: _BatchNorm, lower: Tensor, upper: Tensor, sound: bool) -> Box:
    mean, variance = module.running_mean, module.running_var
    if module.training or mean is None or variance is None:
        raise _refuse(
            module,
            "it normalizes by the statistics of the batch, which couples the samples; use "
            "module.eval(), and track_running_stats=True",
        )
    scale = module.weight, module.bias
    return batch_norm_interval(lower, upper, mean, variance, *scale, eps=module.eps, sound=sound)


def _average(module: nn.Module, lower: Tensor, upper: Tensor, sound: bool) -> Box:
    if (getattr(module, "divisor_override", None) or 1) < 0:
        raise _refuse(module, "a negative divisor turns the average around")
    if not sound:
        return module(lower), module(upper)
    lower, upper = in_double(lower, upper)
    # A window holds at most all pixels of an image, and the division rounds once more.
    error = 2 * gamma(lower[0].numel() + 1)
    size = error * module(lower.abs()), error * module(upper.abs())
    least, most = module(lower) - size[0], module(upper) + size[1]
    return round_down(least - TINY), round_up(most + TINY)


def _activation(ulps: int | None = None) -> Bound:
    """Return how to bound an activation that does not decrease."""
    options = {} if ulps is None else {"ulps": ulps}

    def bound(module: nn.Module, lower: Tensor, upper: Tensor, sound: bool) -> Box:
        if getattr(module, "negative_slope", 0) < 0:
            raise _refuse(module, "it decreases for negative inputs")
        return monotone_interval(_out_of_place(module), lower, upper, sound=sound, **options)

    return bound


def _elu(module: nn.ELU, lower: Tensor, upper: Tensor, sound: bool) -> Box:
    alpha = float(module.alpha)
    if alpha < 0:
        raise _refuse(module, "it decreases for negative inputs")

    def exact(x: Tensor) -> Tensor:
        """Evaluate it by ``expm1``: older versions of torch round ``exp(x) − 1`` near zero."""
        return torch.where(x > 0, x, alpha * torch.expm1(x.clamp(max=0)))

    return monotone_interval(exact if sound else _out_of_place(module), lower, upper, sound=sound)


def _out_of_place(module: nn.Module) -> Callable[[Tensor], Tensor]:
    inplace = getattr(module, "inplace", False)
    return (lambda x: module(x.clone())) if inplace else module


def _prelu(module: nn.PReLU, lower: Tensor, upper: Tensor, sound: bool) -> Box:
    slope: Tensor = module.weight
    if sound:
        lower, upper, slope = in_double(lower, upper, slope)
    if slope.numel() > 1:
        slope = slope.view(-1, *[1] * (lower.ndim - 2))
    a, b = (torch.where(x < 0, slope * x, x) for x in (lower, upper))
    least, most = ordered(a, b)
    # Where the slope is negative the function turns at zero, its least value there.
    least = torch.where((lower < 0) & (upper > 0), least.clamp(max=0), least)
    if not sound:
        return least, most
    known = ~(a.isnan() | b.isnan())
    return known_where(known, round_down(least) - TINY, round_up(most) + TINY)


def _softplus(module: nn.Softplus, lower: Tensor, upper: Tensor, sound: bool) -> Box:
    if module.beta <= 0 or module.threshold < 0:
        raise _refuse(module, "beta must be positive and threshold at least 0")
    beta, threshold = float(module.beta), float(module.threshold)
    return softplus_interval(lower, upper, beta=beta, threshold=threshold, sound=sound)


_LAYERS: Mapping[type[nn.Module], Bound] = MappingProxyType(
    {
        nn.Sequential: _sequential,
        nn.Identity: _identity,
        nn.Flatten: _selection,
        nn.Unflatten: _selection,
        nn.Dropout: _dropout,
        nn.Dropout2d: _dropout,
        nn.Conv2d: _conv2d,
        nn.BatchNorm1d: _batch_norm,
        nn.BatchNorm2d: _batch_norm,
        nn.MaxPool2d: _selection,
        nn.AdaptiveMaxPool2d: _selection,
        nn.AvgPool2d: _average,
        nn.AdaptiveAvgPool2d: _average,
        nn.ReLU: _activation(ulps=0),
        nn.Hardtanh: _activation(ulps=0),
        nn.ReLU6: _activation(ulps=0),
        nn.LeakyReLU: _activation(ulps=1),
        nn.PReLU: _prelu,
        nn.ELU: _elu,
        nn.Sigmoid: _activation(),
        nn.Tanh: _activation(),
        nn.Softplus: _softplus,
    }
)

_KNOWN = ", ".join(["Linear", *(kind.__name__ for kind in _LAYERS)])
