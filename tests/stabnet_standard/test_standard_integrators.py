from __future__ import annotations

import math

import pytest
import torch
import torchdiffeq
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

import stabnet

ORDERS = {"euler": 1, "midpoint": 2, "rk4": 4}
METHODS = pytest.mark.parametrize("name", ORDERS)
ROTATION = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)


def integrator(name, **options):
    return stabnet.build(name, kind="integrator", **options)


def oscillator(t, z, u=None):
    return z @ ROTATION.T


def counting(field):
    def counted(t, z, u=None):
        counted.nfe += 1
        return field(t, z, u)

    counted.nfe = 0
    return counted


def forced(t, z, u):
    """Solved by ``z(t) = z(0)·exp(−t²) + u·t``."""
    return -2 * t * (z - u * t) + u


@METHODS
def test_errors_shrink_with_the_order_of_the_method(name):
    z0 = torch.tensor([[1.0, -0.5]], dtype=torch.float64)
    u = torch.tensor([[0.3, 2.0]], dtype=torch.float64)
    exact = z0 * math.exp(-1.0) + u

    def error(h):
        states = integrator(name, step_size=h)(forced, z0, (0.0, 1.0), u).states
        return (states[-1] - exact).abs().max().item()

    order = math.log2(error(1 / 32) / error(1 / 64))
    assert order == pytest.approx(ORDERS[name], abs=0.1)


@METHODS
def test_one_step_of_a_linear_field_is_its_truncated_exponential(name):
    z0 = torch.tensor([[1.0]], dtype=torch.float64)
    state = integrator(name, step_size=1.0)(lambda t, z, u: -z, z0, (0.0, 1.0)).states[-1]
    expected = sum((-1.0) ** k / math.factorial(k) for k in range(ORDERS[name] + 1))
    assert state.item() == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("name", ["euler", "midpoint"])
def test_states_agree_with_torchdiffeq(name):
    z0 = torch.tensor([[1.0, 0.0], [0.2, -3.0]], dtype=torch.float64)
    times = torch.linspace(0, 1, 6, dtype=torch.float64)
    reference = torchdiffeq.odeint(oscillator, z0, times, method=name)
    states = integrator(name, step_size=10.0)(oscillator, z0, times.tolist()).states
    torch.testing.assert_close(states, reference)


@pytest.mark.parametrize("name", ["euler", "midpoint"])
def test_states_agree_with_torchdiffeq_step_by_step(name):
    z0 = torch.tensor([[1.0, 0.0], [0.2, -3.0]], dtype=torch.float64)
    times = torch.tensor([0.0, 0.5, 1.5], dtype=torch.float64)
    reference = torchdiffeq.odeint(oscillator, z0, times, method=name, options={"step_size": 0.125})
    found = integrator(name, step_size=0.125)(oscillator, z0, times.tolist())
    torch.testing.assert_close(found.states, reference, rtol=1e-14, atol=1e-14)


def driven():
    """Return a field that depends on state, time and features, and a batch of both."""
    torch.manual_seed(0)
    field = stabnet.build(
        "mlp", kind="vector_field", state_shape=(3,), feature_shape=(2,), time_dependent=True
    ).double()
    return field, torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)


def classical(field, z, steps, u):
    """Integrate over [0, 1] by the fourth-order method as every textbook writes it."""
    h = 1.0 / steps
    for k in range(steps):
        t = k * h
        k1 = field(t, z, u)
        k2 = field(t + h / 2, z + h / 2 * k1, u)
        k3 = field(t + h / 2, z + h / 2 * k2, u)
        k4 = field(t + h, z + h * k3, u)
        z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return z


def test_rk4_is_the_classical_method_to_rounding():
    field, z0, u = driven()
    found = integrator("rk4", step_size=0.1)(field, z0, (0.0, 1.0), u).states[-1]
    torch.testing.assert_close(found, classical(field, z0, 10, u), rtol=1e-14, atol=1e-14)


