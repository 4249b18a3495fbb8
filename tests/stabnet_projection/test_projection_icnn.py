"""The input-convex potential: positive, convex, zero at its center, closed gradient."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from potential_checks import (
    check_center,
    check_export,
    check_transforms,
    search_steepness,
    states,
    train,
)
from stabnet_projection import ICNN, smooth_relu

import stabnet
from stabnet.interfaces import Context, Potential


def _potential(seed: int, n: int = 4, **options) -> ICNN:
    torch.manual_seed(seed)
    return ICNN((n,), hidden=(7, 5), **options).double()


def _scaled(seed: int, scale: float, **options) -> ICNN:
    """Return a potential whose weights are larger than at first, as after training."""
    torch.manual_seed(seed)
    potential = ICNN(**options).double()
    with torch.no_grad():
        for parameter in potential.parameters():
            parameter.mul_(scale)
    return potential


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(("tangent", "center"), [(False, [0.3, -1.0, 2.0, 7.0]), (True, None)])
def test_center_stays_where_it_is_through_training(tangent, center):
    potential = _potential(0, tangent=tangent, center=center)
    before = [p.detach().clone() for p in potential.parameters()]
    train(potential, 1000)
    assert all(
        (p - q).abs().max() > 1e-3 for p, q in zip(potential.parameters(), before, strict=True)
    )
    check_center(potential)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    weights=st.floats(0.1, 10),
    logscale=st.floats(-9, 6),
    tangent=st.booleans(),
)
def test_grows_at_least_quadratically(seed, weights, logscale, tangent):
    potential = _scaled(seed, weights, state_shape=(4,), hidden=(7, 5), tangent=tangent)
    z, c = states(potential, 20, seed)
    value = potential(c + 10**logscale * z, Context(center=c))
    distance = ((c + 10**logscale * z) - c).square().sum(1)
    assert (value >= potential.growth_bound() * distance * (1 - 1e-14)).all()


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    scale=st.floats(1e-3, 1e3),
    share=st.floats(0, 1),
    tangent=st.booleans(),
)
def test_is_convex_along_random_segments(seed, scale, share, tangent):
    potential = _potential(seed, tangent=tangent)
    a, b, c = scale * torch.randn(3, 16, 4, dtype=torch.float64)
    context = Context(center=c)
    chord = share * potential(a, context) + (1 - share) * potential(b, context)
    inside = potential(share * a + (1 - share) * b, context)
    assert (inside <= chord * (1 + 1e-12) + 1e-12).all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), logscale=st.floats(-12, 6), tangent=st.booleans())
def test_closed_gradient_is_the_derivative_at_any_distance(seed, logscale, tangent):
    potential = _potential(seed, tangent=tangent)
    center = torch.randn(9, 4, dtype=torch.float64)
    z = center + 10**logscale * torch.randn(9, 4, dtype=torch.float64)
    value, gradient = potential.value_and_gradient(z, Context(center=center))
    reference = Potential.value_and_gradient(potential, z, Context(center=center))
    assert torch.isfinite(value).all()
    torch.testing.assert_close((value, gradient), reference, rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("tangent", [False, True])
def test_gradient_itself_can_be_differentiated(tangent):
    potential = _potential(1, tangent=tangent)
    z, c = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    parameters = list(potential.parameters())
    for p in parameters:
        p.requires_grad_()

    def evaluate(z, c, *_):
        return potential.value_and_gradient(z, Context(center=c))

    assert torch.autograd.gradcheck(evaluate, (z, c, *parameters))


def test_works_for_states_of_any_shape():
    potential = ICNN((2, 3, 3), hidden=(4,))
    value, gradient = potential.value_and_gradient(torch.randn(5, 2, 3, 3))
    assert value.shape == (5,)
    assert gradient.shape == (5, 2, 3, 3)


def test_smooth_relu_follows_its_three_cases():
    x = torch.tensor([-1.0, 0.0, 0.25, 0.5, 3.0], dtype=torch.float64)
    value, slope = smooth_relu(x, 0.5)
    torch.testing.assert_close(value, torch.tensor([0, 0, 0.0625, 0.25, 2.75]).double())
    torch.testing.assert_close(slope, torch.tensor([0, 0, 0.5, 1, 1]).double())


@pytest.mark.parametrize(
    "options", [{"eta": 0.0}, {"smoothing": -1.0}, {"hidden": ()}, {"hidden": (3, 0)}]
)
def test_constants_out_of_range_are_refused(options):
    with pytest.raises(stabnet.InvalidOptionError, match=r"above 0|at least 1|is empty"):
        ICNN((4,), **options)


@pytest.mark.parametrize("tangent", [False, True])
def test_works_under_every_transform_and_exports(tangent):
    check_transforms(_potential(3, tangent=tangent))
    check_export(_potential(3, tangent=tangent))


@pytest.mark.parametrize("tangent", [False, True])
def test_autocast_does_not_touch_the_potential(tangent):
    torch.manual_seed(0)
    potential = ICNN((4,), tangent=tangent)
    center = torch.randn(9, 4)
    z, context = center + 1e-2 * torch.randn(9, 4), Context(center=center)
    expected = potential.value_and_gradient(z, context)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(
            potential.value_and_gradient(z, context), expected, rtol=0, atol=0
        )
        assert potential(z.bfloat16(), context).dtype == torch.float32


def _exactly(potential: ICNN, z: list[float], c: list[float]):
    """Return value and gradient by the definition, in 60 digits."""
    mp, d = mpmath.mpf, mpmath.mpf(potential.smoothing)
    W = [[[mp(x) for x in row] for row in layer.weight.tolist()] for layer in potential.direct]
    b = [[mp(x) for x in layer.bias.tolist()] for layer in potential.direct]
    U = [
        [[mpmath.log1p(mpmath.exp(mp(x))) / len(row) for x in row] for row in raw.tolist()]
        for raw in potential.positive
    ]

    def smooth(x):
        slope = min(max(x / d, mp(0)), mp(1))
        return slope * (x - slope * d / 2), slope

    def network(z):
        q, jacobian = [], []
        for i, (rows, bias) in enumerate(zip(W, b, strict=True)):
            inputs = [mpmath.fdot(w, z) + shift for w, shift in zip(rows, bias, strict=True)]
            jacobians = rows
            if i:
                inputs = [x + mpmath.fdot(u, q) for x, u in zip(inputs, U[i - 1], strict=True)]
                jacobians = [
                    [
                        w + mpmath.fdot(u, column)
                        for w, column in zip(row, zip(*jacobian, strict=True), strict=True)
                    ]
                    for row, u in zip(rows, U[i - 1], strict=True)
                ]
            q = [smooth(x)[0] for x in inputs]
            jacobian = [
                [smooth(x)[1] * e for e in row] for x, row in zip(inputs, jacobians, strict=True)
            ]
        return q[0], jacobian[0]

    z, c = [mp(x) for x in z], [mp(x) for x in c]
    offset = [x - y for x, y in zip(z, c, strict=True)]
    (g, slope), (g_c, slope_c) = network(z), network(c)
    tau = int(potential.tangent)
    value, factor = smooth(g - g_c - tau * mpmath.fdot(slope_c, offset))
    value += mp(potential.eta) * mpmath.fdot(offset, offset)
    gradient = [
        factor * (x - tau * y) + 2 * mp(potential.eta) * e
        for x, y, e in zip(slope, slope_c, offset, strict=True)
    ]
    return value, gradient


@pytest.mark.parametrize("tangent", [False, True])
@pytest.mark.parametrize("weights", [1.0, 4.0])
@pytest.mark.parametrize("distance", [1e-12, 1e-8, 1e-4, 1.0, 1e6])
def test_is_accurate_at_any_distance(tangent, weights, distance):
    options = {"state_shape": (3,), "hidden": (6, 5), "tangent": tangent}
    potential = _scaled(1, weights, **options)
    z, c = states(potential, 4)
    z = c + distance * z
    values, gradients = potential.value_and_gradient(z, Context(center=c))
    with mpmath.workdps(60):
        for k in range(4):
            value, gradient = _exactly(potential, z[k].tolist(), c[k].tolist())
            assert abs(values[k].item() - value) <= 1e-13 * value
            error = [x - y for x, y in zip(gradients[k].tolist(), gradient, strict=True)]
            assert mpmath.norm(error) <= 1e-13 * mpmath.norm(gradient)


@pytest.mark.parametrize("tangent", [False, True])
def test_single_precision_is_accurate_near_the_center(tangent):
    potential = _scaled(2, 3.0, state_shape=(4,), hidden=(7, 5), tangent=tangent).float()
    c = torch.randn(50, 4)
    z = c + 1e-4 * torch.randn(50, 4)
    found = potential.value_and_gradient(z, Context(center=c))
    expected = potential.double().value_and_gradient(z.double(), Context(center=c.double()))
    for single, double in zip(found, expected, strict=True):
        assert ((single - double).norm(dim=-1) <= 1e-5 * double.norm(dim=-1)).all()


@pytest.mark.parametrize("tangent", [False, True])
@pytest.mark.parametrize("hidden", [(6,), (6, 5), (6, 5, 4), (6, 5, 4, 3)])
@pytest.mark.parametrize("weights", [1.0, 3.0])
def test_smoothness_bound_withstands_a_search(tangent, hidden, weights):
    potential = _scaled(4, weights, state_shape=(3,), hidden=hidden, tangent=tangent)
    found, bound = search_steepness(potential), float(potential.smoothness_bound())
    assert 2 * potential.eta * (1 - 1e-9) <= found <= bound * (1 + 1e-9)


@pytest.mark.parametrize("tangent", [False, True])
@pytest.mark.parametrize(("weight", "width"), [(1.0, 1.0), (5.0, 0.3)])
def test_smoothness_bound_is_close_where_the_constant_is_known(tangent, weight, width):
    """With one active unit V″ is largest at σ's second kink, and 3w²/(2d) + 2η there."""
    potential = ICNN((1,), hidden=(1,), smoothing=width, tangent=tangent).double()
    with torch.no_grad():
        for layer, (w, b) in zip(
            potential.direct, [(0.0, -1.0), (weight, -0.01 * width)], strict=True
        ):
            layer.weight.fill_(w)
            layer.bias.fill_(b)
    exact = 1.5 * weight**2 / width + 2 * potential.eta
    assert 0.95 * exact <= search_steepness(potential, 200) <= exact * (1 + 1e-9)
    assert exact <= float(potential.smoothness_bound()) <= 4 / 3 * exact * (1 + 1e-6)


