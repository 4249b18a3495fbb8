"""The figures of the inverse problem; see inverse_problem.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from stabnet.plots import save_figure

Points = tuple[Tensor, Tensor]
"""Measurements ``(n, 2)``, and the points that were measured."""

CURVE = {"color": "black", "linewidth": 1.0, "zorder": 3}
DOTS = {"s": 4, "linewidths": 0, "alpha": 0.7}
MAP_REACH = 4.5


def draw_data(test: Points, sets: Sequence[Points], path: str) -> None:
    """Save the points and their measurements, of the test set and of every training set."""
    every = {"test": test, **{f"training, {len(y)}": (y, x) for y, x in sets}}
    figure = Figure(figsize=(2.7 * len(every), 4.6), layout="constrained")
    panels = figure.subplots(2, len(every), sharex="row", sharey="row", squeeze=False)
    for (above, below), (name, (y, x)) in zip(panels.T, every.items(), strict=True):
        above.scatter(*x.T, color="C0", **DOTS)
        below.scatter(*y.T, color="C3", **DOTS)
        above.set(title=name, aspect="equal")
        below.set(aspect="equal")
    panels[0, 0].set_ylabel("points $x$")
    panels[1, 0].set_ylabel("measurements $y$")
    save_figure(figure, path, dpi=90)


def draw_reconstructions(found: Mapping[int, Mapping[str, Tensor]], x: Tensor, path: str) -> None:
    """Save the reconstructions of every method, one row per training set."""
    columns = len(next(iter(found.values())))
    size = (2.4 * columns, 1.7 * len(found) + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(found), columns, sharex=True, sharey=True, squeeze=False)
    along = x[x[:, 0].argsort()]
    for row, (count, methods) in zip(panels, found.items(), strict=True):
        row[0].set_ylabel(f"{count} for training")
        for panel, points in zip(row, methods.values(), strict=True):
            panel.scatter(*points.T, color="C0", **DOTS)
            panel.plot(*along.T, **CURVE)
            panel.set(aspect="equal", xlim=(-4.2, 4.2), ylim=(-2.6, 2.6))
    for panel, name in zip(panels[0], next(iter(found.values())), strict=True):
        panel.set_title(name)
    save_figure(figure, path, dpi=90)


def draw_maps(
    maps: Mapping[str, Tensor | Callable[[Tensor], Tensor]], y: Tensor, path: str
) -> None:
    """Save the images of a grid, and the level sets of how far measurements are moved.

    Args:
        maps: reconstructions by name, a matrix or a function.
        y: measurements to show.
        path: the file.
    """
    figure = Figure(figsize=(2.9 * len(maps), 6.0), layout="constrained")
    panels = figure.subplots(2, len(maps), squeeze=False)
    ticks = torch.linspace(-MAP_REACH, MAP_REACH, 121, dtype=y.dtype)
    grid = torch.cartesian_prod(ticks, ticks)
    for (above, below), (name, reconstruction) in zip(panels.T, maps.items(), strict=True):
        if isinstance(reconstruction, Tensor):
            images = grid @ reconstruction.T
        else:
            images = reconstruction(grid)
        _draw_grid(above, images.view(len(ticks), len(ticks), 2), 6)
        above.set(title=name, aspect="equal", xlabel="$x_1$")
        moved = (images - grid).norm(dim=1).view(len(ticks), len(ticks))
        lines = below.contour(ticks, ticks, moved.T, levels=12, linewidths=0.8)
        below.clabel(lines, fontsize=6)
        below.scatter(*y.T, color="gray", **DOTS)
        below.set(aspect="equal", xlabel="$y_1$")
    panels[0, 0].set_ylabel("image of a grid, $x_2$")
    panels[1, 0].set_ylabel("level sets of $|f(y) - y|$, $y_2$")
    save_figure(figure, path, dpi=90)


def _draw_grid(panel: Axes, images: Tensor, every: int) -> None:
    """Draw the images of every so-many-th line of a grid, in both directions."""
    for lines, color in ((images[::every], "C0"), (images.transpose(0, 1)[::every], "C1")):
        for line in lines:
            panel.plot(*line.T, color=color, linewidth=0.6)


def draw_errors(errors: Sequence[dict], networks: Sequence[dict], path: str) -> None:
    """Save the errors on the test set against the Lipschitz constants, one panel per set."""
    figure = Figure(figsize=(3.4 * len(errors), 3.2), layout="constrained")
    panels = figure.subplots(1, len(errors), sharey=True, squeeze=False)[0]
    for panel, row in zip(panels, errors, strict=True):
        own = [n for n in networks if n["training set"] == row["training set"]]
        constants = [n["L"] for n in own]
        panel.plot(constants, [n["error"] for n in own], "o-", color="C0", label="InvNet, test")
        panel.plot(
            constants, [n["training error"] for n in own], "o--", color="C0", alpha=0.4,
            label="InvNet, training",
        )  # fmt: skip
        panel.plot([row["L*"]], [row["Tikhonov"]], "s", color="C1", label="Tikhonov")
        for name, color in (("naive", "C3"), ("best Tikhonov", "C1"), ("least possible", "C2")):
            panel.axhline(row[name], color=color, linestyle=":", label=name)
        panel.set(xscale="log", title=f"{row['training set']} for training", ylim=(0, None))
        panel.set_xticks(constants, [f"{n['network']}\n{n['L']:.2g}" for n in own])
        panel.minorticks_off()
        panel.set_xlabel("Lipschitz constant $L$")
    panels[0].set_ylabel("mean squared error")
    panels[-1].legend(fontsize="small")
    save_figure(figure, path, dpi=90)
