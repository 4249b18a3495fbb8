"""Phase portraits: how a field moves the states of a plane."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InvalidInputError
from .figures import new_planes
from .planes import Extent, Plane, PlaneFunction, class_colors, paler, plane_points

__all__ = ["phase_portrait"]

_STREAMS = 40
"""Points per side at which the velocity is evaluated."""


def phase_portrait(
    velocity: PlaneFunction,
    extent: Extent,
    *,
    trajectories: Float[Tensor, "times n 2"] | None = None,
    classes: PlaneFunction | None = None,
    class_names: Sequence[str] | None = None,
    axis_labels: tuple[str, str] = ("$z_1$", "$z_2$"),
    resolution: int = 300,
) -> Figure:
    """Plot streamlines of a field and trajectories over a coloring of the plane.

    Functions get points ``(N, 2)`` and are called without gradients; a module is called in eval
    mode, on its own device and in its own dtype, any other function in the default ones.

    Args:
        velocity: the field, ``(N, 2)`` to ``(N, 2)``.
        extent: the part of the plane that is shown: left, right, bottom, top.
        trajectories: states ``(times, N, 2)`` along N trajectories, at least two times; each is
            drawn from an open circle to a filled one, with an arrow on the way.
        classes: what colors the plane: ``(N, 2)`` to class labels ``(N,)``, or to scores, one for
            each class or a single one that is positive for class 1.
        class_names: one for each class; names them in a legend.
        axis_labels: what the two coordinates are called.
        resolution: points per side at which classes are evaluated.

    Returns:
        A figure with one panel.

    Raises:
        InvalidInputError: if an argument has another shape or content than described.

    References:
        [LyaNet] Figure 1.
    """
    plane = Plane(extent, resolution)
    (figure, ((panel,),)) = new_planes()
    if classes is not None:
        count = plane.draw_classes(panel, classes, "classes")
        if class_names is not None:
            _name_classes(figure, class_names, count)
    elif class_names is not None:
        raise InvalidInputError("class_names are given without classes; give both")
    grid = Plane(extent, _STREAMS)
    flow = grid.evaluate(velocity, "velocity", 2)
    panel.streamplot(
        *grid.axes,
        flow[..., 0],
        flow[..., 1],
        density=1.1,
        color="0.35" if classes is None else "0.42",
        linewidth=0.55,
        arrowsize=0.6,
        zorder=1,
    )
    if trajectories is not None:
        states = plane_points(trajectories, "trajectories", 3)
        if len(states) < 2:
            raise InvalidInputError(
                "trajectories hold a single time; give the states at two or more"
            )
        _draw_trajectories(panel, states)
    plane.show(panel)
    panel.set(xlabel=axis_labels[0], ylabel=axis_labels[1])
    return figure


def _name_classes(figure: Figure, names: Sequence[str], count: int) -> None:
    if len(names) != count:
        raise InvalidInputError(f"there are {len(names)} class_names for {count} classes")
    handles = [
        Patch(facecolor=paler(color), edgecolor=color, label=name)
        for color, name in zip(class_colors(count), names, strict=True)
    ]
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=min(count, 5),
        frameon=False,
        fontsize="small",
    )


def _draw_trajectories(panel: Axes, states: NDArray[np.float64]) -> None:
    for path in states.swapaxes(0, 1):
        panel.plot(*path.T, color="black", linewidth=1.1, zorder=2)
        _draw_arrow(panel, path)
    panel.scatter(
        states[0, :, 0],
        states[0, :, 1],
        s=14,
        facecolor="white",
        edgecolor="black",
        linewidth=0.8,
        zorder=3,
    )
    panel.scatter(states[-1, :, 0], states[-1, :, 1], s=14, color="black", linewidth=0, zorder=3)


def _draw_arrow(panel: Axes, path: NDArray[np.float64]) -> None:
    """Draw an arrow halfway along a path, unless it does not move."""
    length = np.concatenate([[0.0], np.linalg.norm(np.diff(path, axis=0), axis=1).cumsum()])
    if length[-1] == 0:
        return
    middle = np.array(
        [[np.interp(f * length[-1], length, c) for c in path.T] for f in (0.49, 0.51)]
    )
    panel.annotate(
        "",
        xy=middle[1],
        xytext=middle[0],
        arrowprops={"arrowstyle": "-|>", "color": "black", "mutation_scale": 9, "shrinkA": 0,
                    "shrinkB": 0, "linewidth": 0},
        annotation_clip=True,
        zorder=2,
    )  # fmt: skip
