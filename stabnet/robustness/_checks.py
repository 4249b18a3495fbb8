"""What an attack may be given, and what it may return."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..checks import check_finite
from ..errors import InvalidInputError, StabnetError

__all__ = ["AttackError", "check_images", "check_logits", "check_perturbation", "perturbation"]


class AttackError(StabnetError, RuntimeError):
    """An attack that could not run on a model, or that broke its own rules."""


def check_images(x: Float[Tensor, "batch ..."], y: Int[Tensor, " batch"]) -> None:
    """Raise unless the inputs are images in [0, 1] with one class label each.

    Half precision is refused: bfloat16 cannot hold a step of 1/255 near 1.

    Args:
        x: images ``(batch, …)``, float32 or float64, in [0, 1].
        y: class labels ``(batch,)``, integers from 0.

    Raises:
        InvalidInputError: says what is wrong with the images or the labels.
    """
    if x.dtype not in (torch.float32, torch.float64):
        raise InvalidInputError(
            f"images have dtype {x.dtype}; an attack needs float32 or float64, in [0, 1]. "
            "Divide 8-bit images by 255; for half precision keep the images in float32 and run "
            "the model under autocast"
        )
    if x.ndim < 2 or x.numel() == 0:
        raise InvalidInputError(
            f"images have shape {tuple(x.shape)}; expected (batch, …), and at least one image"
        )
    check_finite(x, "the batch of images")
    low, high = float(x.min()), float(x.max())
    if low < 0 or high > 1:
        raise InvalidInputError(
            f"images range from {low:.4g} to {high:.4g}; expected [0, 1]. An attack acts on "
            "pixels: leave them unnormalized and let the model normalize inside"
        )
    if y.shape != x.shape[:1] or y.is_floating_point() or y.dtype == torch.bool:
        raise InvalidInputError(
            f"labels have shape {tuple(y.shape)} and dtype {y.dtype}; expected one integer class "
            f"per image, shape {tuple(x.shape[:1])}"
        )
    if int(y.min()) < 0:
        raise InvalidInputError(f"labels go down to {int(y.min())}; classes count from 0")


def check_logits(logits: Float[Tensor, "batch classes"], y: Int[Tensor, " batch"]) -> None:
    """Raise unless a model returned one row of logits per image, with a column for every label.

    Args:
        logits: what the model returned.
        y: class labels ``(batch,)``.

    Raises:
        InvalidInputError: if the shapes do not fit.
    """
    if logits.ndim != 2 or logits.shape[0] != y.shape[0]:
        raise InvalidInputError(
            f"the model returned shape {tuple(logits.shape)} for {y.shape[0]} images; "
            "expected logits (batch, classes)"
        )
    if int(y.max()) >= logits.shape[1]:
        raise InvalidInputError(
            f"labels go up to {int(y.max())}, but the model has {logits.shape[1]} classes "
            f"(0 to {logits.shape[1] - 1}). Check that model and data belong together"
        )


def perturbation(
    x_adv: Float[Tensor, "batch ..."],
    x: Float[Tensor, "batch ..."],
    norm: Literal["linf", "l2"],
) -> Float[Tensor, " batch"]:
    """Return the norm of ``x_adv − x`` per image, computed in float64.

    Args:
        x_adv: perturbed images.
        x: originals, of the same shape.
        norm: ``"linf"`` or ``"l2"``.

    Raises:
        InvalidInputError: for another norm.
    """
    orders = {"linf": torch.inf, "l2": 2.0}
    if norm not in orders:
        raise InvalidInputError(f"unknown norm {norm!r}; it is one of {', '.join(orders)}")
    difference = (x_adv.double() - x.double()).flatten(1)
    size: Tensor = torch.linalg.vector_norm(difference, orders[norm], dim=1)
    return size


def check_perturbation(
    x_adv: Float[Tensor, "batch ..."],
    x: Float[Tensor, "batch ..."],
    *,
    eps: float,
    norm: Literal["linf", "l2"],
) -> Float[Tensor, " batch"]:
    """Raise unless an attack's images are finite, in [0, 1] and within ``eps`` of the originals.

    Rounding may exceed ``eps`` by one unit of the dtype at 1, per pixel.

    Args:
        x_adv: what the attack returned.
        x: the originals.
        eps: radius of the ball.
        norm: norm of the ball.

    Returns:
        The size of each image's perturbation, in float64.

    Raises:
        AttackError: says which rule was broken, and by how many images.
    """
    if x_adv.shape != x.shape or x_adv.dtype != x.dtype or x_adv.device != x.device:
        raise AttackError(
            f"the attack returned {tuple(x_adv.shape)} {x_adv.dtype} on {x_adv.device} for images "
            f"{tuple(x.shape)} {x.dtype} on {x.device}; expected the same"
        )
    rows = x_adv.flatten(1)
    broken = int((~rows.isfinite()).any(1).sum())
    if broken:
        raise AttackError(
            f"the attack returned NaN or infinite pixels in {broken} of {len(x)} images; "
            "the gradient of the model is probably not finite there"
        )
    outside = int(((rows < 0) | (rows > 1)).any(1).sum())
    if outside:
        raise AttackError(f"the attack left [0, 1] in {outside} of {len(x)} images")
    size = perturbation(x_adv, x, norm)
    pixels = 1 if norm == "linf" else rows.shape[1]
    slack = torch.finfo(x.dtype).eps * pixels**0.5
    beyond = int((size > eps + slack).sum())
    if beyond:
        raise AttackError(
            f"the attack left the {norm} ball of radius {eps:.6g} in {beyond} of {len(x)} images; "
            f"the largest perturbation is {float(size.max()):.6g}"
        )
    return size
