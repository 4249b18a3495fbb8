"""Phase portraits: how a field moves the states of a plane."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
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

_VALLEY = LinearSegmentedColormap.from_list("valley", ["#bcd3e8", "#fbfcfe"])
"""What fills the level sets, from the lowest to the highest."""

_LEVELS, _REST = "#3f7cac", "#c8321e"
"""Colors of level sets and of equilibria, apart from the gray of streamlines."""


def phase_portrait(
    velocity: PlaneFunction,
    extent: Extent,
    *,
    trajectories: Float[Tensor, "times n 2"] | None = None,
    classes: PlaneFunction | None = None,
    class_names: Sequence[str] | None = None,
    potential: PlaneFunction | None = None,
    levels: int | Sequence[float] = 10,
    equilibria: Float[Tensor, "n 2"] | None = None,
    axis_labels: tuple[str, str] = ("$z_1$", "$z_2$"),
    resolution: int = 300,
    panel: Axes | None = None,
) -> Figure:
    """Plot streamlines of a field and trajectories over classes, or level sets of a potential.

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
        potential: a scalar ``V``, ``(N, 2)`` to ``(N,)``, whose level sets are drawn; they are
            filled, darker where it is lower, unless classes color the plane.
        levels: how many level sets, evenly spaced in the root of the height above the lowest point,
            as those of a quadratic potential are in the plane; or the heights, increasing.
        equilibria: points ``(N, 2)`` to mark, such as the center of the potential.
        axis_labels: what the two coordinates are called.
        resolution: points per side at which classes and potential are evaluated.
        panel: where to draw, in a figure of one's own; in a new figure by default.

    Returns:
        The figure, with one panel if it is new.

    Raises:
        InvalidInputError: if an argument has another shape or content than described.

    References:
        [LyaNet] Figure 1.
    """
    plane = Plane(extent, resolution)
    if panel is None:
        panel = new_planes()[1][0][0]
    figure = panel.figure.canvas.figure
    if classes is not None:
        count = plane.draw_classes(panel, classes, "classes")
        if class_names is not None:
            _name_classes(figure, class_names, count)
    elif class_names is not None:
        raise InvalidInputError("class_names are given without classes; give both")
    if potential is not None:
        heights = plane.evaluate(potential, "potential")
        _draw_potential(panel, plane, heights, levels, fill=classes is None)
    _draw_streams(panel, Plane(extent, _STREAMS), velocity, "0.35" if classes is None else "0.42")
    if trajectories is not None:
        states = plane_points(trajectories, "trajectories", 3)
        if len(states) < 2:
            raise InvalidInputError(
                "trajectories hold a single time; give the states at two or more"
            )
        _draw_trajectories(panel, states)
    if equilibria is not None:
        _draw_equilibria(panel, plane_points(equilibria, "equilibria", 2))
    plane.show(panel)
    panel.set(xlabel=axis_labels[0], ylabel=axis_labels[1])
    return figure


def _draw_potential(
    panel: Axes,
    plane: Plane,
    heights: NDArray[np.float64],
    levels: int | Sequence[float],
    fill: bool,
) -> None:
    """Draw level sets, at the heights given or at as many as asked for."""
    low, high = heights.min(), heights.max()
    if isinstance(levels, int):
        if levels < 1:
            raise InvalidInputError(f"levels={levels} is too few; draw at least 1 level set")
        drawn = low + (high - low) * (np.arange(1, levels + 1) / (levels + 1)) ** 2
    else:
        drawn = np.array([float(level) for level in levels])
        if not np.isfinite(drawn).all() or not (np.diff(drawn) > 0).all():
            raise InvalidInputError(f"levels={list(levels)} must be finite and increase")
    lines = plane.draw_levels(
        panel, heights, drawn, colors=_LEVELS, linewidths=0.8 if fill else 1.1, zorder=0.5
    )
    if fill and lines is not None:
        edges = [low, *lines.levels, high]
        shades = _VALLEY(np.linspace(0, 1, len(edges) - 1))
        panel.contourf(*plane.axes, heights, edges, colors=shades, zorder=0)


def _draw_streams(panel: Axes, grid: Plane, velocity: PlaneFunction, color: str) -> None:
    flow = grid.evaluate(velocity, "velocity", 2)
    panel.streamplot(
        *grid.axes,
        flow[..., 0],
        flow[..., 1],
        density=1.1,
        color=color,
        linewidth=0.55,
        arrowsize=0.6,
        zorder=1,
    )


def _draw_equilibria(panel: Axes, points: NDArray[np.float64]) -> None:
    panel.scatter(
        points[:, 0],
        points[:, 1],
        s=60,
        marker="*",
        color=_REST,
        edgecolor="white",
        linewidth=0.6,
        zorder=4,
    )


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
