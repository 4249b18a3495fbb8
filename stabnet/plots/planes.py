"""Functions on a plane: evaluated on a grid, checked, and drawn with colors for classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_hex, to_rgb
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor, nn

from ..checks import modes_restored
from ..errors import InvalidInputError

__all__ = ["Extent", "Plane", "PlaneFunction", "class_colors", "paler", "plane_points"]

Extent: TypeAlias = Sequence[float]
"""The part of a plane that is shown: left, right, bottom, top."""

PlaneFunction: TypeAlias = Callable[[Tensor], Tensor]
"""A function of points ``(N, 2)``: a value, or a row of values, per point."""

_COLORS = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7",
    "#56B4E9", "#D55E00", "#F0E442", "#7F7F7F",
)  # fmt: skip
"""The colors of Okabe and Ito, which color-blind readers can tell apart."""

_CHUNK = 8192
"""Points evaluated at once, so that deep models need little memory."""


def class_colors(count: int) -> list[str]:
    """Return colors for classes, the same for a class whatever their number.

    Color-blind readers can tell the first eight apart.
    """
    more = range(len(_COLORS), count)
    # Multiples of the golden ratio spread evenly, however many there are.
    return [*_COLORS[:count], *(to_hex(colormaps["turbo"](0.618034 * k % 1)) for k in more)]


def paler(color: str) -> str:
    """Return a color as it fills a region, so that points and lines on it stay visible."""
    red, green, blue = (0.34 * c + 0.66 for c in to_rgb(color))
    return to_hex((red, green, blue))


def plane_points(points: Tensor, what: str, ndim: int) -> NDArray[np.float64]:
    """Return points of the plane as an array, after checking them.

    Args:
        points: ``(…, 2)``.
        what: what messages call them.
        ndim: how many dimensions they have.

    Raises:
        InvalidInputError: if they have another shape, are none, or are not finite.
    """
    found = tuple(points.shape) if isinstance(points, Tensor) else type(points).__name__
    if not isinstance(points, Tensor) or points.ndim != ndim or points.shape[-1] != 2:
        expected = "(N, 2)" if ndim == 2 else "(times, N, 2)"
        raise InvalidInputError(f"{what} should be a tensor of shape {expected}; got {found}")
    if not points.numel():
        raise InvalidInputError(f"{what} have shape {found}; give at least one point")
    if not points.isfinite().all():
        raise InvalidInputError(f"{what} hold NaN or infinite values; expected finite ones")
    return points.detach().cpu().double().numpy()


@final
@dataclass(frozen=True)
class Plane:
    """A part of a plane, with a grid of points on it.

    Attributes:
        extent: left, right, bottom, top.
        resolution: points per side.

    Raises:
        InvalidInputError: for an extent that is none, or a resolution below 2.
    """

    extent: Extent
    resolution: int

    def __post_init__(self) -> None:
        given = list(self.extent)
        if (
            len(given) != 4
            or not all(map(math.isfinite, given))
            or not (given[0] < given[1] and given[2] < given[3])
        ):
            raise InvalidInputError(
                f"extent={given} is no part of a plane; give four finite numbers: left, right, "
                "bottom and top, with left < right and bottom < top"
            )
        if self.resolution < 2:
            raise InvalidInputError(
                f"resolution={self.resolution} is too small; give at least 2 points per side"
            )

    @property
    def axes(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The coordinates of the grid's columns and of its rows, both increasing."""
        left, right, bottom, top = self.extent
        n = self.resolution
        return np.linspace(left, right, n), np.linspace(bottom, top, n)

    def evaluate(self, function: PlaneFunction, what: str, width: int | None = 0) -> NDArray[Any]:
        """Evaluate a function on the grid, without gradients.

        A module is evaluated in eval mode, in the dtype and on the device of its parameters; any
        other function gets points of the default dtype on the CPU.

        Args:
            function: the function.
            what: what messages call it.
            width: how many values it has at a point: 0 for a scalar per point, ``None`` for a
                scalar or any number of values.

        Returns:
            An array ``(resolution, resolution)``, with a further dimension for several values;
            rows go from bottom to top.

        Raises:
            InvalidInputError: if it returns something else, or a value that is not finite.
        """
        columns, rows = self.axes
        grid = torch.from_numpy(np.stack(np.meshgrid(columns, rows), -1).reshape(-1, 2))
        parts = grid.split(_CHUNK)
        module = function if isinstance(function, nn.Module) else nn.Module()
        like = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
        with modes_restored(module), torch.no_grad():
            module.eval()
            found = [function(part.to(like)) for part in parts]
        for part, value in zip(parts, found, strict=True):
            _check_values(value, len(part), what, width)
        values = torch.cat([value.detach().cpu() for value in found])
        finite = values.isfinite().reshape(len(grid), -1).all(1)
        if not finite.all():
            where = ", ".join(f"{c:g}" for c in grid[~finite][0].tolist())
            raise InvalidInputError(
                f"{what} is NaN or infinite at {int((~finite).sum())} of {len(grid)} points "
                f"(first: ({where})); choose an extent where it is finite"
            )
        values = values.double() if values.is_floating_point() else values.long()
        n = self.resolution
        return values.numpy().reshape(n, n, *values.shape[1:])

    def show(self, panel: Axes) -> None:
        """Limit a panel to the extent, with equal scales."""
        left, right, bottom, top = self.extent
        panel.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))

    def draw_image(self, panel: Axes, values: NDArray[Any], **style: Any) -> Any:
        """Draw values on the grid as an image, each in the middle of its pixel."""
        left, right, bottom, top = self.extent
        dx = (right - left) / (self.resolution - 1) / 2
        dy = (top - bottom) / (self.resolution - 1) / 2
        whole = (left - dx, right + dx, bottom - dy, top + dy)
        return panel.imshow(values, origin="lower", extent=whole, zorder=0, **style)

    def draw_levels(
        self, panel: Axes, heights: NDArray[np.float64], levels: Sequence[float], **style: Any
    ) -> Any:
        """Draw level sets of values on the grid.

        Args:
            panel: where.
            heights: the values, as :meth:`evaluate` returns them.
            levels: heights, increasing; those that do not part the values are left out.
            style: of the lines.

        Returns:
            The lines; ``None`` if there are none.
        """
        crossed = [level for level in levels if heights.min() < level < heights.max()]
        if not crossed:
            return None
        return panel.contour(*self.axes, heights, crossed, **style)

    def draw_classes(self, panel: Axes, function: PlaneFunction, what: str) -> int:
        """Color the regions of the classes, and draw their boundaries.

        Args:
            panel: where.
            function: class labels (integers), one score (positive for class 1), or one score per
                class, at each point.
            what: what messages call it.

        Returns:
            The number of classes: as many as there are scores, or one more than the largest label.

        Raises:
            InvalidInputError: see :meth:`evaluate`; or for a negative label.
        """
        margins = _margins(self.evaluate(function, what, None), what)
        labels, count = margins.argmax(0), len(margins)
        self.draw_image(
            panel,
            labels,
            cmap=ListedColormap([paler(c) for c in class_colors(count)]),
            vmin=-0.5,
            vmax=count - 0.5,
            interpolation="nearest",
        )
        present = np.unique(labels)
        # One line parts two classes; of more, each has its own outline.
        for k in present[: 1 if len(present) <= 2 else None]:
            if len(present) > 1:
                panel.contour(*self.axes, margins[k], [0.0], colors="black", linewidths=0.8)
        return count


