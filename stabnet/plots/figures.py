"""Making and saving figures without pyplot."""

from __future__ import annotations

import os
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..errors import InvalidInputError
from ..files import replacing

__all__ = ["new_figure", "new_planes", "save_figure"]


def new_figure(panels: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a figure with panels side by side, on the Agg canvas.

    Args:
        panels: how many, at least 1.
    """
    figure = Figure(figsize=(4.8 * panels, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(1, panels, i + 1) for i in range(panels)]
    for panel in axes:
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    return figure, axes


def new_planes(
    rows: int = 1, columns: int = 1, size: float = 3.6, beside: float = 0.0
) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure with square panels for parts of a plane, on the Agg canvas.

    Args:
        rows: how many, at least 1.
        columns: how many, at least 1.
        size: side of a panel, in inches.
        beside: room beside them, for a color bar, in inches.
    """
    figure = Figure(
        figsize=(size * columns + 0.5 + beside, size * rows + 0.6), layout="constrained"
    )
    FigureCanvasAgg(figure)
    axes = [
        [figure.add_subplot(rows, columns, i * columns + j + 1) for j in range(columns)]
        for i in range(rows)
    ]
    return figure, axes


def save_figure(figure: Figure, path: str | os.PathLike[str], *, dpi: int = 150) -> Path:
    """Write a figure to a file, which appears whole or not at all.

    Args:
        figure: the figure.
        path: the file, whose ending says the format (``.png``, ``.pdf``, ``.svg``); its folder is
            made.
        dpi: dots per inch, for formats that have dots.

    Returns:
        The path.

    Raises:
        InvalidInputError: if the ending names no format that matplotlib writes.
        CheckpointError: if the file cannot be written; what was there before is left.
    """
    target = Path(path)
    known = figure.canvas.get_supported_filetypes()
    form = target.suffix.removeprefix(".").lower()
    if form not in known:
        raise InvalidInputError(
            f"{target.name!r} does not end in a format that can be written; "
            f"use one of {', '.join(f'.{f}' for f in known)}"
        )
    with replacing(target) as temporary:
        figure.savefig(temporary, format=form, dpi=dpi)
    return target
