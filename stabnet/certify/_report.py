"""The certification report: what was proven, of which images, under which assumptions."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..interfaces import Guarantee
from ._writing import markdown_table, write_plain

__all__ = ["CertificationReport"]

_ASSUMPTIONS = (
    "the model is evaluated in exact arithmetic, in eval mode, with the weights that its float64 "
    "copy computes; equilibria are solved exactly",
    "IEEE 754 double precision, round to nearest, gradual underflow",
    "torch's exponentials and hyperbolic functions are off by at most a few units in the last "
    "place",
    "perturbed images stay within [0, 1]",
)


@dataclass(frozen=True)
class CertificationReport:
    """What was proven of a model on a set of images.

    Attributes:
        model: the model's registered name, or its class.
        eps: radius of the perturbations, in pixel units.
        images: number of images.
        correct: how many are classified rightly, unperturbed, in the model's own precision.
        verified: positions, from 0 in the order they came in, of the images that are classified
            rightly and provably as every perturbed one is.
        seconds: time that the bounds took.
        norm: the norm of the perturbations.
    """

    model: str
    eps: float
    images: int
    correct: int
    verified: tuple[int, ...]
    seconds: float
    norm: Literal["linf"] = "linf"

    @property
    def clean_accuracy(self) -> float:
        """Share of images that are classified rightly, unperturbed."""
        return self.correct / self.images

    @property
    def verified_accuracy(self) -> float:
        """Share of images that are provably classified rightly under every perturbation."""
        return len(self.verified) / self.images

    def guarantee(self) -> Guarantee:
        """Return what was proven as a guarantee: of these images, and of no others."""
        return Guarantee(
            claim=f"for {len(self.verified)} of the {self.images} images examined, every input "
            f"within {self.eps!r} in the maximum norm, in [0, 1], is classified rightly",
            formula="min_{j≠y} f_y(x′) − f_j(x′) > 0 for all ‖x′ − x‖∞ ≤ ε, x′ ∈ [0, 1]ⁿ",
            source='Gowal et al.: "On the effectiveness of interval bound propagation for '
            'training verifiably robust models", 2018, section 3',
            status="verified",
            assumptions=_ASSUMPTIONS,
            detail="interval bounds in float64, rounded outwards, from the weights as they stood",
        )

    def to_dict(self) -> dict[str, Any]:
        """Return counts, shares and the guarantee as plain data for JSON."""
        return {
            "model": self.model,
            "norm": self.norm,
            "eps": self.eps,
            "images": self.images,
            "correct": self.correct,
            "clean_accuracy": self.clean_accuracy,
            "verified_accuracy": self.verified_accuracy,
            "seconds": self.seconds,
            "guarantee": self.guarantee().to_dict(),
            "verified": list(self.verified),
        }

    def to_markdown(self) -> str:
        """Return a Markdown table, with what it means below."""
        table = markdown_table(
            ("norm", "eps", "images", "clean accuracy", "verified accuracy", "seconds"),
            (
                self.norm,
                f"{self.eps:.6g}",
                self.images,
                f"{self.clean_accuracy:.2%}",
                f"{self.verified_accuracy:.2%}",
                f"{self.seconds:.1f}",
            ),
        )
        claim = f"Verified: {self.guarantee().claim}. Assumed: {'; '.join(_ASSUMPTIONS)}."
        note = (
            "Verified accuracy is a lower bound of the accuracy under any attack within the ball. "
            "What is not verified may be robust all the same: interval bounds are not tight."
        )
        title = f"### Certification of `{self.model}`"
        return "\n".join([title, "", *table, "", claim, "", note, ""])

    def write_json(self, path: str | os.PathLike[str]) -> Path:
        """Write :meth:`to_dict` as JSON; the file appears whole or not at all.

        Args:
            path: where; missing folders are made.

        Returns:
            The path.
        """
        return write_plain(path, self.to_dict())
