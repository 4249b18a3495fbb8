"""Stitches, residual blocks and averages: shapes, formulas and refusals."""

from __future__ import annotations

import pytest
import torch
import torchvision
from stabnet_lyapunov import AveragePool, Residual, Stitch
from torch import nn

import stabnet
from stabnet import InvalidInputError, InvalidOptionError


@pytest.mark.parametrize("kind", [Stitch, Residual])
@pytest.mark.parametrize(("channels", "stride"), [(None, 1), (3, 1), (5, 2), (3, 3)])
@pytest.mark.parametrize("grid", [(8, 6), (7, 5), (1, 2)])
def test_outgoing_states_have_the_shape_that_the_block_announces(kind, channels, stride, grid):
    block = kind([3, *grid], channels, stride)
    z = block(torch.randn(2, 3, *grid))
    assert z.shape == (2, *block.out_shape)
    assert block.out_shape[0] == (channels or 3)


def test_a_stitch_is_its_formula():
    torch.manual_seed(0)
    stitch = Stitch((2, 5, 5), 3, 2)
    z = torch.randn(4, 2, 5, 5)
    (first, norm, _, second, norm2), (skip, norm3) = stitch.main, stitch.skip
    expected = (norm2(second(norm(first(z)).relu())) + norm3(skip(z))).relu()
    torch.testing.assert_close(stitch(z), expected)
    assert all(m.bias is None for m in stitch.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize(("stage", "index"), [(1, 1), (2, 0)])
def test_a_residual_block_is_torchvisions(stage, index):
    torch.manual_seed(0)
    theirs = getattr(torchvision.models.resnet18(), f"layer{stage}")[index]
    ours = stabnet.build(
        "residual",
        kind="block",
        state_shape=(64, 6, 6),
        channels=64 * stage,
        stride=stage,
    )
    ours.body.load_state_dict(theirs.state_dict())
    z = torch.randn(3, 64, 6, 6)
    assert torch.equal(ours(z), theirs(z))


def test_the_average_is_over_the_grid():
    z = torch.randn(2, 3, 4, 5)
    pool = AveragePool([3, 4, 5])
    assert pool.out_shape == (3,)
    torch.testing.assert_close(pool(z), z.flatten(2).mean(2))


@pytest.mark.parametrize(
    "options",
    [
        {"state_shape": (4,)},
        {"state_shape": ()},
        {"state_shape": (4, 0, 3)},
        {"state_shape": (4, 3, 3), "channels": 0},
        {"state_shape": (4, 3, 3), "stride": 0},
        {"state_shape": (4, 3, 3), "stride": 1.5},
    ],
)
@pytest.mark.parametrize("name", ["stitch", "residual"])
def test_what_is_no_grid_is_refused(name, options):
    with pytest.raises(InvalidOptionError, match=f"block '{name}' takes"):
        stabnet.build(name, kind="block", **options)


@pytest.mark.parametrize("name", ["stitch", "residual", "average_pool"])
def test_states_of_another_shape_are_refused(name):
    block = stabnet.build(name, kind="block", state_shape=(2, 4, 4))
    with pytest.raises(InvalidInputError, match=r"takes states \(batch, 2, 4, 4\)"):
        block(torch.randn(3, 2, 5, 5))
