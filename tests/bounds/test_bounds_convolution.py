"""The bound of a convolution's norm against the singular values of its explicit matrix."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

import stabnet
from stabnet.bounds import NoBoundError, conv2d_norm_bound


def _matrix(weight, size, groups=1, **options):
    """Return the convolution's matrix as torch computes it, column by column."""
    channels = weight.shape[1] * groups
    conv = nn.Conv2d(channels, len(weight), weight.shape[2:], bias=False, groups=groups, **options)
    conv.double().weight.data = weight.double()
    pixels = torch.eye(channels * size[0] * size[1], dtype=torch.float64)
    return conv(pixels.view(-1, channels, *size)).flatten(1).detach()


def _norm(weight, size, **options):
    return float(torch.linalg.svdvals(_matrix(weight, size, **options))[0])


def _layers(count, seed):
    """Yield random layers: kernels of 1 to 7, images of 3 to 28, groups, strides, paddings."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    while count:
        groups, stride, dilation = draw.choice([1, 1, 2]), draw.choice([1, 1, 2, 3]), 1
        kernel = (draw.randint(1, 7), draw.randint(1, 7))
        size = tuple(draw.choice([3, 4, 5, 7, 8, 9, 12, 13, 16, 28]) for _ in range(2))
        mode = draw.choice(["zeros", "circular"])
        if max(kernel) <= 3:
            dilation = draw.choice([1, 2])
        wide = tuple(dilation * (k - 1) + 1 for k in kernel)
        padding = tuple(
            draw.randint(0, w) if mode == "zeros" else min((w - 1) // 2, n)
            for w, n in zip(wide, size, strict=True)
        )
        channels = 1 if size[0] * size[1] > 200 else draw.randint(1, 3)
        fits = all(n + 2 * p >= w for n, p, w in zip(size, padding, wide, strict=True))
        if fits and groups * channels * size[0] * size[1] <= 800:
            weight = torch.randn(groups * draw.randint(1, 3), channels, *kernel)
            weight += draw.choice([0, 0, 1])  # all of one sign: the largest norm is at frequency 0
            count -= 1
            yield (
                weight,
                size,
                {
                    "groups": groups,
                    "stride": stride,
                    "dilation": dilation,
                    "padding": padding,
                    "padding_mode": mode,
                },
            )


def test_the_bound_is_never_below_the_largest_singular_value():
    for weight, size, options in _layers(300, 0):
        norm, bound = _norm(weight, size, **options), conv2d_norm_bound(weight, size, **options)
        assert bound >= norm * (1 - 1e-13), (weight.shape, size, options)
        kernel = [options["dilation"] * (k - 1) + 1 for k in weight.shape[2:]]
        exact = all(n % options["stride"] == 0 for n in size) and all(
            2 * p == k - 1 for p, k in zip(options["padding"], kernel, strict=True)
        )
        if options["padding_mode"] == "circular" and exact:
            assert bound <= norm * (1 + 1e-9), (weight.shape, size, options)
        elif options["padding_mode"] == "zeros":
            assert bound <= norm * 1.05, (weight.shape, size, options)


def test_a_grid_of_the_image_itself_would_be_below_the_norm_of_a_zero_padded_convolution():
    """The kernel that alternates on an odd image: its largest frequency is not on that grid."""
    weight = torch.tensor([[[[1.0, -1.0, 1.0]]]])
    norm = _norm(weight, (1, 5), padding=(0, 1))
    on_the_image = max(abs(1 - 2 * torch.cos(torch.arange(5) * 2 * torch.pi / 5)))
    assert on_the_image < norm <= conv2d_norm_bound(weight, (1, 5), padding=(0, 1))


@pytest.mark.parametrize("mode", ["zeros", "circular"])
@pytest.mark.parametrize("scale", [0.0, 1e-300, 1e-30, 1e30, 1e300])
def test_the_bound_scales_with_the_kernel(scale, mode):
    torch.manual_seed(0)
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64)
    one = conv2d_norm_bound(weight, (16, 16), padding=1, padding_mode=mode)
    found = conv2d_norm_bound(scale * weight, (16, 16), padding=1, padding_mode=mode)
    assert found == pytest.approx(scale * one, rel=1e-12)


def test_a_kernel_whose_norm_is_beyond_all_floats_has_an_infinite_bound():
    weight = torch.full((2, 2, 3, 3), 1e308, dtype=torch.float64)
    assert conv2d_norm_bound(weight, (16, 16), padding=1) == float("inf")


def test_an_isometry_is_bounded_by_one_up_to_rounding():
    weight = torch.zeros(4, 4, 3, 3)
    weight[:, :, 1, 1] = torch.eye(4)[[2, 0, 3, 1]]
    for mode in ("zeros", "circular"):
        bound = conv2d_norm_bound(weight, (12, 12), padding=1, padding_mode=mode)
        assert 1 <= bound <= 1 + 1e-11


def test_nothing_is_remembered_of_a_weight_that_is_edited_in_place():
    layer = nn.Conv2d(2, 2, 3, padding=1)
    before = conv2d_norm_bound(layer.weight, (8, 8), padding=1)
    layer.weight.data.mul_(3)
    assert conv2d_norm_bound(layer.weight, (8, 8), padding=1) == pytest.approx(3 * before)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "same"])
def test_other_paddings_are_refused_by_name(mode):
    with pytest.raises(NoBoundError, match=mode):
        conv2d_norm_bound(torch.ones(1, 1, 3, 3), (8, 8), padding=1, padding_mode=mode)


def test_circular_padding_that_repeats_outputs_is_refused():
    with pytest.raises(NoBoundError, match="repeats"):
        conv2d_norm_bound(torch.ones(1, 1, 3, 3), (8, 8), padding=2, padding_mode="circular")


@pytest.mark.parametrize(
    ("weight", "size", "options"),
    [
        (torch.ones(3, 3), (8, 8), {}),
        (torch.ones(1, 1, 3, 3, dtype=torch.int64), (8, 8), {}),
        (torch.full((1, 1, 3, 3), float("nan")), (8, 8), {}),
        (torch.ones(3, 1, 3, 3), (8, 8), {"groups": 2}),
        (torch.ones(1, 1, 3, 3), (2, 2), {}),
        (torch.ones(1, 1, 3, 3), (0, 8), {"padding": 2}),
        (torch.ones(1, 1, 3, 3), (8, 8), {"stride": 0}),
        (torch.ones(1, 1, 3, 3), (8, 8), {"padding": -1}),
        (torch.ones(1, 1, 3, 3), (8, 8), {"dilation": 0}),
        (torch.ones(1, 1, 3, 3), (8, 8, 8), {}),
    ],
)
def test_what_is_no_convolution_is_refused(weight, size, options):
    with pytest.raises(stabnet.InvalidInputError):
        conv2d_norm_bound(weight, size, **options)
