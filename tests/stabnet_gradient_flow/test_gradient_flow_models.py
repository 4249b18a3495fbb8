"""Networks of non-expansive blocks: architectures, their twins, bounds, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import stabnet
from stabnet import InvalidOptionError
from stabnet.bounds import lipschitz_product
from stabnet.interfaces import Block

TINY = {"in_shape": (1, 8, 8), "num_outputs": 3, "channels": (2, 4), "blocks": (1, 1)}


def net(name="nonexpansive_net", seed=0, **options):
    torch.manual_seed(seed)
    return stabnet.build(name, **{**TINY, **options})


def stages(model):
    return [type(stage).__name__ for stage in model.dynamics.stages]


def shapes(model):
    """Return the shapes of the states behind all stages."""
    x = torch.rand(2, *model.in_shape, generator=torch.Generator().manual_seed(0))
    return [tuple(s.state.shape[1:]) for s in model.eval().solve(x).stages]


def jacobian_norms(model, batch=4):
    """Return the norms of the derivative of the state, which the head reads, at random inputs."""
    model = model.double().eval()
    x = torch.rand(batch, *model.in_shape, generator=torch.Generator().manual_seed(1)).double()

    def state(one):
        return model.solve(one[None]).state[0]

    jacobians = [torch.autograd.functional.jacobian(state, one).flatten(1) for one in x]
    return [float(torch.linalg.matrix_norm(j, 2)) for j in jacobians]


class Shrink(Block):
    """A block of no registered name that bounds nothing."""

    def __init__(self, state_shape):
        super().__init__()
        self.state_shape = tuple(state_shape)

    def forward(self, z, u=None):
        return z / 2


# Architectures


def test_blocks_that_keep_their_width_are_lifted_to_and_projected():
    model = net(channels=(2, 4, 32), blocks=(1, 2, 1), features=(10, 140))
    assert stages(model) == [
        *["Lift", "GradientFlow"],
        *["ProjectedDownsample", "GradientFlow", "GradientFlow"],
        *["Downsample", "Lift", "GradientFlow"],
        *["Flatten", "Project", "GradientFlow", "Lift", "GradientFlow"],
    ]
    found = shapes(model)
    assert (found[4], found[7], found[8]) == ((4, 4, 4), (32, 2, 2), (128,))
    assert (found[10], found[12]) == ((10,), (140,))


def test_blocks_that_change_their_width_do_so_themselves():
    model = net(block="aol", dense_block="aol", blocks=(0, 2), channels=(1, 6), features=(10, 8))
    assert stages(model) == ["Downsample", "AOL", "AOL", "Flatten", "AOL", "AOL"]
    assert shapes(model) == [(4, 4, 4), (6, 4, 4), (6, 4, 4), (96,), (10,), (8,)]


def test_channels_that_a_block_can_choose_among_are_not_left_out_before_it():
    model = net(block="aol", channels=(4, 6))
    assert stages(model) == ["AOL", "Downsample", "AOL", "Flatten"]


def test_image_can_be_downsampled_before_the_first_block():
    model = net(channels=(1, 8), blocks=(0, 2))
    assert stages(model) == ["Downsample", "Lift", "GradientFlow", "GradientFlow", "Flatten"]


def test_a_learned_layer_changes_the_width_where_blocks_keep_it():
    model = net(channels=(1, 6), blocks=(0, 1), features=(10, 10), resize_block="cayley")
    assert stages(model) == [
        *["Downsample", "Cayley", "GradientFlow"],
        *["Flatten", "Cayley", "GradientFlow", "GradientFlow"],
    ]
    assert shapes(model)[-1] == (10,)
    alone = net(block="aol", features=(6,), dense_block="cayley", resize_block="cayley")
    assert stages(alone) == ["AOL", "Downsample", "AOL", "Flatten", "Cayley"]


def test_without_resolutions_there_are_dense_blocks_of_any_input():
    model = net(channels=(), blocks=(), features=(64, 64), in_shape=(1, 8, 8))
    assert stages(model) == ["Flatten", "GradientFlow", "GradientFlow"]
    assert shapes(net(channels=(), blocks=(), features=(6,), in_shape=(6,))) == [(6,), (6,)]


@pytest.mark.parametrize("name", ["nonexpansive_net", "resnet_twin"])
@pytest.mark.parametrize("in_shape", [(3, 32, 32), (1, 28, 28), (1, 8, 8)])
def test_defaults_fit_the_usual_images(name, in_shape):
    model = stabnet.build(name, in_shape=in_shape)
    assert model.eval()(torch.rand(1, *in_shape)).shape == (1, 10)


def test_normalization_and_head_are_those_that_were_asked_for():
    model = net(head="orthogonal", mean=(0.1,), std=(0.3,))
    assert type(model.head).__name__ == "OrthogonalHead"
    assert float(model.normalize.std) == pytest.approx(0.3)


@pytest.mark.parametrize(
    "options",
    [
        {"block": {"name": "gradient_flow_conv", "hidden": 3}, "features": (5,), "basis": "haar"},
        {"block": "sll", "dense_block": "sll", "features": (5,)},
        {"block": {"name": "aol", "kernel_size": 1}, "dense_block": "aol", "features": (6,)},
        {"block": "cayley", "dense_block": "cayley", "features": (6,)},
        {"block": "sandwich", "dense_block": "sandwich", "features": (6,)},
        {"features": (6, 6), "resize_block": {"name": "cayley", "activation": "abs"}},
    ],
    ids=["gradient_flow", "sll", "aol", "cayley", "sandwich", "resize"],
)
def test_every_kind_of_block_builds_from_a_line_of_json_and_is_saved_whole(options, tmp_path):
    line = json.dumps({"name": "nonexpansive_net", **TINY, **options})
    torch.manual_seed(0)
    model = stabnet.build(json.loads(line)).eval()
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    json.dumps(model.config)
    stabnet.save(model, tmp_path / "model")
    again = stabnet.load(tmp_path / "model").eval()
    assert torch.equal(again(x), model(x))
    assert again.config == model.config
    assert all(norm <= 1 + 1e-6 for norm in jacobian_norms(model, 2))


# Bounds and guarantees


def test_after_renormalization_no_derivative_exceeds_one_nor_the_bounds():
    model = net(channels=(4, 8), blocks=(2, 1), features=(16,)).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    x = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    objective = stabnet.build("margin_cross_entropy", kind="objective")
    for _ in range(5):
        optimizer.zero_grad()
        objective(model, x, torch.arange(8) % 3)[0].backward()
        optimizer.step()
    stabnet.renormalize(model)
    product = lipschitz_product([s.lipschitz_bound() for s in model.dynamics.stages])
    assert product <= 1 + 1e-5
    assert all(norm <= product for norm in jacobian_norms(model))


def test_guarantees_are_those_of_the_blocks():
    model = net()
    found = {g.part for g in model.guarantees()}
    blocks = {f"dynamics.stages.{i}" for i, n in enumerate(stages(model)) if n == "GradientFlow"}
    assert blocks <= found
    assert all(part.startswith("dynamics.stages.") for part in found)


# The twin


def test_twin_has_the_same_states_and_about_as_many_parameters():
    options = {"channels": (8, 16), "blocks": (2, 3), "features": (32, 64)}
    one, other = net(**options), net("resnet_twin", **options)
    assert shapes(one) == shapes(other)
    counts = [sum(p.numel() for p in m.parameters()) for m in (one, other)]
    assert counts[1] == pytest.approx(counts[0], rel=0.02)


def test_twin_is_not_bounded_by_one_and_claims_nothing_of_its_blocks():
    model = net("resnet_twin")
    bounds = {type(s).__name__: s.lipschitz_bound() for s in model.dynamics.stages}
    assert bounds["FreeResidual"] > 1
    free = [s for s in model.dynamics.stages if type(s).__name__ == "FreeResidual"]
    assert not any(hasattr(s, "guarantees") for s in free)


def test_twin_trains():
    model = net("resnet_twin").train()
    x = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), torch.arange(8) % 3)
        loss.backward()
        losses.append(float(loss.detach()))
        optimizer.step()
    assert losses[-1] < losses[0]


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_shape": (1, 28, 28), "channels": (1,) * 4, "blocks": (1,) * 4}, "halved 2 times"),
        ({"in_shape": (1, 7, 8)}, "halved 0 times"),
        ({"channels": (2, 4, 8)}, "one number each per resolution"),
        ({"channels": (2, 0)}, "at least 1"),
        ({"blocks": (1, -1)}, "at least 0"),
        ({"features": (0,)}, "at least 1"),
        ({"features": 5}, "features is a sequence"),
        ({"channels": 5}, "channels is a sequence"),
        ({"in_shape": (8,)}, r"images \(channels, height, width\)"),
        ({"basis": "fourier"}, "'pixels' or 'haar'"),
        ({"block": {"name": "aol", "features": 8}}, "features twice"),
        ({"block": "gradient_flow"}, "gradient_flow_conv"),
        ({"resize_block": "sll"}, "resize_block='sll' keeps the number of features"),
    ],
)
@pytest.mark.parametrize("name", ["nonexpansive_net", "resnet_twin"])
def test_options_that_do_not_fit_are_refused_and_explained(name, options, message):
    with pytest.raises(InvalidOptionError, match=message):
        net(name, **options)


def test_one_module_cannot_be_every_block():
    with pytest.raises(InvalidOptionError, match="built many times"):
        net(block=Shrink((2, 8, 8)))


def test_block_that_bounds_nothing_is_refused():
    stabnet.register.block("test_gradient_flow_unbounded")(lambda state_shape: Shrink(state_shape))
    with pytest.raises(InvalidOptionError, match="resnet_twin"):
        net(block="test_gradient_flow_unbounded")
    assert net("resnet_twin", block="test_gradient_flow_unbounded") is not None
