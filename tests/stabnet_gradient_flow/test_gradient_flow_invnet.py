"""InvNet: a network of a given Lipschitz constant."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import jacrev, vmap

import stabnet


def trained(**options):
    """Return a network that was trained to expand, far beyond what it may."""
    torch.manual_seed(0)
    model = stabnet.build("invnet", **options)
    y = torch.randn(64, *model.in_shape)
    x = 20 * torch.randn(64, model.num_outputs) + 20 * y[:, : model.num_outputs].sin()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        (model(y) - x).square().mean().backward()
        optimizer.step()
    return model.double().eval().requires_grad_(False)


def largest_jacobian(model, points):
    jacobians = vmap(jacrev(lambda point: model.dynamics(point[None]).state[0]))(points)
    return torch.linalg.svdvals(jacobians)[:, 0].max().item()


@pytest.mark.parametrize("block", ["gradient_flow", "sll"])
@pytest.mark.parametrize(
    "shape", [{}, {"in_shape": (3,), "num_outputs": 1}, {"in_shape": (1,), "num_outputs": 4}]
)
def test_measured_constants_are_within_the_certified_bound_which_is_the_given_one(block, shape):
    model = trained(lipschitz=1.5, width=6, blocks=3, block=block, **shape)
    points = 3 * torch.randn(1000, *model.in_shape, dtype=torch.float64)
    before = stabnet.certify.lipschitz_bound(model).outputs
    assert largest_jacobian(model, points) <= before
    stabnet.renormalize(model)
    bound = stabnet.certify.lipschitz_bound(model).outputs
    assert bound <= 1.5 * (1 + 1e-6)
    measured = largest_jacobian(model, points)
    assert 0.2 * bound < measured <= bound
    one, other = points.split(500)
    moved = (model(one) - model(other)).norm(dim=1)
    assert (moved <= bound * (one - other).norm(dim=1)).all()


def test_without_blocks_it_is_the_scaled_embedding():
    model = stabnet.build("invnet", in_shape=(2,), num_outputs=3, lipschitz=0.5, blocks=0)
    y = torch.randn(5, 2)
    assert torch.equal(model(y), torch.cat([0.5 * y, torch.zeros(5, 1)], 1))


def test_the_lipschitz_constant_is_the_last_factor_and_no_block_shares_its_weights():
    model = stabnet.build("invnet", lipschitz=0.3, blocks=4)
    names = [type(stage).__name__ for stage in model.dynamics.stages]
    assert names == ["Lift", *["GradientFlow"] * 4, "Project", "Scale"]
    weights = [stage.weight for stage in model.dynamics.stages[1:5]]
    assert len({id(w) for w in weights}) == 4
    assert stabnet.certify.lipschitz_bound(model).parts[-1][1] == pytest.approx(0.3, rel=1e-6)


def test_a_saved_network_comes_back_with_its_bound(tmp_path):
    model = trained(lipschitz=0.4, blocks=2, block={"name": "gradient_flow", "activation": "tanh"})
    loaded = stabnet.load(stabnet.save(model, tmp_path / "model.safetensors")).double().eval()
    y = torch.randn(6, 2, dtype=torch.float64)
    assert torch.equal(loaded(y), model(y))
    assert (
        stabnet.certify.lipschitz_bound(loaded).outputs
        == stabnet.certify.lipschitz_bound(model).outputs
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lipschitz": 0.0}, "lipschitz=0.0"),
        ({"lipschitz": -1.0}, "lipschitz=-1.0"),
        ({"in_shape": (1, 4, 4)}, "vectors"),
        ({"in_shape": (12,)}, "width=10 is less than the 12 entries"),
        ({"num_outputs": 11}, "at least 11"),
        ({"blocks": -1}, "blocks=-1"),
        ({"block": "downsample"}, "image"),
        ({"block": {"name": "project", "channels": 4}}, "keep the shape"),
        ({"block": {"name": "aol", "features": 4}}, "keep the shape"),
        ({"block": nn.Identity()}, "built many times"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(stabnet.InvalidOptionError, match=message):
        stabnet.build("invnet", **options)


def test_a_block_without_a_bound_is_refused():
    with pytest.raises(stabnet.InvalidOptionError, match="no lipschitz_bound"):
        stabnet.build("invnet", block="projection")
