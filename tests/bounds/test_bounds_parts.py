"""Parts that bound themselves, and those that cannot be bounded."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import stabnet
from stabnet.bounds import NoBoundError, affine_parameters, interval


def box():
    """Return a box of two rows around the origin."""
    center = torch.randn(2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return center - 0.5, center + 0.5


class Doubled(nn.Module):
    """A part that bounds itself."""

    def interval(self, lower, upper, *, sound=False):
        self.sound = sound
        return 2 * lower, 2 * upper


class Unrounded(nn.Module):
    """A part that bounds itself, but says nothing of rounding."""

    def interval(self, lower, upper):
        return lower, upper


class Affine(nn.Module):
    """A part that says it is affine."""

    def affine(self):
        return torch.tensor([[1.0, -1.0]]), None


def test_a_part_that_bounds_itself_is_asked():
    part = Doubled()
    lower, upper = box()
    found = interval(nn.Sequential(part, nn.ReLU()), lower, upper, sound=True)
    assert part.sound
    assert torch.equal(found[0], (2 * lower).relu())
    assert isinstance(part, stabnet.interfaces.BoundsIntervals)


def test_a_part_that_says_nothing_of_rounding_is_refused_where_it_matters():
    lower, upper = box()
    assert interval(Unrounded(), lower, upper)[0] is lower
    with pytest.raises(NoBoundError, match=r"Unrounded\.interval takes no `sound`"):
        interval(Unrounded(), lower, upper, sound=True)


def test_a_part_that_is_affine_is_bounded_as_such():
    lower, upper = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 3.0]])
    assert [t.item() for t in interval(Affine(), lower, upper)] == [-3.0, 0.0]
    weight, bias = affine_parameters(Affine())
    assert weight.shape == (1, 2)
    assert bias is None
    assert affine_parameters(nn.Linear(2, 3))[0].shape == (3, 2)
    assert affine_parameters(nn.ReLU()) is None


class Shifted(nn.Linear):
    """A layer that computes something else than its class."""

    def forward(self, x):
        return super().forward(x) + 1


def hooked() -> nn.Module:
    layer = nn.ReLU()
    layer.register_forward_hook(lambda *_: None)
    return layer


class Bent(nn.Sequential):
    """A sequence that is none."""

    def forward(self, x):
        return -super().forward(x)


def with_own_forward() -> nn.Module:
    layer = nn.ReLU()
    layer.forward = torch.neg
    return layer


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.GELU(), r"GELU\(approximate='none'\); known are Linear, Sequential"),
        (nn.Sequential(nn.ReLU(), nn.SiLU()), "SiLU"),
        (nn.BatchNorm1d(3), "BatchNorm1d.*couples the samples"),
        (nn.BatchNorm1d(3, track_running_stats=False).eval(), "track_running_stats"),
        (nn.Dropout(0.1), r"Dropout.*module.eval\(\)"),
        (nn.LeakyReLU(-0.1), "LeakyReLU.*decreases"),
        (nn.ELU(-1.0), "ELU.*decreases"),
        (nn.Softplus(beta=-1.0), "Softplus.*beta"),
        (nn.AvgPool2d(1, divisor_override=-1), "negative divisor"),
        (nn.MaxPool2d(1, return_indices=True), "indices"),
        (nn.AdaptiveMaxPool2d(1, return_indices=True), "indices"),
        (Shifted(3, 3), "Shifted is a Linear with a forward of its own"),
        (Bent(nn.ReLU()), "Bent is a Sequential with a forward of its own"),
        (with_own_forward(), "ReLU with a forward of its own"),
        (hooked(), "forward hooks"),
    ],
    ids=lambda part: type(part).__name__ if isinstance(part, nn.Module) else "",
)
def test_what_cannot_be_bounded_is_refused_by_name(module, message):
    lower, upper = box()
    with pytest.raises(NoBoundError, match=message):
        interval(module, lower.float(), upper.float())
