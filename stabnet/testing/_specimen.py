"""Specimens: an entry built from its example, with inputs to call it with."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from ..errors import PluginError
from ..interfaces import Context, Potential, Solution
from ..plugin import Entry, build, entries
from ._stand_ins import CLASSES, AffineMap, Oscillator, contraction, stand_in_model, stand_in_system

__all__ = ["MODULES", "TIMES", "Specimen", "build_part", "potential_context", "specimen"]

MODULES = (
    "model",
    "backbone",
    "vector_field",
    "cell",
    "potential",
    "block",
    "head",
    "integrator",
    "solver",
    "objective",
)
"""The kinds whose parts are modules that can be called on tensors."""

TIMES = (0.0, 0.25, 0.5)
"""Where an integrator is asked for states."""

Call = Callable[..., Any]
Built = tuple[tuple[Tensor, ...], Call]


def build_part(entry: Entry, seed: int = 0) -> Any:
    """Build an entry from its example, drawing initial weights with a seed.

    Raises:
        PluginError: if the entry is not the one registered under its name.
    """
    if entries(entry.name, kind=entry.kind) != (entry,):
        raise PluginError(
            f"{entry.kind}/{entry.name} is not what is registered under this name; "
            "checks build by name, so register the entry first"
        )
    options = dict(entry.example or {})
    if entry.kind == "optimizer" and "params" not in options:
        options["params"] = list(stand_in_model().parameters())
    torch.default_generator.manual_seed(seed)
    return build(entry.name, kind=entry.kind, **options)


@final
@dataclass(frozen=True)
class Specimen:
    """A part, and how it is called.

    Attributes:
        entry: the entry.
        part: what its factory returned.
        inputs: tensors with a leading batch dimension.
        call: evaluates ``call(part, *inputs)``.
    """

    entry: Entry
    part: nn.Module
    inputs: tuple[Tensor, ...]
    call: Call

    def __call__(self, *inputs: Tensor, part: nn.Module | None = None) -> tuple[Tensor, ...]:
        """Return the part's outputs as a tuple of tensors, for other inputs or another part."""
        out = self.call(self.part if part is None else part, *(inputs or self.inputs))
        return out if isinstance(out, tuple) else (out,)

    def rows(self, start: int, stop: int) -> tuple[Tensor, ...]:
        """Return some samples of the inputs."""
        return tuple(t[start:stop] for t in self.inputs)


def specimen(
    entry: Entry, *, dtype: torch.dtype = torch.float32, batch: int = 3, seed: int = 0
) -> Specimen:
    """Build an entry's example, in eval mode, with random inputs.

    Args:
        entry: an entry of one of the kinds :data:`MODULES`.
        dtype: precision of part and inputs.
        batch: number of samples.
        seed: seed of the initial weights.
    """
    part = build_part(entry, seed).to(dtype).eval()
    inputs, call = _CALLS[entry.kind](entry, part, _Draw(batch, dtype))
    return Specimen(entry, part, inputs, call)


@final
class _Draw:
    """Draws inputs from a generator of its own, the same in every precision."""

    def __init__(self, batch: int, dtype: torch.dtype) -> None:
        self.batch, self.dtype = batch, dtype
        self.generator = torch.Generator().manual_seed(1)

    def normal(self, *shape: int) -> Tensor:
        drawn = torch.randn(self.batch, *shape, generator=self.generator, dtype=torch.float64)
        return drawn.to(self.dtype)

    def uniform(self, *shape: int) -> Tensor:
        drawn = torch.rand(self.batch, *shape, generator=self.generator, dtype=torch.float64)
        return drawn.to(self.dtype)

    def labels(self) -> Tensor:
        return torch.randint(CLASSES, (self.batch,), generator=self.generator)


def _plainly(part: nn.Module, *inputs: Tensor) -> Any:
    """Call a part as a plain module."""
    return part(*inputs)


def _model(entry: Entry, part: Any, draw: _Draw) -> Built:
    return (draw.uniform(*part.in_shape),), _plainly


def _driven(part: Any, draw: _Draw) -> tuple[Tensor, ...]:
    """Return a state, and features for a part that has them."""
    state = draw.normal(*part.state_shape)
    return (state, draw.normal(*part.feature_shape)) if part.feature_shape else (state,)


def _vector_field(entry: Entry, part: Any, draw: _Draw) -> Built:
    return _driven(part, draw), lambda part, *inputs: part(0.5, *inputs)


def _cell(entry: Entry, part: Any, draw: _Draw) -> Built:
    if not isinstance(part.state_shape[0], tuple):
        return _driven(part, draw), _plainly
    states = tuple(draw.normal(*shape) for shape in part.state_shape)
    features = (draw.normal(*part.feature_shape),) if part.feature_shape else ()
    count = len(states)
    return (*states, *features), lambda part, *inputs: part(inputs[:count], *inputs[count:])


def potential_context(part: Potential, label: Tensor) -> Context:
    """Return what a supervised potential needs: labels, and a linear head of fixed weights."""
    ndim, size = len(part.state_shape), math.prod(part.state_shape)

    def head(z: Tensor) -> Tensor:
        weight = torch.linspace(-1, 1, CLASSES * size, dtype=z.dtype).view(CLASSES, size)
        return nn.functional.linear(z.flatten(-ndim), weight)

    return Context(label=label, head=head)


def _potential(entry: Entry, part: Any, draw: _Draw) -> Built:
    def call(part: Any, z: Tensor, label: Tensor) -> Any:
        return part.value_and_gradient(z, potential_context(part, label))

    return (draw.normal(*part.state_shape), draw.labels()), call


def _block(entry: Entry, part: Any, draw: _Draw) -> Built:
    features = getattr(part, "feature_shape", part.state_shape)

    def call(part: nn.Module, z: Tensor, u: Tensor) -> Any:
        out = part(z, u)
        return out.state if isinstance(out, Solution) else out

    return (draw.normal(*part.state_shape), draw.normal(*features)), call


def _head(entry: Entry, part: Any, draw: _Draw) -> Built:
    return (draw.normal((entry.example or {})["in_features"]),), _plainly


def _integrator(entry: Entry, part: Any, draw: _Draw) -> Built:
    oscillator = Oscillator()

    def call(part: Any, z0: Tensor, u: Tensor) -> Tensor:
        states: Tensor = part(oscillator, z0, TIMES, u).states
        return states.movedim(0, 1)  # the batch first, as everywhere else

    return (draw.normal(4), 0.5 + 0.5 * draw.uniform(2)), call


def _solver(entry: Entry, part: Any, draw: _Draw) -> Built:
    def call(part: Any, u: Tensor) -> Any:
        return part(AffineMap(contraction(5, u)), torch.zeros_like(u), u).state

    return (draw.normal(5),), call


def _objective(entry: Entry, part: Any, draw: _Draw) -> Built:
    states = part.inputs == "states"
    model = (stand_in_system() if states else stand_in_model(part.dynamics)).to(draw.dtype).eval()
    y = draw.labels() if part.task == "classification" else draw.normal(CLASSES)
    return (draw.uniform(*model.in_shape), y), lambda part, x, y: part(model, x, y)[0]


_CALLS: dict[str, Callable[[Entry, Any, _Draw], Built]] = {
    "model": _model,
    "backbone": _model,
    "vector_field": _vector_field,
    "cell": _cell,
    "potential": _potential,
    "block": _block,
    "head": _head,
    "integrator": _integrator,
    "solver": _solver,
    "objective": _objective,
}
