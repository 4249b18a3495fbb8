"""The way back through a chain of invertible blocks: states by inverting, and gradients."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, cast, final

import torch
from torch import Tensor, nn

from stabnet import ConvergenceError
from stabnet.interfaces import Block, Features, FusedInvertible, Invertible

from .blocks.fused import Pull, added, linearized

__all__ = ["Chain", "Named", "Walk", "distinct", "run"]

Named: TypeAlias = list[dict[str, Tensor]]
"""The parameters of every block by name, shared ones under each of their names."""


@dataclass(frozen=True)
class Chain:
    """Blocks, and how they are gone back through.

    Attributes:
        blocks: the blocks.
        every: number of blocks between states that are kept.
        tolerance: relative error of a reconstruction that is accepted, if it was given.
        lowered: called with the number of blocks that states should be kept at from now on, where
            ``every`` is too large and was not given.
    """

    blocks: nn.ModuleList
    every: int
    tolerance: float | None
    lowered: Callable[[int], None] | None

    def parameters(self) -> Named:
        """Return the parameters of every block."""
        return [dict(b.named_parameters(remove_duplicate=False)) for b in self.blocks]


def distinct(named: Named) -> list[Tensor]:
    """Return every parameter once."""
    return list({id(p): p for group in named for p in group.values()}.values())


def run(blocks: nn.ModuleList, every: int, z: Tensor, u: Features) -> tuple[list[Tensor], Tensor]:
    """Return the states before every so many blocks, the first among them, and the last state."""
    kept = []
    for index, block in enumerate(blocks):
        if index % every == 0:
            kept.append(z)
        z = block(z, u)
    return kept, z


@final
class Walk(nn.Module):
    """The way back through a chain; a module, so that its parameters can be replaced.

    Args:
        chain: the chain.
        features: those of its features, leaves.
        parameters: those of every block, leaves.
        eps: the precision of autocast, or zero.
    """

    def __init__(
        self, chain: Chain, features: list[Tensor], parameters: list[list[Tensor]], eps: float
    ) -> None:
        super().__init__()
        self.chain, self.blocks = chain, chain.blocks
        self.leaves = [[t for t in (*features, *own) if t.requires_grad] for own in parameters]
        self.eps = eps

    def forward(
        self, kept: list[Tensor], end: Tensor, u: Features, g: Tensor
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Return the gradients of the state and, by identity, of all leaves.

        Raises:
            ConvergenceError: if reconstructions differ too much from the states that were kept.
        """
        chain, every, eps = self.chain, self.chain.every, torch.finfo(end.dtype).eps
        tolerance = chain.tolerance or max(eps ** (2 / 3), self.eps)
        while True:
            gradient, found, difference = self._back(every, list(kept), end, u, g)
            error = float(difference)
            if error <= tolerance:
                return gradient, found
            if not all(bool(z.isfinite().all()) for z in (*kept, end)):
                raise ConvergenceError(
                    "states of a reversible chain are not finite, and cannot be reconstructed. "
                    "Look for the cause in the inputs or the parameters, or shorten the steps"
                )
            shorter = _shorter(every, error, tolerance, eps)
            if chain.lowered is None or every == 1:
                raise ConvergenceError(_refusal(every, shorter, error, tolerance))
            every = shorter
            kept, again = run(self.blocks, every, kept[0], u)
            if float(_difference(again, end, end)) > tolerance:
                raise ConvergenceError(
                    "a reversible chain does not map the same state to the same state again, and "
                    "cannot be inverted: its blocks are random, change whenever they run (as with "
                    "spectral_norm in training mode), or were changed after the forward pass. "
                    "Leave them as they are, or set stored=True"
                )
            warnings.warn(
                f"states of a reversible chain were reconstructed with a relative error of "
                f"{error:.2g}; the tolerance is {tolerance:.2g}. The backward pass is repeated "
                f"with a state kept every {every} blocks, as it will be from now on",
                stacklevel=2,
            )
            chain.lowered(every)

    def _back(
        self, every: int, kept: list[Tensor], z: Tensor, u: Features, g: Tensor
    ) -> tuple[Tensor, dict[int, Tensor], Tensor]:
        """Return gradients as above, and the largest error of a state that was kept."""
        found, error = dict[int, Tensor](), z.new_zeros((), dtype=torch.float32)
        for index in reversed(range(len(self.blocks))):
            block, leaves, behind = cast("Block", self.blocks[index]), self.leaves[index], z
            z, pull = _inverted(block, z, u, leaves)
            gradient, *others = pull(g)
            g = torch.zeros_like(z) if gradient is None else gradient
            for leaf, d in zip(leaves, others, strict=True):
                if d is not None:
                    found[id(leaf)] = added(d, found.get(id(leaf)))
            if index % every == 0:
                start = kept.pop()
                error = torch.maximum(error, _difference(z, start, behind))
                z = start
        return g, found, error


def _inverted(block: Block, z: Tensor, u: Features, leaves: list[Tensor]) -> tuple[Tensor, Pull]:
    """Return what a block maps to ``z``, and its vector–Jacobian product there."""
    if hasattr(block, "inverse_with_vjp"):  # isinstance with a protocol takes as long as the rest
        return cast("FusedInvertible", block).inverse_with_vjp(z, u)
    with torch.no_grad():
        z = cast("Invertible", block).inverse(z, u)
    return z, linearized(lambda z: cast("Tensor", block(z, u)), z, leaves)[1]


def _difference(found: Tensor, kept: Tensor, behind: Tensor) -> Tensor:
    """Return the largest difference of a state to the one that was kept, relative to their size.

    That is the norm of the state or, if larger, of the one after the next block (for a first state
    may be zero), or the median of these over the batch (so that no single state near zero decides).
    States further on, which may be much larger, say nothing of the accuracy that is needed here.
    """
    if not len(found):
        return found.new_zeros(())
    precision = torch.promote_types(found.dtype, torch.float32)
    difference, *sizes = (
        torch.linalg.vector_norm(x.flatten(1), dim=1, dtype=precision)
        for x in (found - kept, kept, behind)
    )
    size = torch.maximum(*sizes)
    size = torch.maximum(size, size.median())
    return torch.where(difference == 0, difference, difference / size).amax()


def _shorter(every: int, error: float, tolerance: float, eps: float) -> int:
    """Return after how many blocks an error is within the tolerance, by estimate."""
    shorter = every // 2
    if math.isfinite(error) and tolerance > eps:
        # Errors grow like powers of the number of blocks, from the machine precision on.
        share = math.log(tolerance / eps) / math.log(error / eps)
        shorter = min(shorter, int(every * share))
    return max(shorter, 1)


def _refusal(every: int, shorter: int, error: float, tolerance: float) -> str:
    """Return the message about a reconstruction that is not good enough."""
    behind = "the block" if every == 1 else f"{every} blocks"
    more = (
        f"Keep a state every {shorter} blocks (checkpoint_every), shorten"
        if every > 1
        else "No more states can be kept. Look whether inverse(z) undoes the block, shorten"
    )
    return (
        f"a state reconstructed from {behind} behind it differs from the one that was kept by "
        f"{error:.2g}, relatively; the tolerance is {tolerance:.2g}. {more} the steps, use "
        "float64, or set stored=True. Blocks that were changed after the forward pass cannot be "
        "inverted at all"
    )
