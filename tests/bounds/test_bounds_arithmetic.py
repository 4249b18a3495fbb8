"""Outward rounding against exact rational and long decimal arithmetic."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stabnet.bounds import (
    add_interval,
    ball,
    batch_norm_interval,
    check_box,
    gamma,
    interval,
    linear_interval,
    normalize_interval,
    product_interval,
)
from stabnet.errors import InvalidInputError, InvalidOptionError

DOUBLE = torch.float64
UNIT = Fraction(1, 2**53)

numbers = st.floats(-1e30, 1e30, allow_subnormal=True)


def vectors(n: int) -> st.SearchStrategy[list[float]]:
    return st.lists(numbers, min_size=n, max_size=n)


def exactly(values: torch.Tensor) -> list[Fraction]:
    return [Fraction(v) for v in values.flatten().tolist()]


@settings(max_examples=150, deadline=None)
@given(vectors(4), vectors(4), vectors(4), numbers)
def test_sound_linear_bounds_contain_the_exact_image(weight, a, b, bias):
    low, high = ([f(p, q) for p, q in zip(a, b, strict=True)] for f in (min, max))
    lower, upper = linear_interval(
        torch.tensor([low], dtype=DOUBLE),
        torch.tensor([high], dtype=DOUBLE),
        torch.tensor([weight], dtype=DOUBLE),
        torch.tensor([bias], dtype=DOUBLE),
        sound=True,
    )
    products = [
        (Fraction(w) * Fraction(p), Fraction(w) * Fraction(q))
        for w, p, q in zip(weight, low, high, strict=True)
    ]
    assert Fraction(lower.item()) <= sum(map(min, products)) + Fraction(bias)
    assert Fraction(upper.item()) >= sum(map(max, products)) + Fraction(bias)


@pytest.mark.parametrize("sound", [False, True])
def test_bounds_of_an_uncertain_product_contain_every_product_and_hold_their_size(sound):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 5, 4, generator=generator, dtype=DOUBLE).sort(0).values
    weight = torch.randn(2, 3, 6, 4, generator=generator, dtype=DOUBLE).sort(0).values

    def apply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return x @ weight.mT

    lower, upper = product_interval(apply, tuple(x), tuple(weight), terms=4, sound=sound)
    ends = x[:, None, ..., None], weight.mT[None, :, :, None]
    products = (ends[0] * ends[1]).flatten(0, 1)  # of all four pairs of ends
    least, most = products.amin(0).sum(-2), products.amax(0).sum(-2)
    assert bool((lower <= least + 1e-12).all())
    assert bool((upper >= most - 1e-12).all())
    # With the width of x none, the bounds are attained.
    lower, upper = product_interval(apply, (x[0], x[0]), tuple(weight), terms=4, sound=sound)
    ends = x[0, :, :, :, None] * weight.mT[:, :, None]
    torch.testing.assert_close(lower, ends.amin(0).sum(-2), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(upper, ends.amax(0).sum(-2), rtol=1e-12, atol=1e-12)


@settings(max_examples=100, deadline=None)
@given(vectors(3), vectors(3), vectors(3), vectors(3), st.lists(st.floats(0, 1), min_size=6))
def test_sound_bounds_of_an_uncertain_product_contain_the_exact_one(a, b, c, d, shares):
    boxes = [torch.tensor([p, q], dtype=DOUBLE).sort(0).values for p, q in ((a, b), (c, d))]
    points = [
        (box[0] + (box[1] - box[0]) * share).clamp(*box).tolist()
        for box, share in zip(boxes, torch.tensor(shares[:6]).view(2, 3), strict=True)
    ]
    exact = sum(Fraction(p) * Fraction(q) for p, q in zip(*points, strict=True))

    def apply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return (x * weight).sum(-1)

    lower, upper = product_interval(apply, tuple(boxes[0]), tuple(boxes[1]), terms=3, sound=True)
    assert Fraction(lower.item()) <= exact <= Fraction(upper.item())


def test_only_sound_bounds_contain_a_sum_that_cancels():
    x, weight = torch.tensor([[1e16, 1.0, -1e16]], dtype=DOUBLE), torch.ones(1, 3, dtype=DOUBLE)
    lower, upper = linear_interval(x, x, weight)
    assert lower.item() == upper.item() != 1
    lower, upper = linear_interval(x, x, weight, sound=True)
    assert lower.item() <= 1 <= upper.item()
    assert upper.item() - lower.item() < 100  # a few units in the last place of 1e16


def test_sound_bounds_contain_products_that_underflow():
    x, weight = torch.full((1, 2), 1e-200, dtype=DOUBLE), torch.full((1, 2), 1e-200, dtype=DOUBLE)
    _, upper = linear_interval(x, x, weight, sound=True)
    assert upper.item() > 0


def test_partial_sums_that_overflow_leave_nothing_known():
    # Exactly 0, but summed from the left it is infinite.
    weight = torch.tensor([[1e308, 1e308, -1e308, -1e308]], dtype=DOUBLE)
    x = torch.ones(1, 4, dtype=DOUBLE)
    lower, upper = linear_interval(x, x, weight, sound=True)
    assert lower.item() <= 0 <= upper.item()


@settings(max_examples=100, deadline=None)
@given(numbers, numbers, numbers, numbers)
def test_sound_sums_contain_the_exact_sum(a, b, c, d):
    box = tuple(torch.tensor([v], dtype=DOUBLE) for v in sorted((a, b)))
    other = tuple(torch.tensor([v], dtype=DOUBLE) for v in sorted((c, d)))
    lower, upper = add_interval(box, other, sound=True)
    assert Fraction(lower.item()) <= Fraction(min(a, b)) + Fraction(min(c, d))
    assert Fraction(upper.item()) >= Fraction(max(a, b)) + Fraction(max(c, d))


@settings(max_examples=100, deadline=None)
@given(numbers, numbers, st.floats(1e-3, 1e3))
def test_sound_normalization_contains_the_exact_value(x, mean, std):
    given = torch.tensor([x], dtype=DOUBLE)
    parameters = torch.tensor([mean], dtype=DOUBLE), torch.tensor([std], dtype=DOUBLE)
    lower, upper = normalize_interval(given, given, *parameters, sound=True)
    exact = (Fraction(x) - Fraction(mean)) / Fraction(std)
    assert Fraction(lower.item()) <= exact <= Fraction(upper.item())


@settings(max_examples=100, deadline=None)
@given(numbers, numbers, st.floats(0, 1e6), numbers, numbers, st.sampled_from([1e-5, 0.1]))
def test_sound_batch_normalization_contains_the_exact_value(x, mean, variance, weight, bias, eps):
    tensors = [torch.tensor([v], dtype=DOUBLE) for v in (mean, variance, weight, bias)]
    given = torch.tensor([[x]], dtype=DOUBLE)
    lower, upper = batch_norm_interval(given, given, *tensors, eps=eps, sound=True)
    with localcontext() as context:
        context.prec = 400
        root = (Decimal(variance) + Decimal(eps)).sqrt()
        exact = (Decimal(x) - Decimal(mean)) / root * Decimal(weight) + Decimal(bias)
        assert Decimal(lower.item()) <= exact <= Decimal(upper.item())


def sigmoid(x: Decimal) -> Decimal:
    return 1 / (1 + (-x).exp())


def tanh(x: Decimal) -> Decimal:
    return 2 * sigmoid(2 * x) - 1


def elu(x: Decimal, alpha: Decimal) -> Decimal:
    return x if x > 0 else alpha * (x.exp() - 1)


def softplus(x: Decimal, beta: Decimal) -> Decimal:
    return x if beta * x > 20 else (1 + (beta * x).exp()).ln() / beta


POINTS = sorted({s * 10.0**k for s in (-1, 1) for k in range(-320, 4, 9)} | {-745.0, -708.5, 0.3})


@pytest.mark.parametrize(
    ("layer", "exact"),
    [
        (nn.Sigmoid(), sigmoid),
        (nn.Tanh(), tanh),
        (nn.ELU(), lambda x: elu(x, Decimal(1))),
        (nn.ELU(0.3), lambda x: elu(x, Decimal.from_float(0.3))),
        (nn.Softplus(), lambda x: softplus(x, Decimal(1))),
        (nn.Softplus(0.37), lambda x: softplus(x, Decimal.from_float(0.37))),
        (nn.LeakyReLU(0.1), lambda x: max(x, Decimal.from_float(0.1) * x)),
        (
            nn.Hardtanh(-0.1, 0.7),
            lambda x: max(Decimal.from_float(-0.1), min(Decimal.from_float(0.7), x)),
        ),
    ],
    ids=lambda part: str(part) if isinstance(part, nn.Module) else "",
)
def test_sound_activations_contain_the_exact_value_and_are_tight(layer, exact):
    generator = torch.Generator().manual_seed(0)
    random = 8 * torch.randn(200, generator=generator, dtype=DOUBLE)
    x = torch.cat([torch.tensor(POINTS, dtype=DOUBLE), random])[None]
    lower, upper = interval(layer, x, x, sound=True)
    with localcontext() as context:
        context.prec, context.Emin = 400, -(10**6)
        for at, low, high in zip(*(t[0].tolist() for t in (x, lower, upper)), strict=True):
            value = exact(Decimal(at))
            assert Decimal(low) <= value <= Decimal(high), at
            assert high - low <= 1e-12 * max(abs(low), 1e-290), at


def test_softplus_bounds_span_the_drop_at_its_threshold():
    layer = nn.Softplus(beta=1.0, threshold=1.0)  # where it is large: 0.31
    peak = 1 + math.log1p(math.exp(-1))
    around = [torch.tensor([[v]], dtype=DOUBLE) for v in (0.9, 1.1)]
    for sound in (False, True):
        lower, upper = interval(layer, *around, sound=sound)
        x = torch.linspace(0.9, 1.1, 1001, dtype=DOUBLE)[:, None]
        assert bool(((lower <= layer(x)) & (layer(x) <= upper)).all())
        assert upper.item() == pytest.approx(peak, abs=1e-12)
        assert lower.item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("terms", [1, 7, 4097])
def test_gamma_is_at_least_its_definition(terms):
    exact = terms * UNIT / (1 - terms * UNIT)
    assert exact <= Fraction(gamma(terms)) <= exact * (1 + Fraction(1, 10**12))


@settings(max_examples=100, deadline=None)
@given(st.floats(0, 1), st.floats(0, 1))
def test_sound_balls_contain_every_point_within_the_radius(x, eps):
    lower, upper = ball(
        torch.tensor([[x]], dtype=DOUBLE), eps, minimum=0.0, maximum=1.0, sound=True
    )
    assert Fraction(lower.item()) <= max(Fraction(0), Fraction(x) - Fraction(eps))
    assert Fraction(upper.item()) >= min(Fraction(1), Fraction(x) + Fraction(eps))
    assert 0 <= lower.item() <= x <= upper.item() <= 1


def test_a_ball_of_radius_zero_is_its_center():
    x = torch.rand(2, 3, generator=torch.Generator().manual_seed(0))
    for sound in (False, True):
        lower, upper = ball(x, 0.0, sound=sound)
        assert torch.equal(lower, upper)
        assert torch.equal(lower.float(), x)


@pytest.mark.parametrize("eps", [-0.1, math.nan, math.inf])
def test_a_ball_needs_a_radius(eps):
    with pytest.raises(InvalidOptionError, match="eps"):
        ball(torch.zeros(1, 1), eps)


def test_a_ball_needs_a_center_in_range():
    with pytest.raises(InvalidInputError, match=r"range from -1 to 0"):
        ball(torch.tensor([[-1.0, 0.0]]), 0.1, minimum=0.0)
    with pytest.raises(InvalidInputError, match="NaN"):
        ball(torch.tensor([[math.nan]]), 0.1)


@pytest.mark.parametrize(
    ("lower", "upper", "message"),
    [
        (torch.zeros(2), torch.zeros(3), "one shape"),
        (torch.zeros(2), torch.zeros(2, dtype=DOUBLE), "one shape and dtype"),
        (torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), "int64"),
        (torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0]), "1 have lower > upper"),
        (torch.tensor([math.nan]), torch.tensor([0.0]), "1 have a NaN bound"),
        (torch.tensor([-math.inf]), torch.tensor([0.0]), "1 an infinite one"),
    ],
)
def test_what_is_no_box_is_refused(lower, upper, message):
    with pytest.raises(InvalidInputError, match=message):
        check_box(lower, upper)


def test_infinite_bounds_pass_where_they_are_allowed():
    check_box(torch.tensor([-math.inf]), torch.tensor([math.inf]), finite=False)
    with pytest.raises(InvalidInputError, match="NaN"):
        check_box(torch.tensor([math.nan]), torch.tensor([math.inf]), finite=False)
