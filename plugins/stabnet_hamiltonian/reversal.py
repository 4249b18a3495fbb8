"""The backward pass of a chain of invertible blocks, which recomputes its states by inverting."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from stabnet import ConvergenceError, StabnetError
from stabnet.interfaces import Block, Features, FusedInvertible, Invertible

from .blocks.fused import Pull, added, linearized

__all__ = ["Chain", "Reversal"]


@dataclass(frozen=True)
class Chain:
    """Blocks, and how they are gone back through.

    Attributes:
        blocks: the blocks.
        every: number of blocks between states that are kept.
        tolerance: relative error of a reconstruction that is accepted, if it was given.
        several: whether features are a tuple of tensors.
    """

    blocks: nn.ModuleList
    every: int
    tolerance: float | None
    several: bool

    def packed(self, features: list[Tensor]) -> Features:
        """Return the features as blocks take them."""
        if self.several:
            return tuple(features)
        return features[0] if features else None


class Reversal(torch.autograd.Function):
    """A chain as one function of its state, its features and its parameters."""

    @staticmethod
    def forward(ctx: Any, chain: Chain, *arguments: Tensor) -> Tensor:
        """Run the blocks on a state; the further arguments are features, and all parameters."""
        parameters = tuple(chain.blocks.parameters())
        z, *features = arguments[: len(arguments) - len(parameters)]
        # Parameters are not saved, for they live as long as the chain. What is looked at in
        # exchange is whether they still are what they were.
        ctx.chain, ctx.parameters = chain, parameters
        ctx.versions = [p._version for p in parameters]
        # The backward pass runs outside the caller's autocast, whose precision it must repeat.
        device = z.device.type
        enabled, precision = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        ctx.autocast = partial(torch.autocast, device, precision, enabled)
        ctx.eps = torch.finfo(precision).eps if enabled else 0.0
        kept, u = [], chain.packed(features)
        for index, block in enumerate(chain.blocks):
            if index % chain.every == 0:
                kept.append(z)
            z = block(z, u)
        ctx.save_for_backward(*features, *kept, z)
        ctx.feature_count = len(features)
        return z

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        """Return the gradients of all arguments."""
        _check_usable(ctx)
        chain, saved, count = ctx.chain, ctx.saved_tensors, ctx.feature_count
        features = [f.detach().requires_grad_(f.requires_grad) for f in saved[:count]]
        leaves = [_leaf(p) for p in ctx.parameters]
        walk, arguments = _Walk(chain), (list(saved[count:]), features, gradients[0])
        with ctx.autocast(), _frozen_batch_statistics(chain.blocks):
            if all(a is b for a, b in zip(leaves, chain.blocks.parameters(), strict=True)):
                gradient, found, error = walk(*arguments)
            else:
                names = [name for name, _ in walk.named_parameters()]
                replaced = dict(zip(names, leaves, strict=True))
                gradient, found, error = torch.func.functional_call(walk, replaced, arguments)
        _check_error(chain, float(error), torch.finfo(saved[-1].dtype).eps, ctx.eps)
        return None, gradient, *(found.get(id(t)) for t in (*features, *leaves))


def _check_usable(ctx: Any) -> None:
    """Raise :class:`stabnet.StabnetError` where the gradients asked for cannot be computed."""
    if torch.is_grad_enabled():
        raise StabnetError(
            "a gradient through a reversible chain was to be differentiated again "
            "(create_graph=True); what is recomputed by inverting has no second derivative. Set "
            "stored=True on the chain"
        )
    if [p._version for p in ctx.parameters] != ctx.versions:
        raise StabnetError(
            "parameters of a reversible chain were changed in place between its forward and its "
            "backward pass, which needs them as they were. Step the optimizer afterwards, or set "
            "stored=True on the chain"
        )


@contextmanager
def _frozen_batch_statistics(blocks: nn.Module) -> Iterator[None]:
    """Leave running statistics alone: those of this batch were recorded by the forward pass."""
    recording = [
        m
        for m in blocks.modules()
        if isinstance(m, _BatchNorm) and m.training and m.track_running_stats
    ]
    try:
        for m in recording:
            m.track_running_stats = False
        yield
    finally:
        for m in recording:
            m.track_running_stats = True


def _leaf(parameter: Tensor) -> Tensor:
    """Return a parameter, or its double where gradients of it would run somebody's hooks.

    They will run when the whole gradient reaches the parameter itself.
    """
    if parameter.is_leaf and not parameter._backward_hooks:
        return parameter
    return parameter.detach().requires_grad_(parameter.requires_grad)


@final
class _Walk(nn.Module):
    """The way back through a chain; a module, so that its parameters can be replaced."""

    def __init__(self, chain: Chain) -> None:
        super().__init__()
        self.chain, self.blocks = chain, chain.blocks

    def forward(
        self, states: list[Tensor], features: list[Tensor], g: Tensor
    ) -> tuple[Tensor, dict[int, Tensor], Tensor]:
        """Return the gradients of the state and, by identity, of all leaves; and the error."""
        u, found = self.chain.packed(features), dict[int, Tensor]()
        *kept, z = states
        end, error = z, z.new_zeros((), dtype=torch.float32)
        for index in reversed(range(len(self.blocks))):
            block = cast("Block", self.blocks[index])
            leaves = [t for t in (*features, *block.parameters()) if t.requires_grad]
            z, pull = _inverted(block, z, u, leaves)
            gradient, *others = pull(g)
            g = torch.zeros_like(z) if gradient is None else gradient
            for leaf, d in zip(leaves, others, strict=True):
                if d is not None:
                    found[id(leaf)] = added(d, found.get(id(leaf)))
            if index % self.chain.every == 0:
                start = kept.pop()
                error = torch.maximum(error, _difference(z, start, end))
                z = end = start
        return g, found, error


def _inverted(block: Block, z: Tensor, u: Features, leaves: list[Tensor]) -> tuple[Tensor, Pull]:
    """Return what a block maps to ``z``, and its vector–Jacobian product there."""
    if isinstance(block, FusedInvertible):
        return block.inverse_with_vjp(z, u)
    with torch.no_grad():
        z = cast("Invertible", block).inverse(z, u)
    return z, linearized(lambda z: cast("Tensor", block(z, u)), z, leaves)[1]


def _difference(found: Tensor, kept: Tensor, end: Tensor) -> Tensor:
    """Return the largest relative difference of a sample's state to the one that was kept."""
    difference, *sizes = (x.flatten(1).float().norm(dim=1) for x in (found - kept, kept, end))
    scale = torch.maximum(*sizes)
    return torch.where(difference == 0, difference, difference / scale).amax()


def _check_error(chain: Chain, error: float, eps: float, autocast_eps: float) -> None:
    """Raise :class:`stabnet.ConvergenceError` for a reconstruction that is not good enough."""
    tolerance = max(eps ** (2 / 3), autocast_eps) if chain.tolerance is None else chain.tolerance
    if error <= tolerance:
        return
    shorter = chain.every // 2
    if math.isfinite(error) and tolerance > eps:
        # Errors grow like powers of the number of blocks, from the machine precision on.
        share = math.log(tolerance / eps) / math.log(error / eps)
        shorter = min(shorter, int(chain.every * share))
    raise ConvergenceError(
        f"a state reconstructed from {chain.every} blocks behind it differs from the one that was "
        f"kept by {error:.2g}, relatively; the tolerance is {tolerance:.2g}. Keep a state every "
        f"{max(shorter, 1)} blocks (checkpoint_every), shorten the steps, use float64, or set "
        "stored=True. Blocks that are random (dropout), or were changed after the forward pass, "
        "cannot be inverted at all"
    )
