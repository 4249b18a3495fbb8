"""Activations have the slopes that they state, and others are refused with the reason."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from stabnet_gradient_flow import feed_forward_activation, max_min, monotone_activation
from stabnet_gradient_flow.activations import FEED_FORWARD, MONOTONE, check_features

from stabnet import InvalidOptionError


def quotients(
    function: Callable[[torch.Tensor], torch.Tensor], points: torch.Tensor
) -> torch.Tensor:
    values = function(points)
    return (values[1:] - values[:-1]) / (points[1:] - points[:-1])


@pytest.mark.parametrize("name", [name for name in FEED_FORWARD if name != "maxmin"])
def test_difference_quotients_stay_within_the_stated_slopes(name: str) -> None:
    activation = feed_forward_activation(name)
    for width in (0.1, 5.0, 60.0):
        points = torch.linspace(-width, width, 60_001, dtype=torch.float64)
        found = quotients(activation, points)
        values = float(activation(points).abs().max())
        rounding = 16 * 2.0**-53 * (values + width) / float(points[1] - points[0])
        assert float(found.min()) >= activation.least_slope - rounding
        assert float(found.max()) <= activation.largest_slope + rounding


@pytest.mark.parametrize("name", list(MONOTONE))
def test_no_monotone_activation_ever_falls(name: str) -> None:
    for dtype in (torch.float32, torch.float64):
        points = torch.linspace(-60, 60, 200_001, dtype=dtype)
        values = monotone_activation(name)(points)
        unit = torch.finfo(dtype).eps * values.abs().clamp(min=torch.finfo(dtype).tiny)
        assert bool((values.diff() >= -2 * unit[1:]).all())


@pytest.mark.parametrize("name", list(FEED_FORWARD))
def test_the_largest_slope_is_attained(name: str) -> None:
    activation = feed_forward_activation(name)
    points = torch.linspace(-40, 40, 80_001, dtype=torch.float64)
    pairs = torch.stack([points, torch.zeros_like(points)], 1)
    found = activation(pairs)[:, 0] if name == "maxmin" else activation(points)
    slope = (found.diff() / points.diff()).abs().max()
    assert float(slope) == pytest.approx(activation.largest_slope, abs=2e-3)


@pytest.mark.parametrize("shape", [(7, 6), (3, 4, 5, 2)])
def test_max_min_permutes_entries_and_expands_no_distance(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    out = max_min(x)
    pairs = x.unflatten(1, (-1, 2))
    assert torch.equal(out[:, 0::2], pairs.amax(2))
    assert torch.equal(out[:, 1::2], pairs.amin(2))
    apart = (max_min(x) - max_min(y)).flatten(1).norm(dim=1)
    assert bool((apart <= (x - y).flatten(1).norm(dim=1) * (1 + 1e-12)).all())


@pytest.mark.parametrize(
    ("name", "function", "lowest", "highest"),
    [
        ("gelu", F.gelu, -0.13, 1.13),
        ("silu", F.silu, -0.10, 1.10),
        ("mish", F.mish, -0.12, 1.09),
        ("sin", torch.sin, -1, None),
        ("selu", F.selu, None, 1.76),
    ],
)
def test_what_is_refused_has_the_slopes_that_the_reason_gives(
    name: str,
    function: Callable[[torch.Tensor], torch.Tensor],
    lowest: float | None,
    highest: float | None,
) -> None:
    found = quotients(function, torch.linspace(-10, 10, 20_001, dtype=torch.float64))
    with pytest.raises(InvalidOptionError) as refused:
        monotone_activation(name)
    for stated, slope in ((lowest, found.min()), (highest, found.max())):
        if stated is not None:
            assert float(slope) == pytest.approx(stated, abs=0.01)
            assert (f"{stated:.2f}" if stated != -1 else "-1") in str(refused.value)


def test_max_min_and_abs_are_no_activations_of_a_gradient_step() -> None:
    for name in ("maxmin", "abs"):
        assert feed_forward_activation(name).name == name
        with pytest.raises(InvalidOptionError, match=r"monotone|-1"):
            monotone_activation(name)


def test_max_min_takes_pairs_of_features() -> None:
    check_features(feed_forward_activation("maxmin"), 4)
    for name in ("abs", "relu"):
        check_features(feed_forward_activation(name), 3)
    with pytest.raises(InvalidOptionError, match="there are 3"):
        check_features(feed_forward_activation("maxmin"), 3)


@pytest.mark.parametrize("name", [["relu"], None, 1])
def test_what_is_no_name_is_refused(name: object) -> None:
    for of in (monotone_activation, feed_forward_activation):
        with pytest.raises(InvalidOptionError, match="not known"):
            of(name)


def test_an_unknown_activation_is_refused_with_what_there_is() -> None:
    with pytest.raises(InvalidOptionError, match=r"not known.*relu.*tanh"):
        monotone_activation("rellu")
    with pytest.raises(InvalidOptionError, match=r"not known.*maxmin"):
        feed_forward_activation("rellu")