def test_rk4_departs_from_torchdiffeqs_three_eighths_rule_by_their_common_order():
    field, z0, u = driven()
    times = torch.tensor([0.0, 1.0], dtype=torch.float64)

    def gap(h):
        theirs = torchdiffeq.odeint(
            lambda t, z: field(t, z, u), z0, times, method="rk4", options={"step_size": h}
        )
        ours = integrator("rk4", step_size=h)(field, z0, (0.0, 1.0), u).states
        return (ours - theirs).abs().max().item()

    assert 0 < gap(1 / 64) < 1e-8
    assert math.log2(gap(1 / 4) / gap(1 / 8)) > 3.8


@METHODS
def test_times_as_a_tensor_and_as_numbers_give_the_same_states(name):
    field, z0, u = driven()
    method, times = integrator(name, step_size=0.3), [0.0, 0.7, 1.1]
    found = method(field, z0, torch.tensor(times, dtype=torch.float64), u).states
    torch.testing.assert_close(found, method(field, z0, times, u).states, rtol=1e-14, atol=1e-14)


def test_rk4_carries_the_harmonic_oscillator_around_its_circle():
    z0 = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    times = [2 * math.pi * k / 8 for k in range(9)]
    states = integrator("rk4", step_size=0.01)(oscillator, z0, times).states[:, 0]
    exact = torch.tensor([[math.cos(t), -math.sin(t)] for t in times], dtype=torch.float64)
    torch.testing.assert_close(states, exact, rtol=0, atol=1e-9)
    assert torch.equal(states[0], z0[0])


@METHODS
@pytest.mark.parametrize("times", [(0.0, 1.0), (0.0, 0.3, 0.35, 2.0), (1.0, 0.2, -0.5)])
def test_nfe_is_exact(name, times):
    field = counting(oscillator)
    z0 = torch.ones(1, 2, dtype=torch.float64)
    trajectory = integrator(name, step_size=0.1)(field, z0, times)
    assert trajectory.nfe == field.nfe
    assert trajectory.states.shape == (len(times), 1, 2)


@given(start=st.integers(-50, 50), length=st.integers(1, 30), sign=st.sampled_from([1, -1]))
@settings(max_examples=30, deadline=None)
@pytest.mark.parametrize("dtype", [None, torch.float64, torch.float32])
def test_steps_are_the_fewest_not_longer_than_the_step_size(dtype, start, length, sign):
    # Decimal fractions have no exact binary form, so that lengths are off by rounding.
    times = [start / 10, (start + sign * length) / 10]
    given = times if dtype is None else torch.tensor(times, dtype=dtype)
    z0 = torch.zeros(1, 1)
    assert integrator("euler", step_size=0.1)(lambda t, z, u: z, z0, given).nfe == length
    assert integrator("euler", step_size=0.1001)(lambda t, z, u: z, z0, given).nfe == length
    assert integrator("euler", step_size=0.0999)(lambda t, z, u: z, z0, given).nfe == length + 1


@METHODS
def test_decreasing_times_integrate_backward(name):
    z0 = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
    method = integrator(name, step_size=1e-2)
    forth = method(forced, z0, (0.0, 0.5), z0).states[-1]
    back = method(forced, forth, (0.5, 0.0), z0).states[-1]
    torch.testing.assert_close(back, z0, rtol=0, atol=20 * 1e-2 ** ORDERS[name])


@METHODS
def test_stages_are_evaluated_within_the_interval_and_at_its_ends(name):
    seen = []

    def field(t, z, u):
        seen.append(t)
        return z

    integrator(name, step_size=0.1)(field, torch.ones(1, 1), (0.0, 1.0))
    assert min(seen) == 0
    assert max(seen) <= 1 + 1e-15


@METHODS
def test_gradients_reach_state_features_and_times(name):
    method = integrator(name, step_size=0.5)
    z0 = torch.tensor([[1.0, 0.5]], dtype=torch.float64, requires_grad=True)
    u = torch.tensor([[0.3, -1.0]], dtype=torch.float64, requires_grad=True)
    times = torch.tensor([0.0, 0.7, 1.1], dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda z, t, u: method(forced, z, t, u).states, (z0, times, u))


