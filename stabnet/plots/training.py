"""Training curves: what every epoch came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..errors import InvalidInputError
from .figures import new_figure

__all__ = ["training_curves"]

_PANELS = {
    "loss": "loss",
    "accuracy": "accuracy",
    "nfe": "mean evaluations (nfe)",
    "converged": "share of converged samples",
}
_SPLITS = ("train", "validation")


def training_curves(history: Sequence[Mapping[str, float]]) -> Figure:
    """Plot loss, accuracy, mean nfe and share of converged samples over the epochs.

    Args:
        history: one record per epoch, such as :attr:`stabnet.training.FitResult.history` or the
            lines of ``metrics.jsonl``: ``epoch``, and ``train_…`` and ``validation_…`` metrics.

    Returns:
        A figure with one panel for each of the four that the records have.

    Raises:
        InvalidInputError: if there is nothing to plot.
    """
    shown = [m for m in _PANELS if any(f"{s}_{m}" in r for s in _SPLITS for r in history)]
    if not shown:
        raise InvalidInputError(
            "the history has no epoch with a loss to plot; give the records of FitResult.history"
        )
    figure, panels = new_figure(len(shown))
    for panel, metric in zip(panels, shown, strict=True):
        for split in _SPLITS:
            _draw(panel, history, f"{split}_{metric}", split)
        panel.set_xlabel("epoch")
        panel.set_ylabel(_PANELS[metric])
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0].legend(frameon=False)
    return figure


def _draw(panel: Axes, history: Sequence[Mapping[str, float]], name: str, label: str) -> None:
    points = [(r["epoch"], r[name]) for r in history if name in r]
    if points:
        epochs, values = zip(*points, strict=True)
        panel.plot(epochs, values, marker=".", label=label)
