"""Lipschitz bounds of whole models, part by part."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import stabnet
from stabnet.bounds import NoBoundError
from stabnet.certify import LipschitzBound, lipschitz_bound
from stabnet.interfaces import Block


class Scaling(Block):
    def __init__(self, shape, factor):
        super().__init__()
        self.state_shape = shape
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, z, u=None):
        return self.factor * z

    def lipschitz_bound(self):
        return abs(float(self.factor.detach()))


class Unbounded(Block):
    state_shape = (1, 2, 2)

    def forward(self, z, u=None):
        return z**2


def model(*stages, std=0.5, head=None):
    return stabnet.StabilityModel(
        (1, 2, 2),
        3,
        stabnet.build("identity", kind="backbone", in_shape=(1, 2, 2)),
        stabnet.Stack(stages),
        nn.Linear(4, 3) if head is None else head,
        mean=[0.5],
        std=[std],
    )


def test_the_bound_is_the_product_of_all_parts_with_normalization_counted():
    shape = (1, 2, 2)
    inner = stabnet.Stack([Scaling(shape, -2.0), Scaling(shape, 1.5)])
    bound = lipschitz_bound(model(Scaling(shape, 3.0), inner))
    assert [name for name, _ in bound.parts] == [
        "normalize",
        "backbone",
        "dynamics.stages.0 (Scaling)",
        "dynamics.stages.1.stages.0 (Scaling)",
        "dynamics.stages.1.stages.1 (Scaling)",
    ]
    assert 18 <= bound.features <= 18 * (1 + 1e-12)
    assert bound.outputs >= bound.features * bound.head


def test_editing_a_weight_through_data_changes_the_bound():
    network = model(Scaling((1, 2, 2), 1.0))
    before = lipschitz_bound(network).features
    network.dynamics.stages[0].factor.data.mul_(4)
    assert lipschitz_bound(network).features == pytest.approx(4 * before)


def test_the_bound_is_of_evaluation_and_leaves_modes_alone():
    network = model(Scaling((1, 2, 2), 1.0), head=nn.Sequential(nn.Dropout(), nn.Linear(4, 3)))
    network.train()
    assert math.isfinite(lipschitz_bound(network).outputs)
    assert network.training
    assert network.head[0].training


def test_a_part_without_a_bound_is_named():
    with pytest.raises(NoBoundError, match=r"dynamics\.stages\.1 \(Unbounded\)"):
        lipschitz_bound(model(Scaling((1, 2, 2), 1.0), Unbounded()))
    deq = stabnet.build("deq", in_shape=(1, 2, 2), backbone={"name": "linear", "width": 4})
    with pytest.raises(NoBoundError, match="Equilibrium"):
        lipschitz_bound(deq)
    with pytest.raises(NoBoundError, match="StabilityModel"):
        lipschitz_bound(nn.Linear(2, 2))


def test_hooks_on_the_model_are_refused():
    network = model(Scaling((1, 2, 2), 1.0))
    inner = stabnet.Stack([Scaling((1, 2, 2), 1.0)])
    network.dynamics.stages.append(inner)
    for part in (network, network.dynamics, inner, network.head, network.normalize):
        handle = part.register_forward_hook(lambda *_: None)
        with pytest.raises(NoBoundError, match="hooks"):
            lipschitz_bound(network)
        handle.remove()
    assert lipschitz_bound(network).features >= 2


@pytest.mark.parametrize("part", ["dynamics", "head", ""])
def test_a_forward_given_to_a_part_is_refused(part):
    network = model(Scaling((1, 2, 2), 1.0))
    network.get_submodule(part).forward = lambda *_: None
    with pytest.raises(NoBoundError, match="forward of its own"):
        lipschitz_bound(network)


@pytest.mark.parametrize("std", [math.nan, math.inf, 0.0])
def test_normalization_by_no_number_has_no_bound(std):
    network = model(Scaling((1, 2, 2), 1.0))
    network.normalize.std.data.fill_(std)
    with pytest.raises(stabnet.InvalidInputError, match="divided by std"):
        lipschitz_bound(network)


def test_normalization_expands_by_the_smallest_size_of_a_number():
    network = model(Scaling((1, 2, 2), 1.0), std=0.25)
    network.normalize.std.data.neg_()
    assert 4 <= lipschitz_bound(network).features <= 4 * (1 + 1e-12)


def test_products_are_of_all_parts():
    bound = LipschitzBound((("a", 2.0), ("b", 3.0)), 0.5)
    assert bound.features == pytest.approx(6.0)
    assert bound.outputs == pytest.approx(3.0)
