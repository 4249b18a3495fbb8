"""Convergence: how loss and accuracy depend on the inference time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..errors import InvalidInputError
from .figures import new_figure
from .planes import class_colors

__all__ = ["ConvergenceCurve", "convergence_curves"]

_MARKERS = "os^DvPX*"
_BOUND = r"$V(0)\,e^{-\kappa t}$"


@final
@dataclass(frozen=True)
class ConvergenceCurve:
    """Loss and accuracy of one model that is stopped at several times.

    Attributes:
        model: the model's name.
        times: when its state is read, increasing; the first is the start.
        loss: the mean loss at each time, at least 0.
        accuracy: the accuracy at each time, in [0, 1]; ``None`` if it has none.
        kappa: the rate of decay to compare with, positive: the bound ``V(0) exp(−κ t)`` from the
            first loss is drawn too. ``None`` for no bound.

    Raises:
        InvalidInputError: if the numbers of times and values differ, or any is out of range.
    """

    model: str
    times: Sequence[float]
    loss: Sequence[float]
    accuracy: Sequence[float] | None = None
    kappa: float | None = None

    def __post_init__(self) -> None:
        where = f"the curve of {self.model!r}"
        times = list(self.times)
        if (
            not times
            or not all(map(math.isfinite, times))
            or any(a >= b for a, b in pairwise(times))
        ):
            raise InvalidInputError(f"{where} has the times {times}; give finite, increasing ones")
        for name, values, greatest in (
            ("losses", self.loss, math.inf),
            ("accuracies", self.accuracy, 1.0),
        ):
            if values is None:
                continue
            if len(values) != len(times):
                raise InvalidInputError(
                    f"{where} has {len(times)} times and {len(values)} {name}; give as many of each"
                )
            if not all(0 <= v <= greatest and math.isfinite(v) for v in values):
                raise InvalidInputError(
                    f"{where} has the {name} {list(values)}; expected finite ones of at least 0"
                    + (" and at most 1" if greatest == 1 else "")
                )
        if self.kappa is not None and not 0 < self.kappa < math.inf:
            raise InvalidInputError(f"{where} has kappa={self.kappa}; it must be positive")


def convergence_curves(curves: Sequence[ConvergenceCurve], *, log_scale: bool = True) -> Figure:
    """Plot loss, and accuracy where curves have one, against the inference time.

    A model's bound is dashed, in its color. The exponential bound is a straight line on a
    logarithmic scale.

    Args:
        curves: at least one, each of a model of its own.
        log_scale: whether losses are on a logarithmic scale, where a loss of 0 drops out.

    Returns:
        A figure with a panel for the loss, and one for the accuracy if any curve has it.

    Raises:
        InvalidInputError: if there is no curve.

    References:
        [LyaNet] Figure 3.
    """
    if not curves:
        raise InvalidInputError("there is no curve to plot; give at least one ConvergenceCurve")
    accurate = any(c.accuracy is not None for c in curves)
    figure, panels = new_figure(2 if accurate else 1)
    for i, (curve, color) in enumerate(zip(curves, class_colors(len(curves)), strict=True)):
        style: dict[str, Any] = {
            "color": color,
            "marker": _MARKERS[i % len(_MARKERS)],
            "markersize": 3.5,
            "linewidth": 1.3,
            "label": curve.model,
        }
        panels[0].plot(curve.times, curve.loss, **style)
        if curve.kappa is not None:
            _draw_bound(panels[0], curve, color)
        if curve.accuracy is not None:
            panels[1].plot(curve.times, [100 * a for a in curve.accuracy], **style)
    if log_scale and any(v > 0 for c in curves for v in c.loss):
        panels[0].set_yscale("log", nonpositive="mask")
    else:
        panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("mean loss")
    if accurate:
        panels[1].set_ylabel("accuracy in %")
        panels[1].set_ylim(0, 102)  # a marker at 100 % is whole
    for panel in panels:
        panel.set_xlabel("inference time $t$")
    handles, _ = panels[0].get_legend_handles_labels()
    if any(c.kappa is not None for c in curves):
        bound = Line2D([], [], color="0.3", linestyle="--", linewidth=1, label=_BOUND)
        handles = [*handles, bound]
    panels[0].legend(handles=handles, frameon=False, fontsize="small")
    return figure


def _draw_bound(panel: Axes, curve: ConvergenceCurve, color: str) -> None:
    assert curve.kappa is not None
    start, end = curve.times[0], curve.times[-1]
    times = [start + i / 100 * (end - start) for i in range(101)]
    bound = [curve.loss[0] * math.exp(-curve.kappa * (t - start)) for t in times]
    panel.plot(times, bound, color=color, linestyle="--", linewidth=1)
