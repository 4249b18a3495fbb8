"""What a monitor saw of every layer while a model trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ..errors import InvalidInputError
from .figures import new_figure

__all__ = ["layer_curves"]


def layer_curves(
    monitored: Sequence[Mapping[str, Any]], name: str, *, label: str | None = None
) -> Figure:
    """Plot a value of every layer over the steps of a training, colored by depth from 0 on.

    Values are on a logarithmic scale if all of them are positive. Where one is missing (``None``,
    NaN or infinite) its line has a gap.

    Args:
        monitored: one record per call of the monitor, such as
            :attr:`stabnet.training.FitResult.monitored` or the lines of ``monitor.jsonl``: ``step``
            and, under the name, a list with a value for each layer, or with a list of values for
            each layer, such as singular values. Records without the name are left out.
        name: what to plot.
        label: what the values are, for the axis; the name if ``None``.

    Returns:
        A figure with one panel and a color bar.

    Raises:
        InvalidInputError: if no record has that name, or its values are something else than
            described, or not as many in each record.
    """
    records = [r for r in monitored if name in r]
    if not records:
        names = sorted({n for r in monitored for n in r} - {"step"})
        raise InvalidInputError(
            f"no record has {name!r}; there are {', '.join(map(repr, names)) or 'none at all'}"
        )
    layers = [_values(record, name) for record in records]
    sizes = [[len(values) for values in record] for record in layers]
    for record, found in zip(records, sizes, strict=True):
        if found != sizes[0]:
            raise InvalidInputError(
                f"{name!r} has other numbers of values at step {record.get('step')} than at step "
                f"{records[0].get('step')}; give the records of one model"
            )
    steps = [r["step"] for r in records]
    depth = len(sizes[0])
    colors = ScalarMappable(Normalize(-0.5, depth - 0.5), colormaps["viridis"])
    shades = colors.to_rgba(np.arange(depth))
    figure, (panel,) = new_figure()
    every = np.concatenate([values for record in layers for values in record])
    finite = every[np.isfinite(every)]
    # Between two gaps, or alone, a value has no line.
    marker = "." if len(steps) == 1 or len(finite) < len(every) else ""
    for i in range(depth):
        curves = np.stack([record[i] for record in layers])
        panel.plot(steps, curves, marker=marker, color=shades[i], linewidth=1)
    if finite.size and (finite > 0).all():
        panel.set_yscale("log")
    panel.set(xlabel="step", ylabel=name if label is None else label)
    panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    bar = figure.colorbar(colors, ax=panel, ticks=MaxNLocator(6, integer=True, min_n_ticks=1))
    bar.set_label("layer")
    return figure


def _values(record: Mapping[str, Any], name: str) -> list[NDArray[np.float64]]:
    """Return the values of each layer in a record, NaN for those that are missing.

    Raises:
        InvalidInputError: if they are not as described.
    """
    try:
        if "step" not in record:
            raise ValueError("it has no step")
        found = [np.atleast_1d(np.asarray(layer, np.float64)) for layer in record[name]]
        if not found or any(values.ndim > 1 for values in found):
            raise ValueError("there is no layer, or lists are nested more deeply")
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"{name!r} at step {record.get('step')} should be a list with a number, or a list of "
            f"numbers, for each layer: {error}"
        ) from error
    return [np.where(np.isfinite(values), values, np.nan) for values in found]
