"""What the margin objectives share: the nominal radii of a batch, and what to log of them."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stabnet import InvalidInputError, StabilityModel
from stabnet.bounds import affine_parameters
from stabnet.interfaces import Solution

__all__ = ["evaluate", "nominal_radii"]


def evaluate(
    model: nn.Module, x: Float[Tensor, "batch ..."], y: Int[Tensor, " batch"], margin: float
) -> tuple[Float[Tensor, "batch classes"], dict[str, Tensor]]:
    """Return the nominal radii of a batch, and what to log of it.

    Args:
        model: the model.
        x: inputs ``(batch, *in_shape)``.
        y: class labels ``(batch,)``.
        margin: the radius that counts as certified.

    Returns:
        The radii, see :func:`nominal_radii`; and detached scalars: ``accuracy``, the share
        ``nominal_certified`` of samples whose radii are all at least ``margin``, ``nfe``, and for a
        solve the share of ``converged`` samples and the largest ``residual``.

    Raises:
        InvalidInputError: for labels of another type, shape or range, or outputs that are no
            logits of two classes or more.
    """
    run: Any = getattr(model, "run", None)
    logits: Tensor
    solution: Solution | None
    logits, solution = (model(x), None) if run is None else run(x)
    _check_labels(logits, y)
    radii = nominal_radii(model, logits, y)
    logs = {
        "accuracy": (logits.detach().argmax(1) == y).float().mean(),
        "nominal_certified": (radii.detach().amin(1) >= margin).float().mean(),
    }
    if solution is not None:
        # Filled on the device: a copy of a Python number would wait for it.
        logs["nfe"] = torch.full((), float(solution.nfe), device=logits.device)
        if solution.converged is not None:
            logs["converged"] = solution.converged.detach().float().mean()
        if solution.residual is not None:
            logs["residual"] = solution.residual.detach().amax()
    return radii, logs


def nominal_radii(
    model: nn.Module, logits: Float[Tensor, "batch classes"], y: Int[Tensor, " batch"]
) -> Float[Tensor, "batch classes"]:
    r"""Return how far each class is away by the margin, were the blocks non-expansive.

    .. math:: m_j = \frac{f_y - f_j}{L\, \|w_y - w_j\|_2}, \qquad
              m_j = \frac{f_y - f_j}{\sqrt2\, L} \text{ where the head is not affine}

    ``L`` is the Lipschitz constant of the model's normalization, the inverse of the smallest
    standard deviation. Everything between it and the head is counted as 1, whatever it is: a
    certificate takes bounds of it as it stands instead. Radii are in the units of the inputs, in
    single precision at least.

    Args:
        model: the model; of a :class:`stabnet.StabilityModel` normalization and head are known,
            of any other module neither.
        logits: its outputs.
        y: class labels.

    Returns:
        One radius per class, infinite for the sample's own. Where two rows of the head coincide,
        ``m_j`` is the margin alone, divided by ``L``.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    labels = y.long()[:, None]
    gaps = logits.gather(1, labels) - logits
    affine, std = None, None
    if isinstance(model, StabilityModel):
        affine, std = affine_parameters(model.head), getattr(model.normalize, "std", None)
    if affine is None:
        radii = gaps / math.sqrt(2)
    else:
        radii = gaps / _distances(affine[0].to(logits.dtype))[labels[:, 0]]
    if std is not None:
        radii = radii * std.amin()
    return radii.scatter(1, labels, math.inf)


def _distances(weight: Float[Tensor, "classes n"]) -> Float[Tensor, "classes classes"]:
    """Return the distances between rows; 1 for those that coincide, without gradient."""
    # Divided by the largest entry, no square of them leaves the range of numbers.
    largest = weight.detach().abs().amax()
    scale = torch.where(largest > 0, largest, torch.ones_like(largest))
    rows = (weight / scale)[None]
    # By differences, not products, which would cancel for rows close to each other. The gradient
    # where rows coincide is zero.
    distances = scale * torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")[0]
    return torch.where(distances > 0, distances, torch.ones_like(distances))


def _check_labels(logits: Tensor, y: Tensor) -> None:
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise InvalidInputError(
            "a margin is between classes: it takes logits (batch, classes) of two classes or "
            f"more; the model returned {tuple(logits.shape)}"
        )
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise InvalidInputError(
            f"class labels are whole numbers; got {y.dtype}. Convert them with y.long()"
        )
    batch, classes = logits.shape
    if y.shape != (batch,):
        raise InvalidInputError(
            f"class labels have shape (batch,), here ({batch},); got {tuple(y.shape)}"
        )
    if y.device.type != "cpu" or torch.compiler.is_compiling():
        return
    wrong = y[(y < 0) | (y >= classes)]
    if len(wrong):
        raise InvalidInputError(
            f"label {wrong[0].item()} but the model has {classes} outputs; labels are 0 to "
            f"{classes - 1}. Build the model with the num_outputs of your data"
        )
