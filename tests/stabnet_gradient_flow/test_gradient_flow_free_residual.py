"""The unconstrained residual block: its bound is sound, and attained by weights in line."""

from __future__ import annotations

import pytest
import torch

import stabnet


def test_the_bound_is_attained_where_both_maps_stretch_the_same_direction() -> None:
    block = stabnet.build("free_residual", kind="block", state_shape=(2,)).double()
    with torch.no_grad():
        for weight in (block.weight, block.outgoing):
            weight.zero_()
            weight[0, 0] = 3.0
    z, w = torch.tensor([[[1.0, 0.0]], [[2.0, 0.0]]], dtype=torch.float64)
    stretch = float((block(z) - block(w)).detach().norm())
    assert stretch == pytest.approx(10)
    assert stretch <= block.lipschitz_bound() < stretch * (1 + 1e-12)
