"""Checks of objectives, on a tiny classifier or system."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...plugin import Entry
from .._numbers import gradient_fault
from .._outcome import require
from .._specimen import specimen
from .._stand_ins import CLASSES, stand_in_model, stand_in_system

__all__ = ["check_objective"]


def check_objective(entry: Entry) -> None:
    """The loss is a scalar whose gradient reaches the model; what is logged is detached."""
    part = specimen(entry, dtype=torch.float64).part
    states = getattr(part, "inputs", "any") == "states"
    model = stand_in_system() if states else stand_in_model(getattr(part, "dynamics", "any"))
    model = model.double()
    model.head.eval()
    modes = [m.training for m in model.modules()]
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(3, *model.in_shape, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 2, 1])
    y = labels if getattr(part, "task", "") == "classification" else torch.eye(CLASSES).double()
    loss, logs = part(model, x, y)
    scalar = loss.shape == () and bool(loss.isfinite())
    require(scalar, entry, "a finite scalar loss", loss)
    for name, value in logs.items():
        fine = isinstance(value, Tensor) and value.shape == () and not value.requires_grad
        require(fine, entry, f"a detached scalar tensor logged as {name!r}", value)
    loss.backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    require(not without, entry, "a gradient in every parameter of the model", f"none in {without}")
    kept = modes == [m.training for m in model.modules()]
    require(kept, entry, "every module of the model to keep its mode", "changed modes")
    fault = gradient_fault(_Trained(model, part).eval(), lambda m, x, y: (m(x, y),), (x, y))
    require(fault is None, entry, "gradients that agree with central differences", fault)


class _Trained(nn.Module):
    """Model and objective in one module, as training wraps them."""

    def __init__(self, model: nn.Module, objective: nn.Module) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        torch.default_generator.manual_seed(0)
        loss: Tensor = self.objective(self.model, x, y)[0]
        return loss
