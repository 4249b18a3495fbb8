"""Checks of what a part claims of itself: guarantees and bounds."""

from __future__ import annotations

import json

import torch
from torch import Tensor

from ...errors import StabnetError
from ...interfaces import BoundsLipschitz, Guarantee, Guaranteed
from ...plugin import Entry
from .._numbers import jacobian
from .._outcome import SkipCheck, require
from .._specimen import specimen

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
    """The bound of the Lipschitz constant is not below the derivative's norm anywhere tried."""
    s = specimen(entry, dtype=torch.float64)
    if not isinstance(s.part, BoundsLipschitz):
        raise SkipCheck("it bounds no Lipschitz constant")
    try:
        bound = s.part.lipschitz_bound()
    except StabnetError as error:
        raise SkipCheck(f"it knows no bound as it stands: {error}") from error
    for i in range(3):
        first, *rest = s.rows(i, i + 1)

        def of_state(z: Tensor, rest: list[Tensor] = rest) -> Tensor:
            return torch.cat([t.flatten() for t in s(z, *rest)])

        norm = float(torch.linalg.matrix_norm(jacobian(of_state, first).flatten(1), 2))
        require(
            norm <= bound * (1 + 1e-9),
            entry,
            f"the derivative's norm to stay within the Lipschitz bound {bound:.6g}",
            f"{norm:.6g} at a random state",
        )
