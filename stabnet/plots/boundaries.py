"""Decision boundaries of classifiers of the plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InvalidInputError
from .figures import new_planes
from .planes import Extent, Plane, PlaneFunction, class_colors, plane_points

__all__ = ["decision_boundaries"]

_MARKERS = "os^DvPX*"


def decision_boundaries(
    classifiers: Mapping[str, PlaneFunction],
    points: Float[Tensor, "n 2"],
    labels: Int[Tensor, " n"],
    *,
    extents: Sequence[Extent] | None = None,
    axis_labels: tuple[str, str] = ("$x_1$", "$x_2$"),
    resolution: int = 300,
) -> Figure:
    """Plot what each classifier makes of the plane: a column for each, a row for each extent.

    Functions get points ``(N, 2)`` and are called without gradients; a module is called in eval
    mode, on its own device and in its own dtype, any other function in the default ones.

    Args:
        classifiers: by name, at least one: ``(N, 2)`` to class labels ``(N,)``, or to scores, one
            for each class or a single one that is positive for class 1.
        points: labeled points, drawn on top.
        labels: their classes.
        extents: parts of the plane: left, right, bottom, top of each. By default the points with a
            margin, and four times as much. In later rows a dashed frame shows where the first is.
        axis_labels: what the two coordinates are called.
        resolution: points per side at which classifiers are evaluated.

    Returns:
        A figure with ``len(extents) × len(classifiers)`` panels, row by row.

    Raises:
        InvalidInputError: if an argument has another shape or content than described.

    References:
        [LyaNet] Figure 4.
    """
    if not classifiers:
        raise InvalidInputError("there is no classifier to plot; give at least one by its name")
    where = plane_points(points, "points", 2)
    classes = _checked_labels(labels, len(where))
    planes = [Plane(e, resolution) for e in (_around(where) if extents is None else extents)]
    if not planes:
        raise InvalidInputError("there is no extent to show; give at least one, or leave it out")
    figure, rows = new_planes(len(planes), len(classifiers), size=2.2)
    colors = class_colors(int(classes.max()) + 1)
    for row, (panels, plane) in enumerate(zip(rows, planes, strict=True)):
        for panel, (name, classifier) in zip(panels, classifiers.items(), strict=True):
            plane.draw_classes(panel, classifier, name)
            _draw_points(panel, where, classes, colors, 10 if row == 0 else 4)
            if row == 0:
                panel.set_title(name)
            else:
                _frame(panel, planes[0])
            plane.show(panel)
            panel.tick_params(labelsize="small")
        panels[0].set_ylabel(axis_labels[1])
    for panel in rows[-1]:
        panel.set_xlabel(axis_labels[0])
    return figure


def _checked_labels(labels: Tensor, count: int) -> NDArray[np.int64]:
    if (
        not isinstance(labels, Tensor)
        or labels.is_floating_point()
        or tuple(labels.shape) != (count,)
        or int(labels.min()) < 0
    ):
        found = (
            f"{labels.dtype} of shape {tuple(labels.shape)}"
            if isinstance(labels, Tensor)
            else type(labels).__name__
        )
        raise InvalidInputError(
            f"labels should be integers of shape ({count},), at least 0, one for each point; got "
            f"{found}"
        )
    return labels.detach().cpu().long().numpy()


def _around(points: NDArray[np.float64]) -> list[Extent]:
    """Return the square around points with a margin, and the one four times as wide."""
    middle = (points.min(0) + points.max(0)) / 2
    reach = 0.6 * float(np.ptp(points, axis=0).max()) or 1.0
    return [
        [float(e) for c in middle for e in (c - scale * reach, c + scale * reach)]
        for scale in (1, 4)
    ]


def _draw_points(
    panel: Axes,
    points: NDArray[np.float64],
    classes: NDArray[np.int64],
    colors: Sequence[str],
    size: float,
) -> None:
    for k in np.unique(classes):
        own = points[classes == k]
        panel.scatter(
            own[:, 0],
            own[:, 1],
            s=size,
            marker=_MARKERS[k % len(_MARKERS)],
            color=colors[k],
            edgecolor="white",
            linewidth=0.3,
            zorder=3,
        )


def _frame(panel: Axes, plane: Plane) -> None:
    left, right, bottom, top = plane.extent
    panel.add_patch(
        Rectangle(
            (left, bottom), right - left, top - bottom,
            fill=False, linestyle="--", linewidth=0.6, edgecolor="0.2", zorder=4,
        )
    )  # fmt: skip
