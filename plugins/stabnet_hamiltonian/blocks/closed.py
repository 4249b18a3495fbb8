r"""The vector–Jacobian product of the gradient of a one-layer energy, in closed form.

For :math:`v = A^\top y`, :math:`y = \sigma(Ax + b)`, and a gradient ``g`` of ``v``,

.. math:: \delta = \sigma'(Ax + b) \odot Ag, \qquad
          g_x = A^\top \delta, \quad g_b = \delta, \quad g_A = \delta x^\top + y g^\top,

summed over the batch, and for a convolution over the image. Nothing is recorded, which saves most
of the time where states are small.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from ..fields.energy import LayerEnergy

__all__ = ["has_closed_form", "layer_gradient"]

_aten = torch.ops.aten

_Slope = Callable[[Tensor, Tensor, Tensor], Tensor]

_ACTIVATIONS: Mapping[str, tuple[Callable[[Tensor], Tensor], _Slope]] = MappingProxyType(
    {
        "tanh": (torch.tanh, lambda g, a, y: _aten.tanh_backward(g, y)),
        "sigmoid": (torch.sigmoid, lambda g, a, y: _aten.sigmoid_backward(g, y)),
        "relu": (F.relu, lambda g, a, y: _aten.threshold_backward(g, y, 0)),
        "sin": (torch.sin, lambda g, a, y: g * a.cos()),
        "identity": (lambda a: a, lambda g, a, y: g),
    }
)
"""``σ`` and ``(g, a, y) ↦ σ'(a) ⊙ g``, where ``y = σ(a)``."""


def has_closed_form(energy: LayerEnergy, x: Tensor) -> bool:
    """Return whether :func:`layer_gradient` covers the energy, at states of this kind."""
    # Of weights that are computed from others, by a parametrization, autograd knows the gradients;
    # and it is autograd that follows the casts of autocast.
    own = "weight" in energy._parameters and "bias" in energy._parameters
    autocast = torch.is_autocast_enabled(x.device.type)
    return own and not autocast


def layer_gradient(
    energy: LayerEnergy, x: Tensor, others: Sequence[Tensor]
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor | None, ...]]]:
    """Return ``∇E(x)``, and its vector–Jacobian product; called without gradients.

    Args:
        energy: the energy ``E``.
        x: states ``(batch, …)``.
        others: tensors whose gradients are wanted, such as the weight and the bias of the energy.

    Returns:
        The gradient; and the map from a gradient of it to those of ``x`` and of the others.
    """
    weight, bias = energy.weight, energy.bias
    sigma, slope = _ACTIVATIONS[energy.activation]
    dense, padding = weight.ndim == 2, weight.shape[-1] // 2
    if dense:
        a = F.linear(x, weight, bias)
        y = sigma(a)
        value = y @ weight
    else:
        a = F.conv2d(x, weight, bias, padding=padding)
        y = sigma(a)
        value = F.conv_transpose2d(y, weight, padding=padding)

    def pull(g: Tensor) -> tuple[Tensor | None, ...]:
        hidden = F.linear(g, weight) if dense else F.conv2d(g, weight, padding=padding)
        delta = slope(hidden, a, y)
        towards = delta @ weight if dense else F.conv_transpose2d(delta, weight, padding=padding)
        found: list[Tensor | None] = []
        for other in others:
            if other is weight:
                found.append(_products(delta, x, y, g, weight))
            else:
                found.append(delta.sum((0, *range(2, delta.ndim))) if other is bias else None)
        return towards, *found

    return value, pull


def _products(delta: Tensor, x: Tensor, y: Tensor, g: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient of ``⟨δ, Ax⟩ + ⟨y, Ag⟩`` in the weights of ``A``."""
    if weight.ndim == 2:
        return torch.addmm(delta.t() @ x, y.t(), g)
    # As one batch: one convolution over twice as many images takes less time than two.
    images, padding = torch.cat([x, g]), weight.shape[-1] // 2
    found: Tensor = conv2d_weight(images, weight.shape, torch.cat([delta, y]), padding=padding)
    return found
