"""Features of labeled inputs, laid out in the plane by t-SNE."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InvalidInputError
from .figures import new_planes
from .planes import class_colors

__all__ = ["feature_embedding"]

_TOLD_APART = 8
"""Classes whose colors all readers can tell apart; further ones have markers of their own."""

_MARKERS = "o^sDvP"


def feature_embedding(
    features: Mapping[str, Float[Tensor, "n _"]],
    labels: Int[Tensor, " n"],
    *,
    columns: int | None = None,
    perplexity: float = 30.0,
    seed: int = 0,
) -> Figure:
    """Plot a t-SNE embedding of each set of features, points colored by class.

    All panels are treated alike: each set is embedded by itself, from its principal components,
    with the same perplexity and seed, and its points are drawn in the same order. An embedding has
    no scale and no axes, so panels have none, and positions in two panels can't be compared.

    t-SNE keeps neighbors together and distorts every larger distance: it tears clusters apart that
    are none, and says nothing of margins. The figure is an illustration, no evidence of robustness,
    and says so.

    Args:
        features: what to embed, by name: one row for each of the ``n`` inputs, of any width.
        labels: the class of each input, the same for all panels.
        columns: panels in a row; all of them if ``None``.
        perplexity: about how many neighbors count, positive and below ``n``.
        seed: of the embedding.

    Returns:
        A figure with one panel for each set.

    Raises:
        InvalidInputError: for no features at all, features or labels that are not as described, or
            a perplexity or number of columns out of range.

    References:
        van der Maaten and Hinton 2008, "Visualizing data using t-SNE"; [LyaDEQ] Figure 3.
    """
    if not features:
        raise InvalidInputError("there are no features to embed; give at least one set by its name")
    classes = _checked_labels(labels)
    sets = {name: _checked(values, name, len(classes)) for name, values in features.items()}
    if not 0 < perplexity < len(classes):
        raise InvalidInputError(
            f"perplexity={perplexity} must be positive and below the number of inputs, "
            f"{len(classes)}"
        )
    wide = len(sets) if columns is None else columns
    if wide < 1:
        raise InvalidInputError(f"columns={columns} must be at least 1, or None for one row")
    figure, rows = new_planes(math.ceil(len(sets) / wide), min(wide, len(sets)), size=2.6)
    panels = [panel for row in rows for panel in row]
    for panel, (name, values) in zip(panels, sets.items(), strict=False):
        _draw(panel, _embed(values, perplexity, seed), classes)
        panel.set_title(name, fontsize="small")
    for panel in panels[len(sets) :]:
        panel.set_visible(False)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(
        handles,
        names,
        loc="outside right upper",
        frameon=False,
        fontsize="small",
        markerscale=2,
        title="class",
        title_fontsize="small",
    )
    figure.supxlabel(
        f"t-SNE, perplexity {perplexity:g}, each panel by itself. It distorts distances: an "
        "illustration, no evidence of robustness.",
        fontsize="x-small",
    )
    return figure


def _embed(values: NDArray[np.float64], perplexity: float, seed: int) -> NDArray[np.float64]:
    """Return points in the plane, within [−1, 1] along the longer side."""
    from sklearn.manifold import TSNE  # takes long to import, and only this needs it

    values = _scaled(values)
    if not values.any():  # scikit-learn divides by the spread, and crashes
        return np.zeros((len(values), 2))
    if values.shape[1] == 1:  # principal components need two columns; one of zeros adds none
        values = np.concatenate([values, np.zeros_like(values)], 1)
    tsne = TSNE(perplexity=perplexity, init="pca", random_state=seed)
    return _scaled(tsne.fit_transform(values).astype(np.float64))


def _scaled(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return values moved and scaled to [−1, 1] along the longest side; zeros if all are equal."""
    largest = float(np.abs(values).max())
    if largest > 0:
        values = values / largest  # so that no difference overflows
    values = values - (values.max(0) + values.min(0)) / 2
    reach = float(np.abs(values).max())
    return values / reach if reach > 0 else values


def _draw(panel: Axes, points: NDArray[np.float64], classes: NDArray[np.int64]) -> None:
    colors = class_colors(int(classes.max()) + 1)
    for kind in np.unique(classes // _TOLD_APART):
        # All classes of a marker in one pass, so that none is drawn over all others.
        own = classes // _TOLD_APART == kind
        shades = [colors[k] for k in classes[own]]
        x, y = points[own].T
        panel.scatter(x, y, s=6, linewidth=0, c=shades, marker=_marker(kind))
    for k in np.unique(classes):
        marker = _marker(k // _TOLD_APART)
        panel.scatter([], [], s=14, linewidth=0, color=colors[k], marker=marker, label=str(k))
    panel.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), aspect="equal", xticks=[], yticks=[])


def _marker(kind: int) -> str:
    return _MARKERS[kind % len(_MARKERS)]


def _checked(values: Tensor, name: str, count: int) -> NDArray[np.float64]:
    found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
    if not isinstance(values, Tensor) or values.ndim != 2 or len(values) != count or not found[1]:
        raise InvalidInputError(
            f"the features {name!r} should be a tensor of shape ({count}, width), one row for each "
            f"label; got {found}. Flatten states with z.flatten(1)"
        )
    if not values.isfinite().all():
        raise InvalidInputError(f"the features {name!r} hold NaN or infinite values")
    return values.detach().cpu().double().numpy()


def _checked_labels(labels: Tensor) -> NDArray[np.int64]:
    if (
        not isinstance(labels, Tensor)
        or labels.is_floating_point()
        or labels.ndim != 1
        or not len(labels)
        or int(labels.min()) < 0
    ):
        found = (
            f"{labels.dtype} of shape {tuple(labels.shape)}"
            if isinstance(labels, Tensor)
            else type(labels).__name__
        )
        raise InvalidInputError(
            f"labels should be integers of shape (n,), at least 0, one for each input; got {found}"
        )
    return labels.detach().cpu().long().numpy()
