"""Checks of optimizers, on the weights of a tiny classifier."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from ...model import StabilityModel
from ...plugin import Entry, build
from .._numbers import identical
from .._outcome import require
from .._stand_ins import CLASSES, IMAGE, stand_in_model

__all__ = ["check_optimizer_resumes", "check_optimizer_steps"]


def check_optimizer_steps(entry: Entry) -> None:
    """A step changes the parameters, and a few lower the loss."""
    model, optimizer = _training(entry)
    before = [p.detach().clone() for p in model.parameters()]
    losses = [_step(model, optimizer) for _ in range(5)]
    changed = not any(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    require(changed, entry, "steps to change every parameter that has a gradient", "no change")
    what = f"a loss below {losses[0]:.6g} after four steps"
    require(losses[-1] < losses[0], entry, what, f"{losses[-1]:.6g}; give the example another lr")


def check_optimizer_resumes(entry: Entry) -> None:
    """From a state dict, training goes on exactly as it would have."""
    model, optimizer = _training(entry)
    _step(model, optimizer)
    resumed = copy.deepcopy(model)
    other = _optimizer(entry, resumed)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(2):
        _step(model, optimizer)
        _step(resumed, other)
    same = identical(tuple(resumed.parameters()), tuple(model.parameters()))
    require(same, entry, "the same steps after its state dict is loaded", "other steps")


def _training(entry: Entry) -> tuple[StabilityModel, torch.optim.Optimizer]:
    torch.default_generator.manual_seed(0)
    model = stand_in_model()
    return model, _optimizer(entry, model)


def _optimizer(entry: Entry, model: StabilityModel) -> torch.optim.Optimizer:
    options = {**(entry.example or {}), "params": list(model.parameters())}
    built: torch.optim.Optimizer = build(entry.name, kind="optimizer", **options)
    return built


def _step(model: StabilityModel, optimizer: torch.optim.Optimizer) -> float:
    """Take one step; return the loss before it."""
    x = torch.linspace(0, 1, 96).view(6, *IMAGE)
    loss: Tensor = torch.nn.functional.cross_entropy(model(x), torch.arange(6) % CLASSES)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())
