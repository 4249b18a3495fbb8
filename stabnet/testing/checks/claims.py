"""Checks of what a part claims of itself: guarantees and bounds."""

from __future__ import annotations

import json

import torch
from torch import Tensor

from ...errors import StabnetError
from ...interfaces import BoundsLipschitz, Guarantee, Guaranteed
from ...plugin import Entry
from .._numbers import identical, jacobian
from .._outcome import SkipCheck, require
from .._specimen import Specimen, specimen

__all__ = ["check_guarantees", "check_lipschitz_bound"]


def check_guarantees(entry: Entry) -> None:
    """Guarantees are stated as :class:`stabnet.interfaces.Guarantee`, and can be written down."""
    part = specimen(entry).part
    if not isinstance(part, Guaranteed):
        raise SkipCheck("it states no guarantees")
    for guarantee in part.guarantees():
        found = type(guarantee).__qualname__
        require(isinstance(guarantee, Guarantee), entry, "guarantees of the type Guarantee", found)
        json.dumps(guarantee.to_dict())


def check_lipschitz_bound(entry: Entry) -> None:
    """Nothing tried contradicts the Lipschitz bound, as built and after an edit in place.

    Neither a derivative nor two states, near each other or far apart. The bound must follow an edit
    that leaves no trace. A block that has one does not look at the features: else a perturbation of
    the input would reach its output by a second way, which the bound says nothing of.
    """
    s = specimen(entry, dtype=torch.float64)
    if not isinstance(s.part, BoundsLipschitz):
        raise SkipCheck("it bounds no Lipschitz constant")
    try:
        bound = s.part.lipschitz_bound()
    except StabnetError as error:
        raise SkipCheck(f"it knows no bound as it stands: {error}") from error
    if entry.kind == "block":
        state, features = s.inputs
        alike = identical(s(state, 2 * features + 1), s())
        require(alike, entry, "no look at the features, since it bounds its constant", "one")
    _check_bound(s, bound, "as built")
    for parameter in s.part.parameters():
        parameter.data.mul_(3)
    try:
        bound = s.part.lipschitz_bound()
    except StabnetError:
        return
    _check_bound(s, bound, "after its parameters were multiplied by 3 in place")


def _check_bound(s: Specimen, bound: float, when: str) -> None:
    """Compare a bound with derivatives, and with what becomes of distances between states."""
    generator = torch.Generator().manual_seed(4)
    for i in range(len(s.inputs[0])):
        first, *rest = s.rows(i, i + 1)

        def of_state(z: Tensor, rest: list[Tensor] = rest) -> Tensor:
            return torch.cat([t.flatten() for t in s(z, *rest)])

        matrix = jacobian(of_state, first).flatten(1)
        worst = torch.linalg.svd(matrix, full_matrices=False).Vh[0].view_as(first)
        other = torch.randn(first.shape, generator=generator, dtype=first.dtype)
        norm = float(torch.linalg.matrix_norm(matrix, 2))
        _require_within(s, bound, norm, f"the derivative's norm at a random state, {when}")
        with torch.no_grad():
            here = of_state(first)
            for direction in (worst, other / other.norm()):
                for distance in (1e-3, 1.0, 1e3):
                    there = of_state(first + distance * direction)
                    # Distances cannot be told to less than the rounding of what is far from zero.
                    rounding = 1e-14 * float(here.norm() + there.norm())
                    growth = (float((there - here).norm()) - rounding) / distance
                    what = f"the growth of a distance of {distance:g} between states, {when}"
                    _require_within(s, bound, growth, what)


def _require_within(s: Specimen, bound: float, found: float, what: str) -> None:
    expected = f"{what} to stay within the Lipschitz bound {bound:.6g}"
    require(found <= bound * (1 + 1e-9), s.entry, expected, f"{found:.6g}")
