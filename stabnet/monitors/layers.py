"""The layers of a model, and how they are run one by one without leaving a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from ..checks import check_finite, modes_restored, seeded
from ..errors import InvalidInputError
from ..interfaces import Block, Dynamics, Features, Solution, State, is_composed_of_blocks
from ..model import StabilityModel
from ..stack import Stack

__all__ = ["Layer", "Start", "inspected", "usable"]


@final
@dataclass(frozen=True)
class Layer:
    """A block, which may look at features, or a dynamics, which its state drives.

    Attributes:
        name: where it is in the model, for messages.
        module: the block or dynamics.
    """

    name: str
    module: nn.Module

    def __call__(self, z: Tensor, u: Features) -> Tensor:
        """Return the state behind the layer."""
        z = z.clone()  # which the layer may change in place
        out = self.module(z) if isinstance(self.module, Dynamics) else self.module(z, u)
        return _tensor(out.state if isinstance(out, Solution) else out, f"behind {self}")

    def __str__(self) -> str:
        return f"{self.name} ({type(self.module).__name__})"


def usable(t: Tensor) -> Tensor:
    """Return a tensor for a graph of its own, which those made in inference mode cannot be in."""
    return t.clone() if t.is_inference() else t.detach()


class Start(NamedTuple):
    """Where a model begins.

    Attributes:
        layers: its layers, at least one.
        z: the states before the first layer.
        u: the features that all layers are given.
    """

    layers: tuple[Layer, ...]
    z: Tensor
    u: Features


@contextmanager
def inspected(model: nn.Module, x: Tensor, u: Features) -> Iterator[Start]:
    """Give the layers of a model in eval mode, without gradients, and restore what that changes.

    Args:
        model: a :class:`stabnet.StabilityModel` or a :class:`stabnet.interfaces.Block`.
        x: inputs of the model, or states that the block takes.
        u: features, for a block that depends on them.

    Raises:
        InvalidInputError: for anything else as a model, for inputs or states that it does not take,
            and for features that are given to a model, which computes its own.
    """
    layers = _layers(model)
    if not isinstance(x, Tensor):
        raise InvalidInputError(f"inputs are a tensor with a batch; got {type(x).__name__}")
    if u is not None and isinstance(model, StabilityModel):
        raise InvalidInputError(
            "features (u) were given along with inputs of a model, which computes its own; leave "
            "them out"
        )
    with (
        modes_restored(model),
        torch.inference_mode(False),
        torch.no_grad(),
        seeded(0, x.device),
    ):
        model.eval()
        x, u = pytree.tree_map_only(Tensor, usable, (x, u))
        if isinstance(model, StabilityModel):
            u = model.features(x)
            z = _tensor(u, f"before {layers[0]}")
        else:
            _check_states(model, x)
            z = x
        yield Start(layers, z, u)


def _layers(model: nn.Module) -> tuple[Layer, ...]:
    """Return the layers of a model or a block.

    Raises:
        InvalidInputError: if it is neither, or has none.
    """
    parts: list[tuple[str, nn.Module]]
    if isinstance(model, Block):
        parts = [("block", model)]
    elif isinstance(model, StabilityModel) and isinstance(model.dynamics, Stack):
        parts = [(f"dynamics.stages.{i}", stage) for i, stage in enumerate(model.dynamics.stages)]
    elif isinstance(model, StabilityModel):
        parts = [("dynamics", model.dynamics)]
    else:
        raise InvalidInputError(
            f"a {type(model).__name__} has no layers to look at; give a stabnet.StabilityModel or "
            "a stabnet.interfaces.Block"
        )
    found = tuple(layer for name, part in parts for layer in _flattened(name, part))
    if not found:
        raise InvalidInputError(f"the {type(model).__name__} has no layers: its blocks are empty")
    return found


def _flattened(name: str, part: nn.Module) -> Iterator[Layer]:
    if not is_composed_of_blocks(part):
        yield Layer(name, part)
        return
    for index, block in enumerate(part.blocks):
        yield from _flattened(f"{name}.blocks.{index}", block)


def _check_states(block: nn.Module, z: Tensor) -> None:
    shape = tuple(block.state_shape)  # type: ignore[arg-type]
    dtypes = [p.dtype for p in block.parameters() if p.is_floating_point()]
    own = next(iter(dtypes), z.dtype)
    if tuple(z.shape[1:]) != shape or not z.is_floating_point() or z.dtype != own:
        raise InvalidInputError(
            f"states have shape {tuple(z.shape)} and dtype {z.dtype}; {type(block).__name__} takes "
            f"(batch, {', '.join(map(str, shape))}), {own if dtypes else 'floating point'}"
        )
    check_finite(z, "the batch of states")


def _tensor(state: State | None, where: str) -> Tensor:
    if not isinstance(state, Tensor):
        raise InvalidInputError(
            f"the state {where} is a {type(state).__name__}; layers are looked at where states are "
            "single tensors"
        )
    return state
