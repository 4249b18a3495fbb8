"""Bounds of a classifier's logits, and of the differences between them, over boxes of inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..bounds import (
    NoBoundError,
    add_interval,
    affine_parameters,
    ball,
    bilinear_interval,
    interval,
)
from ..errors import InvalidInputError
from ..model import StabilityModel
from ._classifier import check_labels

__all__ = ["interval_logits", "margin_bounds"]


def interval_logits(
    model: nn.Module,
    lower: Float[Tensor, "batch ..."],
    upper: Float[Tensor, "batch ..."],
    *,
    sound: bool = False,
) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, "batch classes"]]:
    """Return bounds of a model's outputs over boxes of inputs.

    Args:
        model: a :class:`stabnet.StabilityModel` all of whose parts can be bounded, or another
            module that can; see :func:`stabnet.bounds.interval`.
        lower: lower bounds of the inputs.
        upper: upper bounds of the inputs.
        sound: round outwards in float64; see :mod:`stabnet.bounds`. Otherwise the bounds are
            differentiable.

    Raises:
        NoBoundError: names the part that cannot be bounded.
        InvalidInputError: for inputs of another shape than the model's, or bounds that are none.
    """
    _check_shape(model, lower)
    return _carry(_stages(model), lower, upper, sound)


def margin_bounds(
    model: nn.Module,
    x: Float[Tensor, "batch ..."],
    y: Int[Tensor, " batch"],
    eps: float,
    *,
    sound: bool = False,
) -> Float[Tensor, "batch classes"]:
    r"""Return lower bounds of how far the true class's logit is above every other one.

    .. math:: \underline m_j \le \min_{\|x' - x\|_\infty \le \epsilon,\; x' \in [0, 1]^n}
              f_y(x') - f_j(x')

    Where all are positive (but the one of ``y`` itself, which is 0), no such input is classified
    as another class. Their negative, taken as logits, is the worst case to train against:
    ``cross_entropy(-margins, y)``.

    If the model ends in an affine map :math:`z \mapsto Wz + b`, the bound is that of
    :math:`(w_y - w_j)^\top z + b_y - b_j` over the box of its inputs, which is tighter than the
    difference of the bounds of both logits.

    Args:
        model: as of :func:`interval_logits`, with at least two outputs.
        x: images in [0, 1].
        y: their true labels.
        eps: radius, at least 0, in pixel units.
        sound: round outwards in float64; see :mod:`stabnet.bounds`. Otherwise the bounds are
            differentiable, and hold up to rounding.

    Returns:
        The bounds; :math:`-\infty` where a sound one is not known.

    Raises:
        NoBoundError: names the part that cannot be bounded.
        InvalidInputError: for inputs out of range, or labels that do not fit.
        InvalidOptionError: for a radius that is negative or not finite.

    References:
        Gowal et al.: "On the effectiveness of interval bound propagation for training verifiably
        robust models", 2018, section 3, "elision of the last layer".
    """
    _check_shape(model, x)
    *before, last = _unrolled(_stages(model))
    box = _carry(before, *ball(x, eps, minimum=0.0, maximum=1.0, sound=sound), sound)
    affine = affine_parameters(last)
    if affine is None:
        lower, upper = interval(last, *box, sound=sound)
        check_labels(lower, y)
        own = lower.gather(1, y[:, None]).expand_as(lower)
        margins, _ = add_interval((own, own), (-upper, -lower), sound=sound)
    else:
        margins = _elided(*box, *affine, y, sound)
    return margins.masked_fill(F.one_hot(y, margins.shape[1]).bool(), 0.0)


def _elided(
    lower: Tensor, upper: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, sound: bool
) -> Tensor:
    """Return the margins where the last map is ``z ↦ Wz + b``."""
    if sound:
        weight = weight.detach().double()
        bias = None if bias is None else bias.detach().double()
    check_labels(weight.T, y)
    # One matrix product gives the margins of every class over every other; of every sample's own
    # class instead, where samples are fewer. Each sample's are picked from it.
    classes, samples = (torch.arange(len(t), device=y.device) for t in (weight, y))
    owners, place = (classes, y) if len(classes) <= len(y) else (y, samples)
    differences = (weight[owners][:, None] - weight).flatten(0, 1)
    offsets = None if bias is None else (bias[owners][:, None] - bias).flatten()
    # One term for the bias, and one since the differences are rounded themselves.
    terms = weight.shape[1] + 2
    least, _ = bilinear_interval(
        F.linear, lower, upper, differences, offsets, terms=terms, sound=sound
    )
    margins: Tensor = least.unflatten(1, (len(owners), len(classes)))[samples, place]
    return margins


def _carry(
    modules: Iterable[nn.Module], lower: Tensor, upper: Tensor, sound: bool
) -> tuple[Tensor, Tensor]:
    for module in modules:
        lower, upper = interval(module, lower, upper, sound=sound)
    return lower, upper


def _stages(model: nn.Module) -> tuple[nn.Module, ...]:
    """Return the parts that a model applies one after another."""
    if not isinstance(model, StabilityModel):
        return (model,)
    if model._forward_hooks or model._forward_pre_hooks:
        raise NoBoundError("the model has forward hooks, which may change what it computes")
    return model.normalize, model.backbone, model.dynamics, nn.Flatten(), model.head


def _unrolled(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """Yield the layers of plain sequences one by one, so that the last layer is seen."""
    for module in modules:
        hooked = module._forward_hooks or module._forward_pre_hooks
        if type(module) is nn.Sequential and len(module) and not hooked:
            yield from _unrolled(module)
        else:
            yield module


def _check_shape(model: nn.Module, x: Tensor) -> None:
    if isinstance(model, StabilityModel) and tuple(x.shape[1:]) != model.in_shape:
        raise InvalidInputError(
            f"inputs have shape {tuple(x.shape)}; the model takes (batch, "
            f"{', '.join(map(str, model.in_shape))})"
        )
