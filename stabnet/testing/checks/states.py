"""Checks of functions of the state: vector fields and potentials."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...interfaces import Potential
from ...plugin import Entry
from .._numbers import difference
from .._outcome import SkipCheck, require
from .._specimen import Specimen, potential_context, specimen

__all__ = [
    "check_field_samples",
    "check_potential_center",
    "check_potential_gradient",
    "check_potential_samples",
    "check_potential_sign",
]

_ROUNDING = 1e-9
_SAMPLES = 2


def _samples(s: Specimen, batch: int) -> Tensor:
    """Return random states ``(batch, samples, *state_shape)``."""
    shape = (batch, _SAMPLES, *s.inputs[0].shape[1:])
    generator = torch.Generator().manual_seed(2)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def check_field_samples(entry: Entry) -> None:
    """Many states against one set of features give what evaluating them one by one gives."""
    s = specimen(entry, dtype=torch.float64)
    features = s.inputs[1:]
    for batch in (3, 1):  # a batch of one is broadcast against the features'
        z = _samples(s, batch)
        (found,) = s(z, *features)
        rows = 3 if features else batch
        wide = z.expand(rows, *z.shape[1:])
        one_by_one = [s(wide[:, k], *features)[0] for k in range(_SAMPLES)]
        expected = torch.stack(one_by_one, 1)
        shape = tuple(expected.shape)
        what = f"states {tuple(z.shape)} to give values {shape}"
        require(tuple(found.shape) == shape, entry, what, tuple(found.shape))
        gap = difference([found], [expected])
        what = f"states {tuple(z.shape)} to give what they give one by one"
        require(gap <= _ROUNDING, entry, what, f"a relative difference of {gap:.3g}")


def check_potential_samples(entry: Entry) -> None:
    """Value and gradient of states with a sample dimension are those of the single states."""
    s = specimen(entry, dtype=torch.float64)
    z, label = _samples(s, 3), s.inputs[1]
    found = s(z, label)
    each = [s(z[:, k], label) for k in range(_SAMPLES)]
    expected = [torch.stack([one[i] for one in each], 1) for i in range(2)]
    gap = difference(found, expected)
    what = "states with a sample dimension to give what they give one by one"
    require(gap <= _ROUNDING, entry, what, f"a relative difference of {gap:.3g}")


def check_potential_gradient(entry: Entry) -> None:
    """``value_and_gradient`` returns the value of ``forward``, and its gradient."""
    s = specimen(entry, dtype=torch.float64)
    part = s.part
    assert isinstance(part, Potential)
    z, label = s.inputs
    value, gradient = s()
    context = potential_context(part, label)
    at = z.clone().requires_grad_()
    expected = part(at, context)
    (by_autograd,) = torch.autograd.grad(expected.sum(), at)
    by_default = Potential.value_and_gradient(part, z, context)[1]
    for found, wanted, what in (
        (value, expected, "the value of forward"),
        (gradient, by_autograd, "the gradient of forward, by autograd"),
        (gradient, by_default, "the gradient of forward, by torch.func"),
    ):
        gap = difference([found], [wanted])
        what = f"value_and_gradient to return {what}"
        require(gap <= _ROUNDING, entry, what, f"a relative difference of {gap:.3g}")


def check_potential_sign(entry: Entry) -> None:
    """A potential is never negative, near or far."""
    s = specimen(entry, dtype=torch.float64)
    z, label = s.inputs
    for scale in (1e-3, 1.0, 1e3):
        lowest = float(s(scale * z, label)[0].detach().min())
        require(lowest >= 0, entry, "V(z) ≥ 0", f"V = {lowest:.3g} at states of size {scale:g}")


def check_potential_center(entry: Entry) -> None:
    """Where a center is given, value and gradient vanish there."""
    s = specimen(entry, dtype=torch.float64)
    part = s.part
    assert isinstance(part, Potential)
    z, label = s.inputs
    center = z + 0.5
    context = potential_context(part, label)
    there = replace(context, center=center)
    moved, plain = part(z, there), part(z, context)
    if torch.equal(moved, plain):
        raise SkipCheck("it does not depend on a given center")
    value, gradient = part.value_and_gradient(center, there)
    worst = float(torch.cat([value, gradient.flatten()]).detach().abs().max())
    require(worst <= 1e-12, entry, "V = 0 and ∇V = 0 at the center", f"{worst:.3g}")
