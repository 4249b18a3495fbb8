r"""One explicit Euler step along :math:`A^\top \sigma(Az + b)`, its length limited by a norm.

Both kinds of gradient-flow blocks make steps of the length

.. math:: h = \min\Bigl(T, \frac{c}{s_A^2}\Bigr) = \frac{c}{s^2}, \qquad
          s = \max\Bigl(s_A, \sqrt{c / T}\Bigr)

where :math:`s_A` is an estimate of :math:`\|A\|_2`, ``T`` the time to go, and ``c`` the limit that
:math:`h \|A\|_2^2` is kept to. Written by the scale ``s``, the step is

.. math:: h A^\top \sigma(Az + b) = \frac{c}{s} \, A^\top \Bigl(\tfrac{1}{s} \sigma(Az + b)\Bigr)

so that :math:`\|A\|_2^2`, which leaves the range of single precision for weights of 1e20, appears
nowhere; and as ``s`` is positive whatever the weights are, zero weights need no special case.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from stabnet import InvalidInputError
from stabnet.bounds import gamma

from .activations import Activation
from .operators import Operator

__all__ = ["gradient_step", "growth_bound", "step_scale"]


def step_scale(
    norm: Float[Tensor, ""], limit: float, time: float, count: Float[Tensor, ""] | None = None
) -> Float[Tensor, ""]:
    r"""Return the scale ``s`` of steps of length :math:`c/s^2`.

    Args:
        norm: the norm of ``A`` that the steps are made for.
        limit: ``c``.
        time: how long the steps last together at most.
        count: how many there are; one if ``None``.
    """
    least = math.sqrt(limit / time)
    return norm.clamp(min=least) if count is None else torch.maximum(norm, least * count.sqrt())


def gradient_step(
    operator: Operator,
    weight: Tensor,
    bias: Tensor | None,
    activation: Activation,
    scale: Float[Tensor, ""],
    limit: float,
    z: Float[Tensor, "batch ..."],
) -> Float[Tensor, "batch ..."]:
    r"""Return :math:`h A^\top \sigma(Az + b)`, with :math:`h = c/s^2`.

    Args:
        operator: the geometry of ``A``.
        weight: its weights.
        bias: ``b``, one number per hidden feature, or ``None`` for zero.
        activation: ``σ``.
        scale: ``s``; see :func:`step_scale`.
        limit: ``c``.
        z: states ``(batch, *state_shape)``.
    """
    hidden = activation(operator(weight, z, bias)) / scale
    return (limit / scale) * operator.adjoint(weight, hidden)


def growth_bound(
    operator: Operator,
    weight: Tensor,
    activation: Activation,
    scale: Float[Tensor, ""],
    limit: float,
) -> float:
    r"""Return an upper bound of :math:`h L_\sigma \|A\|_2^2`, the Lipschitz constant of a step.

    It is computed in float64. The few numbers that a step is computed with besides the weights
    (``c``, ``s`` and ``c/s``) are rounded in the precision of ``s``; a margin of four units there
    holds for them in whatever order a compiler makes them.

    Args:
        operator: the geometry of ``A``.
        weight: its weights.
        activation: ``σ``, with slopes up to its ``largest_slope``.
        scale: ``s``.
        limit: ``c``.

    Raises:
        InvalidInputError: for weights that are not finite, or so large that nothing is.
    """
    s, norm = float(scale), operator.norm_bound(weight)
    margin = (1 + 4 * torch.finfo(scale.dtype).eps) * (1 + gamma(8))
    growth = (limit / s) * (norm / s) * norm * activation.largest_slope * margin
    if not math.isfinite(s) or not math.isfinite(growth):
        raise InvalidInputError(
            f"weights of norm up to {norm:g}, in steps made for the norm {s:g}, have no finite "
            "Lipschitz bound; call renormalize() where the weights are finite, or go back to "
            "those from before training diverged"
        )
    return growth
