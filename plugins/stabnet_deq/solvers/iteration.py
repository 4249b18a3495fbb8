"""The loop that every solver runs in: what has converged, what is best, what may leave."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from contextlib import nullcontext
from functools import partial
from typing import Literal, TypeAlias

import torch
import torch.utils._pytree as pytree
from jaxtyping import Bool, Float
from torch import Tensor

from stabnet.interfaces import Features, FixedPointMap, SolverResult

from .control import Control

__all__ = ["Method", "Progress", "iterate", "relative_residual", "resolution"]

Outcome: TypeAlias = Literal["improved", "mixed", "finished"]


class Method(ABC):
    """How the next iterate is proposed; ``z``, its image and ``g = f(z) − z`` are ``(rows, n)``.

    Attributes:
        growth: growth of a row's ``‖g‖``, over its least since the last restart, that makes it
            restart.
        patience: number of evaluations in which a row's best residual has to halve; a row that does
            not takes plain steps for a while. Zero for endless patience.
        looking: whether looking at a value is allowed and cheap; set by the loop.
    """

    growth: float
    patience: int
    looking = False

    @abstractmethod
    def step(self, z: Tensor, image: Tensor, g: Tensor) -> Tensor:
        """Return the next iterate of every row."""

    @abstractmethod
    def restart(self, rows: Bool[Tensor, " rows"]) -> None:
        """Forget what was learned about some rows, the current iterate included."""

    @abstractmethod
    def keep(self, rows: Tensor) -> None:
        """Keep the rows with these indices only."""


def relative_residual(
    z: Float[Tensor, "rows n"], image: Float[Tensor, "rows n"]
) -> Float[Tensor, " rows"]:
    """Return ``‖f(z) − z‖ / ‖f(z)‖`` per row; zero at an exact fixed point, also at the origin.

    In double precision, where the device has it: its range holds the squares.
    """
    double = z.device.type in ("cpu", "cuda")
    dtype = torch.float64 if double else torch.promote_types(z.dtype, torch.float32)
    difference = torch.linalg.vector_norm(image - z, dim=1, dtype=dtype)
    scale = torch.linalg.vector_norm(image, dim=1, dtype=dtype)
    return torch.where(difference == 0, difference, difference / scale)


def resolution(z: Tensor) -> float:
    """Return the smallest relative residual that iterates can resolve: four units of rounding.

    Those of the precision in which the map is evaluated: autocast's, if it is on.
    """
    device = z.device.type
    lower = torch.is_autocast_enabled(device)
    return 4 * torch.finfo(torch.get_autocast_dtype(device) if lower else z.dtype).eps


def iterate(
    f: FixedPointMap, z0: Float[Tensor, "batch n"], u: Features, method: Method, control: Control
) -> SolverResult:
    """Run a method from ``z0`` until all rows are finished.

    A row is finished when it has converged, or its image is not finite even after a plain step.
    Finished rows stay where they are and, past a share, leave the batch; only where features ``u``
    come along, since a map without any may close over rows. A row whose residual grows too far
    starts again from the image of its best iterate. A row that stalls takes plain steps, as many as
    its state has entries or twice the patience, whichever is more, but at most eight times the
    evaluations so far: where a map is nilpotent, or nearly so, they end what no combination of a
    few iterates can.
    """
    progress = Progress(z0, u, control, method)
    device = z0.device.type
    method.looking = progress.cheap
    # Autocast is for the map; a method needs the state's precision.
    autocast = torch.is_autocast_enabled(device)
    precise = partial(torch.autocast, device, enabled=False) if autocast else nullcontext
    z = z0
    while True:
        image = f(z, progress.u)
        g = image - z
        outcome = progress.update(z, image, g)
        if outcome == "finished":
            return control.finish(progress.result())
        with precise():
            if outcome == "improved" and not progress.stalling:
                z = method.step(z, image, g)
                continue
            rows = progress.compact()
            if rows is not None:
                method.keep(rows)
                z, image, g = z[rows], image[rows], g[rows]
            proposed = method.step(z, image, g)
            if progress.restarting():
                method.restart(progress.restart)
            z = progress.hold(proposed, image)


class Progress:
    """The best iterate of each row so far, its image and its residual.

    Most of the time every row improves and none is finished, and at the end often all finish at
    once: one look tells. Otherwise rows are told apart by masks.

    Args:
        z0: the initial iterates.
        u: features with a row for each of them, or none.
        control: when to stop. The tolerance is never taken below what iterates can resolve.
        method: what is proposed to the rows, and with which safeguards. Growth is that of
            ``‖f(z) − z‖``, not of the relative residual, which is large wherever the map is near
            zero.
    """

    def __init__(
        self, z0: Float[Tensor, "batch n"], u: Features, control: Control, method: Method
    ) -> None:
        self.u = u
        self.nfe = 0
        self.best = self.best_image = z0
        self._control = control
        self._growth, self._patience = method.growth, method.patience
        self._every = control.interval(z0.device)
        self._looking = not control.fixed_iterations and len(z0) > 0
        # On an accelerator a look waits for all that was queued.
        self.cheap = self._looking and z0.device.type == "cpu"
        self._compacting = self._looking and u is not None and not torch.is_grad_enabled()
        self._tolerance = max(control.tolerance, resolution(z0))
        # Below it a residual is within the tolerance however its norms were rounded.
        self._target = 0.999 * self._tolerance
        # Smaller norms are not sums of squares in the normal range.
        self._smallest = 1e4 * torch.finfo(z0.dtype).tiny ** 0.5
        # Like z0, which is batched if torch.vmap maps over it.
        self._residual = torch.full_like(z0.detach()[:, 0], torch.inf)
        self._reference = self._residual
        self._settled = self.restart = self._none = self._residual < 0
        # What the residual was when patience was last asked for; until when steps are plain.
        self._milestone = self._residual
        self._plain_until = torch.zeros_like(self._residual)
        self.stalling = False
        self._holding = False  # whether finished rows are still in the batch
        self._rows: Tensor | None = None
        self._left: list[tuple[Tensor, Tensor, Tensor]] = []

    def update(self, z: Tensor, image: Tensor, g: Tensor) -> Outcome:
        """Take note of an iterate, and tell what became of the rows."""
        self.nfe += 1
        last = self.nfe == self._control.max_evaluations
        if self._patience and self.nfe % self._patience == 0:
            self._ask_patience(z.shape[1])
        difference = torch.linalg.vector_norm(g.detach(), dim=1)
        residual = difference / torch.linalg.vector_norm(image.detach(), dim=1)
        looking = self._looking and not self.nfe % self._every
        # Clamping changes whatever has not improved, and NaN is unequal to itself.
        if (
            looking
            and self._every == 1
            and not self._holding
            and residual.clamp(max=self._residual).equal(residual)
        ):
            lowest = residual.min().item()
            going = lowest > self._target
            if going or (
                lowest > 0
                and residual.max().item() <= self._target
                and difference.min().item() >= self._smallest
            ):
                self.best, self.best_image, self._residual = z, image, residual
                if self._growth < math.inf:
                    self._reference = torch.minimum(self._reference, difference)
                self.restart = self._none
                return "improved" if going and not last else "finished"
        self._tell_apart(z, image, difference, residual)
        finished = last or not len(z) or (looking and bool(self._settled.all()))
        return "finished" if finished else "mixed"

    def _tell_apart(self, z: Tensor, image: Tensor, difference: Tensor, residual: Tensor) -> None:
        going = ~self._settled
        # Not "at most the target": that is false for NaN.
        finished = going & ~((residual > self._target) & (difference < torch.inf))
        if self._any(finished):
            residual, finished = self._judge(z, image, difference, residual, finished)
        better = going & (residual <= self._residual)  # false for NaN
        worse = going & ~better
        self._residual = torch.where(better, residual, self._residual)
        self._settled = self._settled | finished
        if not self._any(worse):  # finished rows are held at their best
            self.best, self.best_image, self.restart = z, image, self._none
            self._reference = torch.minimum(self._reference, difference)
            return
        self.best = torch.where(better[:, None], z, self.best)
        self.best_image = torch.where(better[:, None], image, self.best_image)
        # Plain steps may take the residual through a hill. Not "more than": that is false for NaN.
        steady = (difference <= self._growth * self._reference) | (
            (self._plain_until > self.nfe) & torch.isfinite(difference)
        )
        self.restart = worse & ~finished & ~steady
        # After a restart any residual is accepted once, or one bad step would recur for ever.
        least = torch.minimum(self._reference, difference)
        self._reference = torch.where(self.restart, torch.inf, least)
        self._plain_until = torch.where(self.restart, 0, self._plain_until)

    def _judge(
        self, z: Tensor, image: Tensor, difference: Tensor, residual: Tensor, finished: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return true residuals, and which rows are finished, of those that seem to be."""
        # 0/0 at the origin, if that is the fixed point; and squares that left the range.
        clear = (residual > 0) & (difference >= self._smallest) & torch.isfinite(difference)
        unclear = finished & ~clear
        if not self._any(unclear):
            return residual, finished
        exact = relative_residual(z.detach(), image.detach())
        residual = torch.where(unclear, exact.to(residual.dtype), residual)
        largest = torch.linalg.vector_norm(image.detach(), torch.inf, 1)
        # A step that acceleration spoiled is no reason to give up: see whether a plain one does.
        hopeless = ~torch.isfinite(largest) & ~torch.isfinite(self._growth * self._reference)
        return residual, finished & ((residual <= self._target) | hopeless)

    def restarting(self) -> bool:
        """Return whether any row restarts."""
        return self._any(self.restart)

    def _any(self, rows: Tensor) -> bool:
        """Return whether any row is among these; true where a look is not cheap."""
        return not self.cheap or bool(rows.any())

    def _ask_patience(self, n: int) -> None:
        """Begin plain steps for the rows that stall, and end those that have had enough of them."""
        stalled = (self._residual > 0.5 * self._milestone) & (self._plain_until <= self.nfe)
        until = self.nfe + min(max(n, 2 * self._patience), 8 * self.nfe)
        self._plain_until = torch.where(stalled, until, self._plain_until)
        self._milestone = self._residual
        self.stalling = not self._looking or bool((self._plain_until > self.nfe).any())

    def hold(self, proposed: Tensor, image: Tensor) -> Tensor:
        """Return the next iterates: finished rows stay, stalling and restarting ones step plainly.

        A restarting row's plain step is from its best iterate.
        """
        if self.stalling:
            proposed = torch.where((self._plain_until > self.nfe)[:, None], image, proposed)
        if self._any(self.restart):
            proposed = torch.where(self.restart[:, None], self.best_image, proposed)
        self._holding = self._any(self._settled)
        if self._holding:
            proposed = torch.where(self._settled[:, None], self.best, proposed)
        return proposed

    def compact(self) -> Tensor | None:
        """Let finished rows leave if they are many; return the indices of the others."""
        if not self._compacting or self.nfe % self._every:
            return None
        settled = self._settled.nonzero()[:, 0]
        count = len(self._settled)
        share = self._control.compaction
        if share == 1 or len(settled) < max(1, share * count):
            return None
        if self._rows is None:
            self._rows = torch.arange(count, device=self.best.device)
        self._left.append((self._rows[settled], self.best[settled], self._exact(settled)))
        rows = (~self._settled).nonzero()[:, 0]
        self._rows = self._rows[rows]
        self.u = pytree.tree_map(lambda part: part[rows], self.u)
        self.best, self.best_image = self.best[rows], self.best_image[rows]
        self._residual, self._reference = self._residual[rows], self._reference[rows]
        self._settled, self.restart = self._settled[rows], self.restart[rows]
        self._none = self._none[rows]
        self._milestone, self._plain_until = self._milestone[rows], self._plain_until[rows]
        return rows

    def result(self) -> SolverResult:
        """Return the best iterates of all rows with their own residuals."""
        best, residual = self.best, self._exact(slice(None))
        if self._rows is not None:
            parts = [*self._left, (self._rows, best, residual)]
            order = torch.cat([p[0] for p in parts]).argsort()
            best = torch.cat([p[1] for p in parts])[order]
            residual = torch.cat([p[2] for p in parts])[order]
        dtype = torch.promote_types(best.dtype, torch.float32)
        return SolverResult(best, residual.to(dtype), residual <= self._tolerance, self.nfe)

    def _exact(self, rows: Tensor | slice) -> Tensor:
        """Return the residuals of the best iterates; infinite where no image was finite."""
        best, image = self.best.detach()[rows], self.best_image.detach()[rows]
        residual = relative_residual(best, image)
        return torch.where(torch.isinf(self._residual[rows]), torch.inf, residual)
