"""The stem backbone."""

from __future__ import annotations

import pytest
import torch

import stabnet


@pytest.mark.parametrize(
    ("in_shape", "stride", "grid"),
    [((3, 32, 32), 1, (32, 32)), ((1, 28, 28), 2, (14, 14)), ((1, 9, 8), 2, (5, 4))],
)
def test_features_of_the_stem_are_on_the_grid_of_the_image(in_shape, stride, grid):
    part = stabnet.build("stem", kind="backbone", in_shape=in_shape, channels=5, stride=stride)
    u = part.eval()(torch.rand(2, *in_shape))
    assert part.out_shape == (5, *grid) == tuple(u.shape[1:])
    assert bool((u >= 0).all())


def test_a_pixel_of_the_stem_sees_its_neighbors_only():
    part = stabnet.build("stem", kind="backbone", in_shape=(1, 9, 9), channels=3).eval()
    x = torch.rand(1, 1, 9, 9, requires_grad=True)
    part.net[:2](x)[0, :, 4, 4].sum().backward()
    seen = x.grad[0, 0] != 0
    assert bool(seen[3:6, 3:6].all())
    assert int(seen.sum()) == 9


def test_a_frozen_stem_keeps_its_statistics():
    part = stabnet.build("stem", kind="backbone", in_shape=(1, 8, 8), channels=2, frozen=True)
    part.train()(torch.rand(4, 1, 8, 8))
    assert int(part.net[1].num_batches_tracked) == 0
    assert not any(p.requires_grad for p in part.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_shape": (64,)}, "channels, height, width"),
        ({"channels": 0}, "channels is a positive"),
        ({"stride": 0}, "stride is a positive"),
    ],
)
def test_impossible_stems_are_refused(options, message):
    with pytest.raises(stabnet.InvalidOptionError, match=message):
        stabnet.build("stem", kind="backbone", **{"in_shape": (1, 8, 8), **options})
