"""Where a field fails to decrease a potential at the required rate."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .figures import new_planes
from .planes import Extent, Plane, PlaneFunction

__all__ = ["violation_map"]


def violation_map(
    violation: PlaneFunction,
    potential: PlaneFunction,
    extent: Extent,
    *,
    axis_labels: tuple[str, str] = ("$z_1$", "$z_2$"),
    levels: int = 8,
    resolution: int = 200,
) -> Figure:
    r"""Plot the violation of a decrease condition as a heat map under level sets of the potential.

    .. math:: \max(0,\; \dot V(z) + \kappa V(z))

    Points without violation stay white. Above the panel stands at how many of the points shown the
    condition is violated and how much: evidence, and no proof for the points between them.

    Functions get points ``(N, 2)`` and are called without gradients (``torch.func`` works there); a
    module is called in eval mode, on its own device and in its own dtype, any other function in the
    default ones.

    Args:
        violation: ``V̇ + κV`` at each point, or its positive part.
        potential: ``V`` at each point.
        extent: the part of the plane that is shown: left, right, bottom, top.
        axis_labels: what the two coordinates are called.
        levels: about how many level sets are drawn, at least 1.
        resolution: points per side.

    Returns:
        A figure with one panel and a color bar.

    Raises:
        InvalidInputError: if an argument has another shape or content than described.

    References:
        [LyaNet] (12), Figure 2.
    """
    plane = Plane(extent, resolution)
    violated = np.maximum(plane.evaluate(violation, "violation"), 0.0)
    height = plane.evaluate(potential, "potential")
    figure, ((panel,),) = new_planes(beside=1.2)
    largest = float(violated.max())
    image = plane.draw_image(
        panel,
        np.ma.masked_equal(violated, 0.0),
        cmap=ListedColormap(colormaps["OrRd"](np.linspace(0.12, 1, 256))),
        vmin=0.0,
        vmax=largest or 1.0,
        interpolation="nearest",
    )
    sets = MaxNLocator(max(levels, 1)).tick_values(height.min(), height.max())
    lines = plane.draw_levels(panel, height, sets, colors="0.25", linewidths=0.7)
    if lines is not None:
        panel.clabel(lines, fontsize=7, fmt="%g")
    bar = figure.colorbar(image, cax=panel.inset_axes((1.04, 0, 0.05, 1)))
    bar.set_label(r"$\max(0,\,\dot V + \kappa V)$")
    share = float((violated > 0).mean())
    panel.set_title(
        f"violated at {100 * share:.3g} % of the points, by at most {largest:.3g}"
        if largest
        else "not violated at any of the points",
        fontsize="small",
    )
    plane.show(panel)
    panel.set(xlabel=axis_labels[0], ylabel=axis_labels[1])
    return figure
