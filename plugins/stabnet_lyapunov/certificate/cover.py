"""The covering: a region of states taken apart into boxes until each of them is decided."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .cells import CellBounds, bound_cells, within_cube
from .scheme import Scheme
from .system import System

__all__ = ["DEEPEST", "Cells", "Question", "Region", "Verdict", "decide", "grid"]

_CHUNK = 2**16
"""Cells that are bounded at a time, so that memory stays within tens of megabytes."""

DEEPEST = 48
"""Halvings of a cell, after which it is as good as a point."""


@dataclass(frozen=True)
class Region:
    r"""The states with :math:`v_{\min} \le V \le V_0` in a cube, one region per row.

    Attributes:
        least: :math:`v_{\min}`.
        most: :math:`V_0`.
        half_width: of the cube.
        sums: bounds of the sum of a state's entries.
    """

    least: Float[Tensor, " rows"]
    most: Float[Tensor, " rows"]
    half_width: float
    sums: tuple[float, float]

    def dimensions(self, classes: int) -> int:
        """Return along how many directions the states of the region differ."""
        return classes - 1 + (self.sums[0] < self.sums[1])


@dataclass(frozen=True)
class Cells:
    """Boxes of margins and sum, as many in every row, of which some count.

    Attributes:
        lower: lower bounds.
        upper: upper bounds.
        counts: which ones count; the others fill up their row.
    """

    lower: Float[Tensor, "rows cells n"]
    upper: Float[Tensor, "rows cells n"]
    counts: Bool[Tensor, "rows cells"]

    def of(self, rows: Tensor) -> Cells:
        """Return the cells of some of the rows."""
        return Cells(self.lower[rows], self.upper[rows], self.counts[rows])

    @property
    def middles(self) -> Cells:
        """The cells that are but the middles of these."""
        middle = torch.lerp(self.lower, self.upper, 0.5)
        return replace(self, lower=middle, upper=middle)


@dataclass(frozen=True)
class Question:
    """Whether one step keeps to its limits, from all over a region and for all inputs in a box.

    Attributes:
        system: the system.
        scheme: the step.
        kappa: the rate of decay.
        features: bounds of the matrices that the inputs are mapped to.
        y: labels.
        region: the region.
        level: what the level must not exceed on the region; see :class:`CellBounds`.
        after: what the potential must not exceed one step after a state *below* the region. A
            flow cannot leap over the region's edge, so for it nothing is asked there.
        cells: the states in question; at first all.
    """

    system: System
    scheme: Scheme
    kappa: float
    features: tuple[Float[Tensor, "rows h h"], Float[Tensor, "rows h h"]]
    y: Int[Tensor, " rows"]
    region: Region
    level: Float[Tensor, " rows"]
    after: Float[Tensor, " rows"]
    cells: Cells

    def of(self, rows: Tensor) -> Question:
        """Return the question of some of the rows."""
        return replace(
            self,
            features=(self.features[0][rows], self.features[1][rows]),
            y=self.y[rows],
            region=replace(self.region, least=self.region.least[rows], most=self.region.most[rows]),
            level=self.level[rows],
            after=self.after[rows],
            cells=self.cells.of(rows),
        )

    def bounds(self) -> CellBounds:
        """Bound the step from every cell, a few rows at a time."""
        size = max(1, _CHUNK // self.cells.counts.shape[1])
        parts = []
        for rows in torch.arange(len(self.y)).split(size):
            q = self if len(rows) == len(self.y) else self.of(rows)
            box = q.cells.lower, q.cells.upper
            parts.append(bound_cells(q.system, q.scheme, q.kappa, q.features, q.y, box))
        names = ("least", "most", "after", "level")
        return CellBounds(*(torch.cat([getattr(p, name) for p in parts]) for name in names))


@dataclass(frozen=True)
class Verdict:
    """What the covering decided, per row.

    Attributes:
        proven: whether every state in question is within the limits.
        level: upper bound of the level over the cells that were decided.
        after: upper bound of the potential after a step from the cells that were decided below the
            region.
        left: the cells that were not decided.
        suspect: the middle of one of those, which perhaps exceeds the limits.
    """

    proven: Bool[Tensor, " rows"]
    level: Float[Tensor, " rows"]
    after: Float[Tensor, " rows"]
    left: Cells
    suspect: Float[Tensor, "rows n"]


def decide(question: Question, max_cells: int, halvings: int = DEEPEST) -> Verdict:
    """Answer a question by branch and bound.

    Every cell that its bounds do not decide is halved, unless its middle alone already fails for
    the same box of inputs, which no halving of states can mend: then the row is given up. So is a
    row that would need more than ``max_cells`` cells at a time.

    Args:
        question: the question.
        max_cells: the most undecided cells per row.
        halvings: the most halvings of a cell, after which its row is given up too.
    """
    count, n = len(question.y), question.system.classes
    level, after = torch.full((2, count), -math.inf, dtype=torch.float64)
    suspect = torch.full((count, n), math.nan, dtype=torch.float64)
    rows, asked = torch.arange(count), question
    given_up: list[tuple[Tensor, Cells]] = []
    for depth in range(halvings + 1):
        bounds = asked.bounds()
        inner, below = _where(asked, bounds)
        fails = _fails(asked, bounds, inner, below)
        for found, values, kind in ((level, bounds.level, inner), (after, bounds.after, below)):
            largest = values.masked_fill(~(kind & ~fails), -math.inf).amax(1)
            found[rows] = torch.maximum(found[rows], largest)
        open_ = fails.any(1)
        rows = rows[open_]
        asked = asked.of(open_)
        asked = replace(asked, cells=replace(asked.cells, counts=fails[open_]))
        if not len(rows):
            break
        suspect[rows], hopeless = _doubts(asked)
        hopeless |= 2 * asked.cells.counts.sum(1) > max_cells
        hopeless |= depth == halvings
        given_up.append((rows[hopeless], asked.cells.of(hopeless)))
        rows, asked = rows[~hopeless], asked.of(~hopeless)
        if not len(rows):
            break
        asked = replace(asked, cells=_halved(asked.cells))
    left = _packed(count, n, given_up)
    return Verdict(~left.counts.any(1), level, after, left, suspect)


def grid(system: System, region: Region, below: bool) -> Cells:
    """Return the first cells: a grid over a box that contains every region.

    Args:
        system: the system.
        region: the regions.
        below: whether the states below the regions are covered too.
    """
    reach = torch.full_like(region.most, 2 * region.half_width * (1 + 1e-12))
    # No margin is above the one that alone would make up the potential; a little is added, since
    # the bounds themselves tell which cells matter.
    low, high = (v.expm1().log() for v in (region.least, region.most))
    high = torch.minimum(high + 1e-9 * (1 + high.abs()), reach)
    two = system.classes == 2
    low = torch.clamp(low - 1e-9 * (1 + low.abs()), -reach, high) if two else -reach
    edges = _between(low, high, 32 if two else 8)
    if two and below:
        edges = torch.cat([_between(-reach, low, 8), edges[:, 1:]], 1)
    sums = edges.new_tensor([region.sums])
    parts = 4 if region.sums[0] < region.sums[1] else 1
    axes = [edges] * (system.classes - 1)
    axes.append(_between(sums[:, 0], sums[:, 1], parts).expand(len(edges), -1))
    index = torch.cartesian_prod(*(torch.arange(axis.shape[1] - 1) for axis in axes))
    lower = [axis[:, i] for axis, i in zip(axes, index.T, strict=True)]
    upper = [axis[:, i + 1] for axis, i in zip(axes, index.T, strict=True)]
    counts = torch.ones(len(edges), len(index), dtype=torch.bool)
    return Cells(torch.stack(lower, -1), torch.stack(upper, -1), counts)


def _between(low: Tensor, high: Tensor, parts: int) -> Float[Tensor, "rows edges"]:
    """Return evenly spaced edges whose first and last are as given."""
    share = torch.linspace(0, 1, parts + 1, dtype=low.dtype)
    edges = torch.lerp(low[:, None], high[:, None], share)
    edges[:, 0], edges[:, -1] = low, high
    return edges


def _where(question: Question, bounds: CellBounds) -> tuple[Tensor, Tensor]:
    """Return which cells may hold states of the region, and which states below it."""
    region, cells = question.region, question.cells
    counts = cells.counts & within_cube((cells.lower, cells.upper), region.half_width)
    inner = ~(bounds.most < region.least[:, None]) & ~(bounds.least > region.most[:, None])
    below = ~(bounds.least >= region.least[:, None]) & bool(question.scheme.step)
    return counts & inner, counts & below


def _fails(question: Question, bounds: CellBounds, inner: Tensor, below: Tensor) -> Tensor:
    """Return which cells are not known to keep to the limits; a NaN tells nothing."""
    return (inner & ~(bounds.level <= question.level[:, None])) | (
        below & ~(bounds.after <= question.after[:, None])
    )


def _doubts(question: Question) -> tuple[Tensor, Tensor]:
    """Return the middle of an undecided cell, per row, and whether it fails by itself.

    The middle of the first cell whose middle fails is taken, else the one of any undecided cell.
    """
    asked = replace(question, cells=question.cells.middles)
    cells, region, bounds = asked.cells, asked.region, asked.bounds()
    # Only a middle that is surely in the region, or surely below it, speaks for itself.
    inner = (bounds.least >= region.least[:, None]) & (bounds.most <= region.most[:, None])
    below = (bounds.most < region.least[:, None]) & bool(question.scheme.step)
    alone = cells.counts & _fails(asked, bounds, inner, below)
    first = torch.where(alone.any(1), alone.int().argmax(1), cells.counts.int().argmax(1))
    return cells.lower[torch.arange(len(first)), first], alone.any(1)


def _halved(cells: Cells) -> Cells:
    """Return the halves of the cells that count, cut where they are widest."""
    row, column = cells.counts.nonzero(as_tuple=True)
    lower, upper = cells.lower[row, column], cells.upper[row, column]
    axis = (upper - lower).argmax(1, keepdim=True)
    middle = torch.lerp(lower, upper, 0.5).gather(1, axis)
    lower = torch.stack([lower, lower.scatter(1, axis, middle)], 1).flatten(0, 1)
    upper = torch.stack([upper.scatter(1, axis, middle), upper], 1).flatten(0, 1)
    return _arranged(len(cells.counts), row.repeat_interleave(2), lower, upper)


def _packed(count: int, n: int, parts: Sequence[tuple[Tensor, Cells]]) -> Cells:
    """Return the cells that count in parts of the rows as cells of all rows."""
    rows, lower, upper = [torch.empty(0, dtype=torch.long)], [], []
    for part, cells in parts:
        row, column = cells.counts.nonzero(as_tuple=True)
        rows.append(part[row])
        lower.append(cells.lower[row, column])
        upper.append(cells.upper[row, column])
    nothing = torch.empty(0, n, dtype=torch.float64)
    row = torch.cat(rows)
    order = row.argsort(stable=True)
    ends = (torch.cat([nothing, *t])[order] for t in (lower, upper))
    return _arranged(count, row[order], *ends)


def _arranged(count: int, row: Tensor, lower: Tensor, upper: Tensor) -> Cells:
    """Arrange cells, sorted by their rows, in rows of one length; copies fill up."""
    sizes = row.bincount(minlength=count)
    width = max(1, int(sizes.max()) if count else 1)
    starts = sizes.cumsum(0) - sizes
    counts = torch.arange(width) < sizes[:, None]
    if not len(row):
        empty = lower.new_zeros(count, width, lower.shape[1])
        return Cells(empty, empty, counts)
    # Whatever fills up is a cell of some row, so that it can be bounded like any other.
    place = (starts[:, None] + torch.arange(width)).clamp(max=len(row) - 1)
    return Cells(lower[place], upper[place], counts)
