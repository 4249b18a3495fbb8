"""Lipschitz bounds of modules: never below what the map does, refused where unknown."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch import nn

import stabnet
from stabnet.bounds import (
    NoBoundError,
    largest_spectral_norm_bound,
    lipschitz_bound,
    lipschitz_product,
    spectral_norm_bound,
)

LAYERS = {
    "linear": (lambda: nn.Linear(8, 5), (8,)),
    "conv": (lambda: nn.Conv2d(2, 3, 3, stride=2, padding=1), (2, 6, 6)),
    "same": (lambda: nn.Conv2d(2, 3, 3, padding="same", padding_mode="circular"), (2, 6, 6)),
    "valid": (lambda: nn.Conv2d(2, 3, 2, padding="valid", padding_mode="reflect"), (2, 6, 6)),
    "batch norm": (lambda: nn.BatchNorm2d(2).eval(), (2, 4, 4)),
    "plain batch norm": (lambda: nn.BatchNorm1d(4, affine=False).eval(), (4,)),
    "max pool": (lambda: nn.MaxPool2d(2), (2, 6, 6)),
    "average": (lambda: nn.AvgPool2d(3), (2, 6, 6)),
    "global average": (lambda: nn.AdaptiveAvgPool2d(1), (2, 6, 6)),
    "unshuffle": (lambda: nn.PixelUnshuffle(2), (2, 6, 6)),
    "leaky": (lambda: nn.LeakyReLU(-1.5), (8,)),
    "prelu": (lambda: nn.PReLU(2, init=3.0), (2, 3)),
    "elu": (lambda: nn.ELU(2.0), (8,)),
    "sigmoid": (lambda: nn.Sigmoid(), (8,)),
    "dropout": (lambda: nn.Dropout().eval(), (8,)),
    "network": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(36, 5),
            nn.Tanh(),
        ).eval(),
        (1, 6, 6),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_no_pair_of_points_is_moved_apart_by_more_than_the_bound(name):
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer = make().double()
    for p in layer.buffers():
        if p.is_floating_point():
            p.uniform_(0.1, 2.0)
    bound = lipschitz_bound(layer, shape)
    x = torch.randn(64, *shape, dtype=torch.float64)
    for scale in (1e-6, 1.0, 10.0):
        y = x + scale * torch.randn_like(x)
        moved = (layer(x) - layer(y)).flatten(1).norm(dim=1)
        assert (moved <= bound * (x - y).flatten(1).norm(dim=1) * (1 + 1e-8)).all()


@pytest.mark.parametrize("name", ["linear", "valid", "same", "batch norm", "average", "sigmoid"])
def test_bounds_of_single_layers_are_attained(name):
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer = make().double()
    zero = torch.zeros(1, *shape, dtype=torch.float64)
    jacobian = torch.func.jacrev(lambda x: layer(x).flatten())(zero).flatten(1).detach()
    norm = float(torch.linalg.matrix_norm(jacobian, 2))
    # A convolution without padding sees less than the Fourier bound counts.
    assert norm <= lipschitz_bound(layer, shape) <= norm * (1.1 if name == "valid" else 1 + 1e-9)


@pytest.mark.parametrize(
    ("layer", "shape", "words"),
    [
        (nn.Bilinear(2, 2, 2), (2,), "Bilinear"),
        (nn.Softplus(), (2,), "Softplus"),
        (nn.BatchNorm1d(2), (2,), "eval"),
        (nn.Dropout(), (2,), "eval"),
        (nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), (1, 6, 6), "reflect"),
        (nn.Conv2d(1, 1, 2, padding="same"), (1, 6, 6), "symmetric"),
        (nn.MaxPool2d(3, 2), (1, 6, 6), "overlap"),
        (nn.AvgPool2d(2, padding=1), (1, 6, 6), "border"),
        (nn.AdaptiveAvgPool2d(4), (1, 6, 6), "overlap"),
        (nn.Sequential(nn.ReLU(), nn.LayerNorm(2)), (2,), "LayerNorm"),
    ],
)
def test_what_is_unknown_is_refused_by_name(layer, shape, words):
    with pytest.raises(NoBoundError, match=words):
        lipschitz_bound(layer, shape)


def test_hooks_and_overridden_forwards_are_refused():
    hooked = nn.Sequential(nn.Linear(2, 2))
    hooked[0].register_forward_hook(lambda *_: None)
    with pytest.raises(NoBoundError, match="hooks"):
        lipschitz_bound(hooked, (2,))

    class Doubling(nn.ReLU):
        def forward(self, x):
            return 2 * super().forward(x)

    with pytest.raises(NoBoundError, match=r"forward of its own.*method lipschitz_bound\(\)"):
        lipschitz_bound(Doubling(), (2,))

    class Convolving(nn.Conv2d):
        def _conv_forward(self, *arguments):
            return 2 * super()._conv_forward(*arguments)

    with pytest.raises(NoBoundError, match="_conv_forward of its own"):
        lipschitz_bound(Convolving(1, 1, 1), (1, 2, 2))


def test_a_forward_given_to_one_module_is_refused_even_if_it_bounds_itself():
    block = stabnet.build("scale", kind="block", state_shape=(2,), largest=1.0)
    block.forward = lambda z, u=None: 100 * z
    with pytest.raises(NoBoundError, match="forward of its own"):
        lipschitz_bound(nn.Sequential(nn.ReLU(), block), (2,))


@pytest.mark.parametrize("bound", [math.nan, -1.0])
def test_what_a_module_says_of_itself_must_be_a_bound(bound):
    layer = nn.Identity()
    layer.lipschitz_bound = lambda: bound
    with pytest.raises(NoBoundError, match="bounds its Lipschitz constant by"):
        lipschitz_bound(layer, (2,))


@pytest.mark.parametrize("slope", [math.nan, math.inf])
def test_a_slope_that_is_not_finite_has_no_bound(slope):
    for layer in (nn.LeakyReLU(slope), nn.ELU(slope), nn.PReLU(init=slope)):
        with pytest.raises(NoBoundError, match="finite"):
            lipschitz_bound(layer, (2,))


def test_a_block_in_a_sequence_tells_its_shape_even_where_it_looks_at_its_numbers():
    block = stabnet.build("gradient_flow_conv", kind="block", state_shape=(2, 8, 8), max_steps=3)
    net = nn.Sequential(block, nn.Conv2d(2, 1, 3, padding=1))
    alone = lipschitz_bound(net[1], (2, 8, 8))
    assert lipschitz_bound(net, (2, 8, 8)) >= alone > lipschitz_bound(net[1], (2, 1, 1))


def test_weights_that_are_not_finite_have_no_bound():
    layer = nn.Linear(2, 2)
    layer.weight.data[0, 0] = math.nan
    with pytest.raises(stabnet.InvalidInputError, match="NaN"):
        lipschitz_bound(layer, (2,))
    norm = nn.BatchNorm1d(2).eval()
    norm.running_var.fill_(-1.0)
    with pytest.raises(NoBoundError, match="finite"):
        lipschitz_bound(norm, (2,))


def test_a_bound_follows_every_edit_of_a_weight():
    layer = nn.Linear(3, 3)
    before = lipschitz_bound(layer, (3,))
    layer.weight.data.mul_(2)
    assert lipschitz_bound(layer, (3,)) == pytest.approx(2 * before)


def test_bounding_a_network_leaves_it_as_it_is():
    torch.manual_seed(0)
    make, shape = LAYERS["network"]
    network = make()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    lipschitz_bound(network, shape)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


@pytest.mark.parametrize("factor", [0.1, 1.1, 1 / 3, 1.7])
def test_products_are_at_least_the_exact_ones(factor):
    for count in range(2, 30):
        exact = Fraction(factor) ** count
        assert (
            exact
            <= Fraction(lipschitz_product([factor] * count))
            <= exact * (1 + Fraction(1, 2**45))
        )


def test_products_are_rounded_up_and_constant_maps_win():
    assert lipschitz_product([]) == 1.0
    assert lipschitz_product([1.0, 1.0]) == 1.0
    assert lipschitz_product([0.1] * 3) >= 0.001
    assert lipschitz_product([math.inf, 0.0]) == 0.0
    assert lipschitz_product([1e300, 1e300]) == math.inf


def test_the_largest_of_several_matrices_is_bounded_as_closely_as_one():
    torch.manual_seed(0)
    matrices = torch.randn(7, 5, 3, dtype=torch.float64)
    largest = float(torch.linalg.matrix_norm(matrices, 2).max())
    assert largest <= largest_spectral_norm_bound(matrices) <= largest * (1 + 1e-12)
    assert largest_spectral_norm_bound(matrices[:1]) == spectral_norm_bound(matrices[0])
    assert largest_spectral_norm_bound(matrices[:0]) == 0.0
    with pytest.raises(stabnet.InvalidInputError, match="batch"):
        largest_spectral_norm_bound(matrices[0])


def test_backbones_of_plain_layers_are_bounded_and_residual_ones_refused():
    linear = stabnet.build("linear", kind="backbone", in_shape=(1, 4, 4), width=3)
    assert lipschitz_bound(linear, (1, 4, 4)) > 0
    with pytest.raises(NoBoundError):
        stabnet.build("resnet20", kind="backbone", in_shape=(3, 8, 8)).lipschitz_bound()


def test_a_layer_in_a_sequence_is_bounded_for_the_images_that_reach_it():
    """Around three pixels a convolution by (-1, 1, -1) has the norm 2, around six it has 3."""
    conv = nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular", bias=False)
    tap = torch.tensor([-1.0, 1.0, -1.0])
    conv.weight.data.copy_(torch.outer(tap, tap))
    assert lipschitz_bound(conv, (1, 3, 3)) == pytest.approx(4)
    assert 9 <= lipschitz_bound(nn.Sequential(nn.PixelShuffle(2), conv), (4, 3, 3)) < 9 + 1e-9
