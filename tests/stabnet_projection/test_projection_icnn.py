"""The input-convex potential: positive, convex, zero at its center, closed gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stabnet_projection import ICNN, smooth_relu

import stabnet
from stabnet.interfaces import Context, Potential


def _potential(seed: int, n: int = 4, **options) -> ICNN:
    torch.manual_seed(seed)
    return ICNN((n,), hidden=(7, 5), **options).double()


def _trained(potential: ICNN, steps: int = 200) -> ICNN:
    """Train to match an arbitrary function, so that all weights move."""
    optimizer = torch.optim.Adam(potential.parameters(), lr=1e-2)
    for _ in range(steps):
        z = torch.randn(64, *potential.state_shape, dtype=torch.float64)
        target = (z[:, 0] ** 2 + z.sum(1)).abs() + 1
        loss = (potential(z) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return potential


@pytest.mark.parametrize("tangent", [False, True])
@pytest.mark.parametrize("trained", [False, True])
def test_vanishes_with_its_gradient_at_the_center_and_nowhere_else(tangent, trained):
    potential = _potential(0, tangent=tangent)
    potential = _trained(potential) if trained else potential
    centers = torch.randn(20, 4, dtype=torch.float64)
    for context, at in ((None, torch.zeros(1, 4).double()), (Context(center=centers), centers)):
        value, gradient = potential.value_and_gradient(at, context)
        assert value.abs().max() <= 1e-25
        assert gradient.abs().max() <= 1e-12
        away = at + 1e-3 * torch.randn_like(at)
        distance = (away - at).square().sum(-1)
        assert (potential(away, context) >= potential.eta * distance * (1 - 1e-9)).all()


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


def test_states_with_samples_equal_looping():
    potential = _potential(2, tangent=True)
    c = torch.randn(3, 4, dtype=torch.float64)
    z = torch.randn(1, 6, 4, dtype=torch.float64)
    value, gradient = potential.value_and_gradient(z, Context(center=c))
    assert value.shape == (3, 6)
    for i in range(3):
        one = potential.value_and_gradient(z[0], Context(center=c[i].expand(6, 4)))
        torch.testing.assert_close((value[i], gradient[i]), one)


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


def test_works_under_vmap_inference_mode_and_compiles():
    potential = _potential(3, tangent=True)
    z, c = torch.randn(2, 5, 4, dtype=torch.float64)
    expected = potential.value_and_gradient(z, Context(center=c))
    mapped = torch.vmap(lambda z, c: potential.value_and_gradient(z, Context(center=c)))(z, c)
    torch.testing.assert_close(mapped, expected)
    with torch.inference_mode():
        torch.testing.assert_close(
            potential.value_and_gradient(z, Context(center=c)), expected, check_stride=False
        )
    compiled = torch.compile(
        lambda z, c: potential.value_and_gradient(z, Context(center=c)),
        fullgraph=True,
        backend="eager",
    )
    torch.testing.assert_close(compiled(z, c), expected)


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