def test_a_batch_is_integrated_sample_by_sample_under_vmap():
    method = integrator("rk4", step_size=0.25)
    z0 = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def final(z):
        return method(forced, z, (0.0, 1.0), 2 * z).states[-1]

    torch.testing.assert_close(torch.func.vmap(final)(z0), final(z0))
    gradient = torch.func.grad(lambda z: final(z).square().sum())(z0)
    leaf = z0.clone().requires_grad_()
    final(leaf).square().sum().backward()
    torch.testing.assert_close(gradient, leaf.grad)


def test_rk4_compiles_as_one_graph_for_any_times():
    method = integrator("rk4", step_size=0.5)
    field = stabnet.build(
        "mlp", kind="vector_field", state_shape=(3,), feature_shape=(2,), time_dependent=True
    )
    z0, u = torch.randn(2, 3), torch.randn(2, 2)
    compiled = torch.compile(
        lambda z, t, u: method(field, z, t, u), fullgraph=True, backend="eager"
    )
    for times in [(0.0, 1.0), (0.0, 0.5), (1.0, 0.5, 0.0)]:
        found, expected = compiled(z0, times, u), method(field, z0, times, u)
        torch.testing.assert_close(found.states, expected.states)
        assert found.nfe == expected.nfe


def test_a_flow_with_a_driven_field_compiles_as_one_graph_with_its_gradient():
    field, _, u = driven()
    flow = stabnet.Flow(field, integrator("rk4", step_size=0.5))
    compiled = torch.compile(flow, fullgraph=True, backend="aot_eager")
    weights = tuple(field.parameters())
    found = torch.autograd.grad(compiled(u).state.square().sum(), weights)
    expected = torch.autograd.grad(flow(u).state.square().sum(), weights)
    torch.testing.assert_close(found, expected)


def test_derivatives_by_state_and_features_are_the_same_forward_and_backward():
    field, z0, u = driven()

    def final(z, u):
        return integrator("rk4", step_size=0.5)(field, z, (0.0, 1.0), u).states[-1].sum(0)

    forward = torch.func.jacfwd(final, argnums=(0, 1))(z0, u)
    torch.testing.assert_close(forward, torch.func.jacrev(final, argnums=(0, 1))(z0, u))


def test_one_state_is_carried_by_many_features_under_vmap():
    field, z0, u = driven()
    method = integrator("rk4", step_size=0.5)
    states = torch.func.vmap(lambda v: method(field, z0[:1], (0.0, 1.0), v[None]).states[-1, 0])(u)
    torch.testing.assert_close(
        states, method(field, z0[:1].expand(4, -1), (0.0, 1.0), u).states[-1]
    )


@METHODS
def test_times_given_as_numbers_need_no_look_at_the_device(name):
    z0 = torch.zeros(2, 3, device="meta")  # has no values to look at
    assert integrator(name)(lambda t, z, u: z, z0, (0.0, 1.0)).states.device.type == "meta"


@pytest.mark.parametrize("name", [*ORDERS, "dopri5"])
@pytest.mark.parametrize(
    ("times", "message"),
    [
        ((), "at least two"),
        ((0.0,), "at least two"),
        ((0.0, 0.0), "strictly"),
        ((0.0, 1.0, 0.5), "strictly"),
        ((1.0, 0.5, 0.5), "strictly"),
        ((0.0, math.inf), "finite"),
        ((math.nan, 1.0), "finite"),
        (torch.zeros(2, 2), "one dimension"),
        (torch.tensor(1.0), "one dimension"),
    ],
)
def test_impossible_times_are_refused(name, times, message):
    with pytest.raises(stabnet.InvalidInputError, match=message):
        integrator(name)(oscillator, torch.zeros(1, 2, dtype=torch.float64), times)


@METHODS
@pytest.mark.parametrize("step_size", [0, -0.1, math.inf, math.nan, "0.1"])
def test_impossible_step_sizes_are_refused(name, step_size):
    with pytest.raises(stabnet.InvalidOptionError, match="step_size is a positive finite number"):
        integrator(name, step_size=step_size)