def test_smoothness_bound_is_not_loose_in_high_dimension():
    potential = ICNN((64,), hidden=(64,), eta=1e-3).double()
    z, _ = states(potential, 50)
    curvatures = torch.linalg.eigvalsh(torch.vmap(torch.func.hessian(potential))(z))
    assert float(potential.smoothness_bound()) <= 10 * curvatures.max()


@pytest.mark.parametrize("tangent", [False, True])
def test_passes_gradcheck_and_gradgradcheck_away_from_the_center(tangent):
    potential = _potential(5, tangent=tangent)
    z, c = states(potential, 2)
    for distance in (1e-3, 1.0):
        at = (c + distance * z / z.norm(dim=1, keepdim=True)).requires_grad_()
        inputs = (at, c.clone().requires_grad_())

        def value(z, c):
            return potential(z, Context(center=c))

        assert torch.autograd.gradcheck(value, inputs, eps=1e-7)
        assert torch.autograd.gradgradcheck(value, inputs, eps=1e-7)


@pytest.mark.parametrize("tangent", [False, True])
@pytest.mark.parametrize(("n", "depth"), [(2, 1), (64, 1), (64, 4)])
def test_network_is_alive_at_first(n, depth, tangent):
    potential = ICNN((n,), hidden=(64,) * depth, tangent=tangent)
    z = torch.randn(500, n)
    value = potential(z)
    risen = value > potential.eta * z.square().sum(1) * (1 + 1e-6)
    assert risen.float().mean() > (0.95 if tangent else 0.3)
    (value - value.detach().mean()).square().mean().backward()
    norms = [p.grad.norm() for p in potential.parameters()]
    assert min(norms) > 1e-6 * max(norms)
    assert math.isfinite(max(norms))
