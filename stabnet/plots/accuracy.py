"""Robust accuracy: how it falls with the radius of an attack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

from matplotlib.figure import Figure

from ..errors import InvalidInputError
from .figures import new_figure

__all__ = ["AccuracyCurve", "accuracy_curves"]

_LINES = ("-", "--", "-.", ":")
_UNITS = {"linf": 255.0, "l2": 1.0}


@final
@dataclass(frozen=True)
class AccuracyCurve:
    """Accuracy of one model under one attack.

    Attributes:
        model: the model's name.
        attack: the attack's name.
        eps: radii, increasing, in pixel units (images in [0, 1]); 0 for clean accuracy.
        accuracy: the accuracy at each radius, in [0, 1].

    Raises:
        InvalidInputError: if there is no point, the numbers of radii and accuracies differ, radii
            do not increase from 0 or above, or an accuracy is not in [0, 1].
    """

    model: str
    attack: str
    eps: Sequence[float]
    accuracy: Sequence[float]

    def __post_init__(self) -> None:
        where = f"the curve of {self.model!r} under {self.attack!r}"
        if not self.eps or len(self.eps) != len(self.accuracy):
            raise InvalidInputError(
                f"{where} has {len(self.eps)} radii and {len(self.accuracy)} accuracies; give as "
                "many of each, at least one"
            )
        increasing = all(a < b for a, b in zip(self.eps, self.eps[1:], strict=False))
        if not (self.eps[0] >= 0 and increasing):
            raise InvalidInputError(
                f"{where} has the radii {list(self.eps)}; they must increase, from 0 or above"
            )
        if not all(0 <= a <= 1 for a in self.accuracy):
            raise InvalidInputError(
                f"{where} has the accuracies {list(self.accuracy)}; they must be in [0, 1]"
            )


def accuracy_curves(
    curves: Sequence[AccuracyCurve],
    *,
    norm: Literal["linf", "l2"] = "linf",
    chance: float | None = None,
) -> Figure:
    """Plot accuracy against the radius: a color for each model, a line style for each attack.

    Args:
        curves: at least one.
        norm: the norm of the radii; ``"linf"`` radii are labeled in 255ths.
        chance: accuracy of guessing, drawn as a thin line.

    Returns:
        A figure with one panel.

    Raises:
        InvalidInputError: if there is no curve, or for an unknown norm.
    """
    if not curves:
        raise InvalidInputError("there is no curve to plot; give at least one AccuracyCurve")
    if norm not in _UNITS:
        raise InvalidInputError(f"norm={norm!r} is unknown; it is 'linf' or 'l2'")
    models = list(dict.fromkeys(c.model for c in curves))
    attacks = list(dict.fromkeys(c.attack for c in curves))
    figure, (panel,) = new_figure()
    for curve in curves:
        panel.plot(
            [_UNITS[norm] * e for e in curve.eps],
            [100 * a for a in curve.accuracy],
            color=f"C{models.index(curve.model) % 10}",
            linestyle=_LINES[attacks.index(curve.attack) % len(_LINES)],
            marker=".",
            label=f"{curve.model}, {curve.attack}",
        )
    if chance is not None:
        panel.axhline(100 * chance, color="gray", linewidth=0.8, label="chance")
    panel.set_xlabel("radius ε, linf, in 1/255" if norm == "linf" else "radius ε, l2")
    panel.set_ylabel("accuracy in %")
    panel.set_ylim(0, 100)
    panel.legend(frameon=False, fontsize="small")
    return figure
