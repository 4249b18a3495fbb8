"""Boxes through layers: they contain what they should, and no more."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from stabnet.bounds import conv2d_interval, interval, monotone_interval
from stabnet.errors import InvalidInputError

DOUBLE = torch.float64


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normalization(layer: nn.Module) -> nn.Module:
    """Return batch normalization in eval mode with statistics and weights of all signs."""
    generator = seeded(5)
    with torch.no_grad():
        layer.running_mean.copy_(torch.randn(layer.num_features, generator=generator))
        layer.running_var.copy_(torch.rand(layer.num_features, generator=generator) + 0.1)
        if layer.affine:
            layer.weight.copy_(torch.randn(layer.num_features, generator=generator))
            layer.bias.copy_(torch.randn(layer.num_features, generator=generator))
    return layer.eval()


IMAGE = (4, 6, 6)
AFFINE = [
    nn.Conv2d(4, 6, 3),
    nn.Conv2d(4, 6, 3, stride=2, padding=1),
    nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=(2, 1), bias=False),
    nn.Conv2d(4, 6, 3, padding="same", dilation=2, groups=2),
    nn.Conv2d(4, 4, 3, padding="valid", groups=4),
    nn.Conv2d(4, 2, 3, padding=1, padding_mode="circular"),
    normalization(nn.BatchNorm2d(4)),
    normalization(nn.BatchNorm2d(4, affine=False)),
    nn.Linear(6, 3),
    nn.Linear(6, 3, bias=False),
    nn.AvgPool2d(3, stride=2, padding=1),
    nn.AvgPool2d(3, ceil_mode=True, count_include_pad=False, padding=1),
    nn.AdaptiveAvgPool2d((1, 4)),
    nn.Flatten(),
    nn.Flatten(2),
    nn.Unflatten(1, (2, 2)),
    nn.Identity(),
    nn.Dropout(0.5).eval(),
]


# One pixel may enter a window twice, which bounds take for two.
def slopes(*values: float) -> nn.PReLU:
    """Return a PReLU with the given slopes."""
    layer = nn.PReLU(len(values))
    layer.weight.data = torch.tensor(values)
    return layer


TURNING = [slopes(-0.5), slopes(0.3, -2.0, 0.0, 1.5)]
REPEATING = [
    nn.Conv2d(4, 2, 3, padding=2, stride=2, padding_mode="reflect"),
    nn.Conv2d(4, 2, 3, padding="same", padding_mode="replicate"),
]
OTHERS = [
    nn.ReLU(),
    nn.ReLU(inplace=True),
    nn.ReLU6(),
    nn.LeakyReLU(0.2),
    nn.PReLU().double(),
    nn.Hardtanh(-0.5, 0.1),
    nn.Tanh(),
    nn.Sigmoid(),
    nn.Softplus(beta=2.0),
    nn.ELU(0.7),
    nn.MaxPool2d(2),
    nn.MaxPool2d(3, stride=2, padding=1, dilation=2),
    nn.AdaptiveMaxPool2d(2),
]


def box(shape: tuple[int, ...], seed: int = 1, dtype: torch.dtype = DOUBLE):
    """Return a random box around the origin, with some intervals of width zero."""
    center = torch.randn(2, *shape, generator=seeded(seed), dtype=dtype)
    radius = torch.rand(2, *shape, generator=seeded(seed + 1), dtype=dtype)
    radius[..., 0] = 0
    return center - radius, center + radius


def samples(lower: torch.Tensor, upper: torch.Tensor, count: int) -> torch.Tensor:
    """Return random points and random corners of a box."""
    share = torch.rand(count, *lower.shape, generator=seeded(3), dtype=lower.dtype)
    share[: count // 2] = share[: count // 2].round()
    return torch.lerp(lower, upper, share).clamp(lower, upper)


@pytest.mark.parametrize("sound", [False, True], ids=["fast", "sound"])
@pytest.mark.parametrize("layer", AFFINE, ids=str)
def test_bounds_of_affine_layers_are_those_of_their_matrix(layer, sound):
    layer = copy.deepcopy(layer).double()
    lower, upper = box(IMAGE)
    found = interval(layer, lower, upper, sound=sound)
    offset = layer(torch.zeros_like(lower))
    matrix = torch.func.jacrev(lambda x: layer(x).sum(0))(lower).movedim(-4, 0)
    down, up = matrix.clamp(max=0), matrix.clamp(min=0)
    rest = tuple(range(-3, 0))
    for row in range(2):
        least = (up[row] * lower[row] + down[row] * upper[row]).sum(rest) + offset[row]
        most = (up[row] * upper[row] + down[row] * lower[row]).sum(rest) + offset[row]
        torch.testing.assert_close(found[0][row], least, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found[1][row], most, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("layer", AFFINE + REPEATING + TURNING + OTHERS, ids=str)
def test_bounds_contain_the_image_of_every_point(layer, dtype):
    layer = copy.deepcopy(layer).to(dtype)
    lower, upper = box(IMAGE, dtype=dtype)
    x = samples(lower, upper, 200)
    images = layer(x.flatten(0, 1).clone()).unflatten(0, x.shape[:2])
    exact = copy.deepcopy(layer).double()(x.flatten(0, 1).double()).unflatten(0, x.shape[:2])
    fast, sound = (interval(layer, lower, upper, sound=s) for s in (False, True))
    slack = 20 * torch.finfo(dtype).eps * (1 + images.abs().max())
    assert bool((fast[0] - slack <= images).all())
    assert bool((images <= fast[1] + slack).all())
    layer.double()
    sound = interval(layer, lower.double(), upper.double(), sound=True)
    rounding = 1e-14 * (1 + exact.abs().max())  # of the samples' own evaluation
    assert bool((sound[0] - rounding <= exact).all())
    assert bool((exact <= sound[1] + rounding).all())


@pytest.mark.parametrize("layer", OTHERS, ids=str)
def test_bounds_of_monotone_layers_are_attained(layer):
    lower, upper = box(IMAGE)
    for sound in (False, True):
        found = interval(layer, lower, upper, sound=sound)
        for bound, end in zip(found, (lower, upper), strict=True):
            torch.testing.assert_close(bound, layer(end.clone()), rtol=1e-13, atol=1e-13)


def test_bounds_of_a_prelu_that_turns_are_its_least_and_greatest_value():
    lower, upper = box(IMAGE)
    x = torch.lerp(lower, upper, torch.linspace(0, 1, 4001, dtype=DOUBLE).view(-1, 1, 1, 1, 1))
    for layer in TURNING:
        images = copy.deepcopy(layer).double()(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        for sound in (False, True):
            least, most = interval(copy.deepcopy(layer).double(), lower, upper, sound=sound)
            torch.testing.assert_close(least, images.amin(0), rtol=0, atol=1e-3)
            torch.testing.assert_close(most, images.amax(0), rtol=1e-13, atol=1e-13)


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        normalization(nn.BatchNorm2d(3)),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Sequential(nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 3)),
    ).eval()


def test_sound_bounds_contain_the_fast_ones_to_rounding_and_are_in_float64():
    network = small_network()
    lower, upper = box((1, 4, 4), dtype=torch.float32)
    fast, sound = (interval(network, lower, upper, sound=s) for s in (False, True))
    assert fast[0].dtype == torch.float32
    assert sound[0].dtype == DOUBLE
    assert not sound[0].requires_grad
    double = interval(network.double(), lower.double(), upper.double())
    assert bool((sound[0] <= double[0]).all())
    assert bool((sound[1] >= double[1]).all())
    torch.testing.assert_close(sound[0], double[0], rtol=1e-12, atol=1e-12)


def test_bounds_at_a_point_are_the_prediction_itself():
    network = small_network()
    x = torch.randn(3, 1, 4, 4, generator=seeded())
    lower, upper = interval(network, x, x)
    assert torch.equal(lower, network(x))
    assert torch.equal(upper, network(x))
    lower, upper = interval(network, x, x, sound=True)
    exact = network.double()(x.double())
    torch.testing.assert_close(lower, exact, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(upper, exact, rtol=1e-12, atol=1e-12)


def test_bounds_have_gradients():
    network = small_network().double()
    parameters = dict(network.named_parameters())
    lower, upper = (t.requires_grad_() for t in box((1, 4, 4)))

    class Bounds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, lower, upper):
            return interval(self.network, lower, upper)

    def bounds(lower, upper, *tensors):
        named = {f"network.{n}": t for n, t in zip(parameters, tensors, strict=True)}
        return torch.func.functional_call(Bounds(), named, (lower, upper))

    # Random points are no kinks of |W| and ReLU; and widths of 0 are the edge of what is a box.
    upper = (upper.detach() + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(bounds, (lower, upper, *parameters.values()))


def test_bounds_pass_through_vmap():
    network = small_network().double()
    lower, upper = (t[:, None] for t in box((1, 4, 4)))
    mapped = torch.func.vmap(lambda a, b: interval(network, a, b))(lower, upper)
    plain = interval(network, lower[:, 0], upper[:, 0])
    torch.testing.assert_close(mapped[0][:, 0], plain[0])
    torch.testing.assert_close(mapped[1][:, 0], plain[1])


def test_a_row_of_which_nothing_is_known_stays_so_and_alone():
    network = nn.Sequential(*small_network(), normalization(nn.BatchNorm1d(3)))
    lower, upper = box((1, 4, 4))
    alone = interval(network, lower[1:], upper[1:], sound=True)
    lower[0], upper[0] = -torch.inf, torch.inf
    linear = nn.Linear(16, 2)
    wide = interval(linear, lower.flatten(1), upper.flatten(1), sound=True)
    assert bool((wide[0][0] == -torch.inf).all())
    assert bool((wide[1][0] == torch.inf).all())
    together = interval(network, lower, upper, sound=True)
    assert not bool(together[0].isnan().any())
    torch.testing.assert_close(together[0][1:], alone[0], rtol=1e-13, atol=1e-13)
    with pytest.raises(InvalidInputError, match="infinite"):
        interval(linear, lower.flatten(1), upper.flatten(1))


def test_a_parametrized_layer_is_bounded_with_its_weight():
    layer = torch.nn.utils.parametrizations.weight_norm(nn.Linear(6, 3)).double()
    with torch.no_grad():
        layer.parametrizations.weight.original0.mul_(2)
    lower, upper = box(IMAGE)
    found = interval(layer, lower, upper)
    plain = nn.Linear(6, 3).double()
    plain.load_state_dict({"weight": layer.weight.detach(), "bias": layer.bias.detach()})
    torch.testing.assert_close(found, interval(plain, lower, upper))


def test_a_convolution_by_its_function_is_that_of_the_module():
    layer = nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=1, groups=2).double()
    lower, upper = box(IMAGE)
    options = {"stride": 2, "padding": 1, "groups": 2}
    found = conv2d_interval(lower, upper, layer.weight, layer.bias, **options)
    torch.testing.assert_close(found, interval(layer, lower, upper))


def test_computed_values_out_of_order_are_put_in_order():
    def jagged(x: torch.Tensor) -> torch.Tensor:
        return x - (x > 0).to(x) * 1e-7

    lower, upper = monotone_interval(jagged, torch.tensor([-1e-9]), torch.tensor([1e-9]))
    assert bool(lower <= upper)
