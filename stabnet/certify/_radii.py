"""Certified radii: how far a perturbation must move an image to change its class, at the least."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..bounds import affine_parameters, gamma, round_down, round_up
from ..errors import InvalidInputError, InvalidOptionError
from ..model import StabilityModel
from ..robustness import checked_batches, eval_mode
from ..values import number
from ._classifier import check_labels, classified_rightly, device_of, exact_copy, name_of
from ._lipschitz import LipschitzBound, lipschitz_bound
from ._radius_report import RadiusReport

__all__ = ["CertifiedRadii", "certified_accuracy", "certified_radii"]


class CertifiedRadii(NamedTuple):
    """What is certified of a batch of images.

    Attributes:
        radius: in float64, at least 0; every input closer than this in l2 has the image's label.
        correct: where the image itself is classified rightly, in the model's own precision.
        bound: the Lipschitz bounds that the radii follow from.
    """

    radius: Float[Tensor, " batch"]
    correct: Bool[Tensor, " batch"]
    bound: LipschitzBound


@torch.no_grad()
def certified_radii(
    model: nn.Module, x: Float[Tensor, "batch ..."], y: Int[Tensor, " batch"]
) -> CertifiedRadii:
    r"""Return a radius around each image within which every input has its label.

    Let :math:`z(x)` be the state that the head reads, :math:`L` a bound of the Lipschitz constant
    of :math:`z`, normalization included, and :math:`i` the true class. If the head is affine,
    :math:`f_j = w_j^\top z + b_j`, the radius is

    .. math:: r(x) = \min_{j \ne i} \frac{f_i(x) - f_j(x)}{L \|w_i - w_j\|_2} .

    *Proof.* For :math:`\|x' - x\|_2 < r` and every :math:`j \ne i`, the Cauchy–Schwarz inequality
    gives :math:`f_i(x') - f_j(x') = f_i(x) - f_j(x) + (w_i - w_j)^\top (z(x') - z(x)) \ge
    f_i(x) - f_j(x) - \|w_i - w_j\|_2\, L\, \|x' - x\|_2 > 0`. Where :math:`w_i = w_j`, the
    difference is :math:`b_i - b_j` everywhere: its sign decides, and the quotient is infinite or
    the radius zero. The minimum is over *all* classes, since the runner-up may not be the nearest.

    For any other head, :math:`r = \min_{j \ne i} (f_i - f_j) / (\sqrt 2\, L_f)` with the bound
    :math:`L_f` of the outputs. *Proof.* The same, since :math:`|(e_i - e_j)^\top (f(x') - f(x))|
    \le \|e_i - e_j\|_2\, L_f\, \|x' - x\|_2` and :math:`\|e_i - e_j\|_2 = \sqrt 2`.

    This holds for all :math:`x' \in \mathbb{R}^n`, in particular for all images, and at any radius
    less than :math:`r`; at :math:`r` itself two classes may tie.

    The logits are those of a float64 copy in eval mode, made for this call, and :math:`L` is a
    sound bound of that copy. From every margin is deducted four times the largest difference
    between these logits and those in the model's own precision, at the image, and of the largest
    logit :math:`10^{-9}` and 16 units of that precision: at a single image the difference may
    happen to be zero. What that covers is said in the report's assumptions. Nothing is cached, and
    the model stays as it is.

    Args:
        model: a classifier with a Lipschitz bound, see :func:`lipschitz_bound`.
        x: inputs, unnormalized: the radii are in their units.
        y: their true labels.

    Returns:
        Radii, 0 where the image is not classified rightly both in the model's own precision and
        in float64.

    Raises:
        NoBoundError: names the part that has no Lipschitz bound, or says that the model has none.
        InvalidInputError: for inputs or labels that do not fit, or weights that are not finite.

    References:
        Tsuzuku, Sato, Sugiyama: "Lipschitz-margin training", NeurIPS 2018, proposition 1 (the
        second radius). Hein, Andriushchenko: "Formal guarantees on the robustness of a classifier
        against adversarial manipulation", NeurIPS 2017, theorem 2.1 (differences of classes).
    """
    if not len(x):
        raise InvalidInputError("there are no inputs to certify; give at least one")
    certifier = _Certifier(model)
    return CertifiedRadii(*certifier(x, y), certifier.bound)


@torch.no_grad()
def certified_accuracy(
    model: nn.Module,
    batches: Iterable[Sequence[Tensor]],
    eps: float | Sequence[float] = (0.5, 1.0, 1.58),
    *,
    max_images: int | None = None,
) -> RadiusReport:
    """Certify a radius around every image; see :func:`certified_radii`.

    The Lipschitz bound is computed once, before the first batch.

    Args:
        model: a classifier with a Lipschitz bound, see :func:`lipschitz_bound`.
        batches: a data loader, or any iterable of ``(images, labels)``; images in [0, 1], moved to
            the model's device.
        eps: radius in l2, in pixel units, that the report speaks of, or several; it can tell of any
            other too.
        max_images: stop after so many images; all of them if ``None``.

    Returns:
        The radii, and the share of images whose radius exceeds each ``eps``.

    Raises:
        NoBoundError: names the part that has no Lipschitz bound, or says that the model has none.
        InvalidInputError: for no images at all, images outside [0, 1], labels that do not fit, or
            weights that are not finite.
        InvalidOptionError: for a radius or a number of images out of range.
    """
    given = eps if isinstance(eps, Sequence) and not isinstance(eps, str) else (eps,)
    asked = tuple(number("eps", e, least=0) for e in given)
    if not asked:
        raise InvalidOptionError(f"eps={eps!r}; give one radius or more")
    start = time.perf_counter()
    certifier = _Certifier(model)
    bounded = time.perf_counter()
    radii: list[float] = []
    correct = 0
    for x, y in checked_batches(batches, max_images, device_of(model)):
        radius, right = certifier(x, y)
        radii += radius.tolist()
        correct += int(right.sum())
    if not radii:
        raise InvalidInputError("there are no images to certify; the batches are empty")
    return RadiusReport(
        model=name_of(model),
        eps=asked,
        radii=tuple(radii),
        correct=correct,
        bound=certifier.bound,
        seconds=time.perf_counter() - bounded,
        bound_seconds=bounded - start,
    )


@final
class _Certifier:
    """A model as it stands, prepared to certify batches.

    Attributes:
        bound: the model's Lipschitz bounds.
    """

    def __init__(self, model: nn.Module) -> None:
        exact = exact_copy(model)
        self.bound = lipschitz_bound(exact)
        assert isinstance(exact, StabilityModel)
        self.model, self.exact = model, exact
        affine = affine_parameters(exact.head)
        if affine is None:
            steepest = _times(torch.ones((), dtype=torch.float64), self.bound.outputs)
            self.slopes = _times(steepest, math.nextafter(math.sqrt(2), 2))
        else:
            self.slopes = _times(_row_distances(affine[0]), self.bound.features)

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return radii, and where the model itself is right."""
        with eval_mode(self.model):
            own = self.model(x)
        check_labels(own, y)
        y = y.long()
        correct = classified_rightly(own, y)
        logits = self.exact(x.double())
        classes = logits.shape[1]
        # The second term outweighs the rounding of the differences as well.
        share = 1e-9 + 16 * torch.finfo(own.dtype).eps
        slack = 4 * (own.double() - logits).abs().amax(1) + share * logits.abs().amax(1)
        margins = logits.gather(1, y[:, None]) - logits - slack[:, None]
        slopes = self.slopes.to(y.device).expand(classes, classes)[y]
        flat = torch.where(margins > 0, math.inf, 0.0)
        radii = torch.where(slopes == 0, flat, round_down(margins / slopes))
        radius = radii.scatter(1, y[:, None], math.inf).amin(1)
        # What is NaN is not above zero.
        return radius.where(correct & (radius > 0), 0.0), correct


def _times(x: Tensor, factor: float) -> Tensor:
    """Return an upper bound of a product of numbers that are not negative; zero stays zero."""
    return round_up(x * factor).where((x > 0) & (factor != 0), x * 0)


def _row_distances(weight: Float[Tensor, "classes n"]) -> Float[Tensor, "classes classes"]:
    """Return upper bounds of ``‖w_i − w_j‖₂`` in float64, zero where the rows coincide only."""
    rows = []
    for row in weight:
        difference = weight - row
        # Divided by the largest entry, no square leaves the range of numbers.
        largest = difference.abs().amax(1)
        unit = difference / largest.where(largest > 0, 1.0)[:, None]
        rows.append(largest * unit.square().sum(1).sqrt())
    # The sum of squares adds n roundings, halved by the root, and a few more come with the rest.
    return _times(torch.stack(rows), 1 + gamma(weight.shape[1] + 8))
