"""The report of certified radii: how far each image is from any change of its class, at least."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

from ..errors import InvalidOptionError
from ..interfaces import Guarantee
from ._lipschitz import LipschitzBound
from ._writing import markdown_table, write_plain

__all__ = ["RadiusReport"]

_ASSUMPTIONS = (
    "the model is evaluated in exact arithmetic, in eval mode, with the weights that its float64 "
    "copy computes",
    "1e-9 of the largest logit, which is deducted from every margin, exceeds the rounding of the "
    "margins in float64 at the images themselves",
    "IEEE 754 double precision, round to nearest, gradual underflow",
    "for the model in its own precision: its margins at perturbed inputs err by no more than all "
    "that is deducted, which includes four times the largest difference between logits in its own "
    "precision and in float64 at the image, and 16 units of that precision of the largest logit",
)


@final
@dataclass(frozen=True)
class RadiusReport:
    """What was certified of a model on a set of images, in l2.

    Attributes:
        model: the model's registered name, or its class.
        eps: the radii that the report speaks of, in pixel units.
        radii: the certified radius of every image, in the order they came in; 0 for those that
            are not classified rightly.
        correct: how many are classified rightly, unperturbed, in the model's own precision.
        bound: the Lipschitz bounds that the radii follow from.
        seconds: time that the images took.
        bound_seconds: time that the bounds took, once for all images.
        norm: the norm of the radii.
    """

    model: str
    eps: tuple[float, ...]
    radii: tuple[float, ...]
    correct: int
    bound: LipschitzBound
    seconds: float
    bound_seconds: float
    norm: Literal["l2"] = "l2"

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.radii)

    @property
    def clean_accuracy(self) -> float:
        """Share of images that are classified rightly, unperturbed."""
        return self.correct / self.images

    def accuracy_at(self, eps: float) -> float:
        """Return the share of images with a radius greater than ``eps``.

        Greater, not equal: a radius is certified for every input *closer* than it, so that this
        is what holds against perturbations of length up to and including ``eps``.

        Raises:
            InvalidOptionError: for a negative or infinite radius.
        """
        if not 0 <= eps < math.inf:
            raise InvalidOptionError(f"eps={eps}; a radius is at least 0 and finite")
        return sum(radius > eps for radius in self.radii) / self.images

    def curve(self, eps: Sequence[float]) -> tuple[float, ...]:
        """Return :meth:`accuracy_at` for several radii; where they grow, it does not.

        >>> report = RadiusReport("m", (0.5,), (0.0, 0.4, 0.8), 2, LipschitzBound((), 1.0), 0, 0)
        >>> report.curve((0.2, 0.4, 0.6))
        (0.6666666666666666, 0.3333333333333333, 0.3333333333333333)
        """
        return tuple(self.accuracy_at(e) for e in eps)

    def guarantee(self) -> Guarantee:
        """Return what was certified as a guarantee: of these images, and of no others."""
        beyond = ", ".join(f"{sum(r > e for r in self.radii)} exceed {e!r}" for e in self.eps)
        return Guarantee(
            claim=f"for {sum(r > 0 for r in self.radii)} of the {self.images} images examined, "
            "every input closer in l2 than the image's radius, which is positive, is classified "
            f"rightly; of the radii {beyond}",
            formula="‖x′ − x‖₂ < min_{j≠y} (f_y(x) − f_j(x)) / (L‖w_y − w_j‖₂)  ⇒  "
            "f_y(x′) > f_j(x′) for all j ≠ y; √2·L of the outputs for heads that are not affine",
            source='Tsuzuku et al.: "Lipschitz-margin training", 2018, proposition 1; proof in '
            "stabnet.certify.certified_radii",
            status="verified",
            assumptions=_ASSUMPTIONS,
            detail=f"L = {self.bound.features!r} from inputs to the state before the head, "
            f"{self.bound.outputs!r} to the outputs, in float64 and rounded up, from the weights "
            "as they stood",
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers and the guarantee as plain data for JSON.

        What is infinite is the text ``"inf"`` there, which ``float`` reads.
        """
        return {
            "model": self.model,
            "norm": self.norm,
            "images": self.images,
            "correct": self.correct,
            "clean_accuracy": self.clean_accuracy,
            "certified": [{"eps": e, "accuracy": self.accuracy_at(e)} for e in self.eps],
            "bound": {
                "parts": [{"part": name, "bound": _plain(b)} for name, b in self.bound.parts],
                "features": _plain(self.bound.features),
                "head": _plain(self.bound.head),
                "outputs": _plain(self.bound.outputs),
            },
            "seconds": self.seconds,
            "bound_seconds": self.bound_seconds,
            "guarantee": self.guarantee().to_dict(),
            "radii": [_plain(radius) for radius in self.radii],
        }

    def to_markdown(self) -> str:
        """Return tables of accuracies and of Lipschitz bounds, with what they mean below."""
        accuracies = markdown_table(
            ("norm", "eps", "images", "clean accuracy", "certified accuracy"),
            *(
                (
                    self.norm,
                    f"{e:.6g}",
                    self.images,
                    f"{self.clean_accuracy:.2%}",
                    f"{self.accuracy_at(e):.2%}",
                )
                for e in self.eps
            ),
        )
        bounds = markdown_table(
            ("part", "Lipschitz constant at most"),
            *((name, f"{b:.9g}") for name, b in self.bound.parts),
            ("input to state", f"{self.bound.features:.9g}"),
            ("head", f"{self.bound.head:.9g}"),
        )
        claim = f"Verified: {self.guarantee().claim}. Assumed: {'; '.join(_ASSUMPTIONS)}."
        note = (
            "Certified accuracy is a lower bound of the accuracy under any perturbation of length "
            "at most eps. What is not certified may be robust all the same: a product of "
            "Lipschitz bounds is not tight."
        )
        took = f"The bounds took {self.bound_seconds:.1f} s, the images {self.seconds:.1f} s."
        title = f"### Certified radii of `{self.model}`"
        blocks = (title, "\n".join(accuracies), "\n".join(bounds), claim, note, took)
        return "\n\n".join(blocks) + "\n"

    def write_json(self, path: str | os.PathLike[str]) -> Path:
        """Write :meth:`to_dict` as JSON; the file appears whole or not at all.

        Args:
            path: where; missing folders are made.

        Returns:
            The path.
        """
        return write_plain(path, self.to_dict())


def _plain(number: float) -> float | str:
    """Return a number that JSON can hold, or else its name."""
    return number if math.isfinite(number) else str(number)