def _check_values(value: Any, points: int, what: str, width: int | None) -> None:
    shapes = {0: f"({points},)", None: f"({points},) or ({points}, C)"}
    found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    scalar = (points,)
    fits = isinstance(value, Tensor) and (
        (found == scalar and not width)
        or (width is None and value.ndim == 2 and len(value) == points and value.shape[1] > 0)
        or (bool(width) and found == (points, width))
    )
    if not fits:
        raise InvalidInputError(
            f"{what} at points of shape ({points}, 2) should be a tensor of shape "
            f"{shapes.get(width, f'({points}, {width})')}; got {found}"
        )


def _margins(values: NDArray[Any], what: str) -> NDArray[np.float64]:
    """Return, for each class, by how much it leads: it is predicted where that is positive."""
    if np.issubdtype(values.dtype, np.integer):
        labels = values if values.ndim == 2 else values[..., 0]
        if values.ndim == 3 and values.shape[-1] != 1:
            raise InvalidInputError(f"{what} has integer scores; give floating-point ones")
        if labels.min() < 0:
            raise InvalidInputError(f"{what} has the class {labels.min()}; classes are at least 0")
        return np.stack([(labels == k) - 0.5 for k in range(int(labels.max()) + 1)])
    scores = values[..., None] if values.ndim == 2 else values
    if scores.shape[-1] == 1:
        scores = np.concatenate([-scores, scores], -1)
    ranked = np.sort(scores, -1)
    best, second = ranked[..., -1:], ranked[..., -2:-1]
    return np.moveaxis(scores - np.where(scores == best, second, best), -1, 0)
