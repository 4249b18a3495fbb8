"""Robust accuracy: how it falls with the radius, under attacks and as certified."""

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
    """Accuracy of one model under one attack, or certified against all.

    Attributes:
        model: the model's name.
        attack: the attack's name; ``None`` for accuracy that is certified whatever the attack.
        eps: radii, increasing, in pixel units (images in [0, 1]); 0 for clean accuracy.
        accuracy: the accuracy at each radius, in [0, 1].

    Raises:
        InvalidInputError: if there is no point, the numbers of radii and accuracies differ, radii
            do not increase from 0 or above, or an accuracy is not in [0, 1].
    """

    model: str
    attack: str | None
    eps: Sequence[float]
    accuracy: Sequence[float]

    @property
    def label(self) -> str:
        """What the curve is of, in words."""
        return f"{self.model}, {self.attack or 'certified'}"

    def __post_init__(self) -> None:
        where = f"the curve of {self.label!r}"
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

    Below a certified curve the plane is filled: no attack on that model gets there. Between two
    radii it is as low as at the larger one, since that much is certified.

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
    attacks = list(dict.fromkeys(c.attack for c in curves if c.attack is not None))
    figure, (panel,) = new_figure()
    for curve in curves:
        color = f"C{models.index(curve.model) % 10}"
        radii = [_UNITS[norm] * e for e in curve.eps]
        percent = [100 * a for a in curve.accuracy]
        if curve.attack is None:
            panel.plot(radii, percent, color=color, drawstyle="steps-pre", label=curve.label)
            panel.fill_between(radii, percent, step="pre", color=color, alpha=0.15, linewidth=0)
        else:
            style = _LINES[attacks.index(curve.attack) % len(_LINES)]
            panel.plot(radii, percent, style, color=color, marker=".", label=curve.label)
    if chance is not None:
        panel.axhline(100 * chance, color="gray", linewidth=0.8, label="chance")
    panel.set_xlabel("radius ε, linf, in 1/255" if norm == "linf" else "radius ε, l2")
    panel.set_ylabel("accuracy in %")
    panel.set_ylim(0, 100)
    panel.legend(frameon=False, fontsize="small")
    return figure
