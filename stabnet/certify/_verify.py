"""Verified accuracy: how many images no perturbation can change the class of, provably."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..bounds import NoBoundError
from ..errors import InvalidInputError, InvalidOptionError
from ..robustness import checked_batches, eval_mode
from ._classifier import classified_rightly, device_of, exact_copy, name_of
from ._margins import margin_bounds
from ._report import CertificationReport

__all__ = ["verified_accuracy"]


@torch.no_grad()
def verified_accuracy(
    model: nn.Module,
    batches: Iterable[Sequence[Tensor]],
    eps: float,
    *,
    max_images: int | None = None,
) -> CertificationReport:
    r"""Count the images that are classified rightly, and provably so within a ball around them.

    An image counts as verified if the model itself, in its own precision, classifies it rightly
    *and* sound bounds show that :math:`f_y(x') > f_j(x')` for all classes :math:`j \ne y` and all
    :math:`x' \in [0, 1]^n` with :math:`\|x' - x\|_\infty \le \epsilon`. The bounds are those of
    :func:`margin_bounds` with ``sound=True``, on a float64 copy of the model in eval mode that is
    made for this call; nothing is taken from a cache. Every module's mode stays as it is.

    Args:
        model: a classifier all of whose parts can be bounded, see :func:`interval_logits`.
        batches: a data loader, or any iterable of ``(images, labels)``; images in [0, 1], moved to
            the model's device.
        eps: radius, in pixel units, in [0, 1].
        max_images: stop after so many images; all of them if ``None``.

    Returns:
        What was counted, and which images were verified.

    Raises:
        NoBoundError: names the part that cannot be bounded.
        InvalidInputError: for no images at all, images outside [0, 1], or labels that do not fit.
        InvalidOptionError: for a radius or a number of images out of range.
    """
    if not 0 <= eps <= 1:
        raise InvalidOptionError(
            f"eps={eps} must be in [0, 1]; images are, so 8/255 is eight steps"
        )
    exact = exact_copy(model)
    images, correct, seconds = 0, 0, 0.0
    verified: list[int] = []
    for x, y in checked_batches(batches, max_images, device_of(model)):
        with eval_mode(model):
            right = classified_rightly(model(x), y)
        start = time.perf_counter()
        try:
            margins = margin_bounds(exact, x, y, eps, sound=True)
        except NoBoundError as error:
            raise NoBoundError(
                f"{error}. In l2, certified_accuracy (stabnet certify --norm l2) has other bounds"
            ) from error
        holds = right & _positive(margins, y)
        verified += (images + holds.nonzero().flatten()).tolist()
        seconds += time.perf_counter() - start
        images += len(x)
        correct += int(right.sum())
    if not images:
        raise InvalidInputError("there are no images to certify; the batches are empty")
    return CertificationReport(name_of(model), eps, images, correct, tuple(verified), seconds)


def _positive(margins: Float[Tensor, "batch classes"], y: Tensor) -> Bool[Tensor, " batch"]:
    """Return where the true class is above all others."""
    return ((margins > 0) | F.one_hot(y, margins.shape[1]).bool()).all(1)
