"""Anderson's step written out entry by entry, for compilers."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from .history import residual_unit
from .iteration import Method

__all__ = ["FusedExtrapolation"]


@final
class FusedExtrapolation(Method):
    """The step of :class:`stabnet_deq.Anderson` without library calls or buffers.

    A compiler fuses all of it into a few loops, where calls for small products and systems would
    cost more than the map. Differences that are zero, of a residual that stood still or of a sample
    that restarted, get the coefficient zero.
    """

    growth = 4.0
    patience = 15

    def __init__(self, memory: int, mixing: float, regularization: float) -> None:
        self._memory, self._mixing, self._regularization = memory, mixing, regularization
        self._last: tuple[Tensor, Tensor] | None = None
        self._unit: Tensor | None = None
        self._fresh: Tensor | None = None  # rows without a last iterate, for they have restarted
        self._dg: list[Tensor] = []
        self._dy: list[Tensor] = []

    def step(self, z: Tensor, image: Tensor, g: Tensor) -> Tensor:
        """Return the next iterate of every row."""
        y = image if self._mixing == 1 else z + self._mixing * g
        if self._unit is None:
            self._unit = residual_unit(g)
        scaled = g.to(self._unit.dtype) * self._unit
        last, self._last = self._last, (scaled, y)
        if last is None:
            return y
        dg, dy = scaled - last[0], y - last[1]
        if self._fresh is not None:
            dg, dy = (torch.where(self._fresh[:, None], 0, d) for d in (dg, dy))
            self._fresh = None
        self._dg, self._dy = [*self._dg, dg][-self._memory :], [*self._dy, dy][-self._memory :]
        ridge = 1 + max(self._regularization, 8 * torch.finfo(g.dtype).eps)
        gram = [
            [(a * b).sum(1) * (ridge if a is b else 1) for b in self._dg[: i + 1]]
            for i, a in enumerate(self._dg)
        ]
        gamma = _eliminate(gram, [(a * scaled).sum(1) for a in self._dg])
        for coefficient, dy in zip(gamma, self._dy, strict=True):
            y = y - (coefficient[:, None] * dy).to(y.dtype)
        return y

    def restart(self, rows: Tensor) -> None:
        """Forget the differences of some rows, and their last iterate."""
        self._fresh = rows
        self._dg = [torch.where(rows[:, None], 0, dg) for dg in self._dg]
        self._dy = [torch.where(rows[:, None], 0, dy) for dy in self._dy]

    def keep(self, rows: Tensor) -> None:
        """Keep the rows with these indices only."""
        if self._last is not None and self._unit is not None:
            self._last = self._last[0][rows], self._last[1][rows]
            self._unit = self._unit[rows]
        self._fresh = None if self._fresh is None else self._fresh[rows]
        self._dg, self._dy = [dg[rows] for dg in self._dg], [dy[rows] for dy in self._dy]


def _eliminate(gram: list[list[Tensor]], right: list[Tensor]) -> list[Tensor]:
    """Solve a symmetric system, given by its lower triangle, by elimination.

    An entry whose pivot is not positive is zero.
    """
    m, x = len(right), list(right)
    a = [list(row) for row in gram]
    inverse: list[Tensor] = []
    for j in range(m):
        positive = a[j][j] > 0
        inverse.append(torch.where(positive, 1 / torch.where(positive, a[j][j], 1), 0))
        for i in range(j + 1, m):
            factor = a[i][j] * inverse[j]
            for k in range(j + 1, i + 1):
                a[i][k] = a[i][k] - factor * a[k][j]
            x[i] = x[i] - factor * x[j]
    for i in reversed(range(m)):
        for k in range(i + 1, m):
            x[i] = x[i] - a[k][i] * x[k]
        x[i] = x[i] * inverse[i]
    return x
