"""A chain of invertible blocks as one function, whose backward pass recomputes the states."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from stabnet import StabnetError
from stabnet.interfaces import Features

from .walk import Chain, Named, Walk, distinct, run

__all__ = ["Reversal"]


class Reversal(torch.autograd.Function):
    """A chain as one function of its state, its features and its parameters."""

    @staticmethod
    def forward(ctx: Any, chain: Chain, named: Named, several: bool, *arguments: Tensor) -> Tensor:
        """Run the blocks.

        Args:
            ctx: what the backward pass will need.
            chain: the blocks.
            named: their parameters.
            several: whether features are a tuple of tensors.
            arguments: the state, the features, and every parameter once.
        """
        parameters = distinct(named)
        z, *features = arguments[: len(arguments) - len(parameters)]
        # Parameters are not saved, for they live as long as the chain. What is looked at in
        # exchange is whether they still are what they were.
        ctx.chain, ctx.named, ctx.several = chain, named, several
        ctx.parameters, ctx.versions = parameters, [p._version for p in parameters]
        # The backward pass runs outside the caller's autocast, whose precision it must repeat.
        # Older torch would take weights from its cache that were cast without a gradient.
        device = z.device.type
        enabled, precision = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        ctx.autocast = partial(torch.autocast, device, precision, enabled, cache_enabled=False)
        ctx.eps = torch.finfo(precision).eps if enabled else 0.0
        drawn = _random_state(z)
        with ctx.autocast():
            kept, end = run(chain.blocks, chain.every, z, _packed(features, several))
        if not torch.equal(drawn, _random_state(z)):
            raise StabnetError(
                "a block of a reversible chain drew random numbers, so that its states cannot be "
                "recomputed. Leave out dropout and the like, or set stored=True on the chain"
            )
        ctx.save_for_backward(*features, *kept, end)
        return end

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        """Return the gradients of all arguments."""
        _check_unchanged(ctx)
        chain, count = ctx.chain, -(-len(ctx.chain.blocks) // ctx.chain.every)
        *saved, end = ctx.saved_tensors
        given, kept = saved[:-count], saved[-count:]
        if torch.is_grad_enabled():
            return None, None, None, *_differentiable(ctx, kept[0], given, gradients[0])
        features = [f.detach().requires_grad_(f.requires_grad) for f in given]
        leaves = {id(p): _leaf(p) for p in ctx.parameters}
        named = [{name: leaves[id(p)] for name, p in group.items()} for group in ctx.named]
        walk = Walk(chain, features, [distinct([group]) for group in named], ctx.eps)
        arguments = (kept, end, _packed(features, ctx.several), gradients[0])
        with ctx.autocast(), _frozen_batch_statistics(chain.blocks):
            if all(
                leaf is own.get(name)
                for group, own in zip(named, chain.parameters(), strict=True)
                for name, leaf in group.items()
            ):
                gradient, found = walk(*arguments)
            else:
                gradient, found = torch.func.functional_call(walk, _replacing(named), arguments)
        return (
            None,
            None,
            None,
            gradient,
            *(found.get(id(t)) for t in (*features, *leaves.values())),
        )


def _packed(features: list[Tensor], several: bool) -> Features:
    """Return the features as blocks take them."""
    if several:
        return tuple(features)
    return features[0] if features else None


def _random_state(z: Tensor) -> Tensor:
    """Return the states of the generators that blocks would draw random numbers from."""
    states = [torch.get_rng_state()]
    if z.is_cuda:
        states.append(torch.cuda.get_rng_state(z.device))
    return torch.cat(states)


def _check_unchanged(ctx: Any) -> None:
    """Raise :class:`stabnet.StabnetError` if parameters are not those of the forward pass."""
    if [p._version for p in ctx.parameters] != ctx.versions:
        raise StabnetError(
            "parameters of a reversible chain were changed in place between its forward and its "
            "backward pass, which needs them as they were. Step the optimizer afterwards, or set "
            "stored=True on the chain"
        )


@final
class _Stored(nn.Module):
    """Blocks in a row; a module, so that their parameters can be replaced."""

    def __init__(self, blocks: nn.ModuleList) -> None:
        super().__init__()
        self.blocks = blocks

    def forward(self, z: Tensor, u: Features) -> Tensor:
        return run(self.blocks, len(self.blocks), z, u)[1]


def _differentiable(
    ctx: Any, z: Tensor, features: list[Tensor], g: Tensor
) -> tuple[Tensor | None, ...]:
    """Return the gradients of all arguments as functions of these, from stored activations."""
    # Aliases, so that hooks of the arguments themselves do not run here.
    aliases = [t.view_as(t) for t in (z, *features, *ctx.parameters)]
    z, *rest = aliases
    u = _packed(rest[: len(features)], ctx.several)
    own = {id(p): a for p, a in zip(ctx.parameters, rest[len(features) :], strict=True)}
    named = [{name: own[id(p)] for name, p in group.items()} for group in ctx.named]
    blocks = ctx.chain.blocks
    with ctx.autocast(), _frozen_batch_statistics(blocks):
        out = torch.func.functional_call(_Stored(blocks), _replacing(named), (z, u))
    wanted = [a for a in aliases if a.requires_grad]
    found = torch.autograd.grad(out, wanted, g, create_graph=True, allow_unused=True)
    gradients = {id(a): d for a, d in zip(wanted, found, strict=True)}
    return tuple(gradients.get(id(a)) for a in aliases)


def _replacing(named: Named) -> dict[str, Tensor]:
    """Return what replaces the parameters of a module with these blocks, by their full names."""
    return {
        f"blocks.{index}.{name}": tensor
        for index, group in enumerate(named)
        for name, tensor in group.items()
    }


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
