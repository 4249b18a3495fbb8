"""Activations as proximal operators, against their definition."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stabnet_deq.monotone import (
    ACTIVATIONS,
    ProximalActivation,
    hardtanh,
    leaky_relu,
    soft_threshold,
)
from stabnet_deq.monotone.activations import proximal_activation
from torch import Tensor

import stabnet

STEPS = (1e-3, 1e-2, 0.1, 0.7, 1.0, 1.5, 10.0, 100.0, 1e3)


def _points() -> Tensor:
    small = torch.logspace(-9, 3, 200, dtype=torch.float64)
    return torch.cat([torch.linspace(-30, 30, 997, dtype=torch.float64), small, -small])


# The functions φ of which the activations are the proximal operators, up to constants.
PENALTIES = {
    "relu": lambda z: torch.where(z >= 0, 0.0, torch.inf),
    "leaky_relu": lambda z: torch.where(z >= 0, 0.0, (1 / 0.01 - 1) / 2 * z**2),
    "hardtanh": lambda z: torch.where(z.abs() <= 1, 0.0, torch.inf),
    "soft_threshold": lambda z: z.abs(),
    "tanh": lambda z: (
        torch.where(
            z.abs() < 1,
            torch.special.xlog1py(1 + z, z) / 2 + torch.special.xlog1py(1 - z, -z) / 2,
            9e9,
        )
        - z**2 / 2
    ),
    "sigmoid": lambda z: (
        torch.where((z > 0) & (z < 1), torch.xlogy(z, z) + torch.xlogy(1 - z, 1 - z), 9e9)
        - z**2 / 2
    ),
    "elu": lambda z: torch.where(
        z >= 0, 0.0, torch.where(z > -1, torch.xlogy(1 + z, 1 + z) - z, 9e9) - z**2 / 2
    ),
}


@pytest.mark.parametrize("alpha", [0.05, 0.6, 1.0, 2.5, 20.0])
@pytest.mark.parametrize("name", PENALTIES)
def test_proximal_point_minimizes_its_definition(name, alpha):
    """Against brute force over a fine grid of z."""
    v = torch.linspace(-3, 3, 13, dtype=torch.float64)
    z = torch.linspace(-4, 4, 100_001, dtype=torch.float64)[:, None]
    objective = (z - v) ** 2 / 2 + alpha * PENALTIES[name](z)
    brute = z[objective.argmin(0), 0]
    found = ACTIVATIONS[name].proximal(v, alpha)
    torch.testing.assert_close(found, brute, rtol=0, atol=1e-4)


@pytest.mark.parametrize("alpha", STEPS)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_proximal_point_solves_the_optimality_condition(name, alpha):
    """z = prox(v) at step α exactly if z is the activation at z + (v − z)/α."""
    activation, v = ACTIVATIONS[name], _points()
    z = activation.proximal(v, alpha)
    scale = 1 + v.abs()
    error = (activation(z + (v - z) / alpha) - z).abs() / scale
    # Rounding of (v − z)/α is magnified where α is small.
    assert float(error.max()) < 1e-14 * max(1, 1 / alpha)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_slope_is_the_derivative_and_lies_in_the_unit_interval(name):
    activation, x = ACTIVATIONS[name], _points().requires_grad_()
    (derivative,) = torch.autograd.grad(activation(x).sum(), x)
    slope = activation.slope(x.detach())
    torch.testing.assert_close(slope, derivative, rtol=1e-12, atol=1e-13)
    assert ((slope >= 0) & (slope <= 1)).all()


@pytest.mark.parametrize("alpha", [0.01, 0.5, 1.0, 30.0])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_proximal_operator_has_the_right_first_and_second_derivative(name, alpha):
    generator = torch.Generator().manual_seed(0)
    v = 3 * torch.randn(12, generator=generator, dtype=torch.float64)
    proximal = lambda v: ACTIVATIONS[name].proximal(v, alpha)  # noqa: E731
    assert torch.autograd.gradcheck(proximal, v.requires_grad_())
    assert torch.autograd.gradgradcheck(proximal, v)


@settings(max_examples=50, deadline=None)
@given(
    name=st.sampled_from(sorted(ACTIVATIONS)),
    alpha=st.floats(1e-3, 1e3),
    v=st.floats(-100, 100),
    w=st.floats(-100, 100),
)
def test_proximal_operators_do_not_decrease_and_do_not_expand(name, alpha, v, w):
    pair = torch.tensor([min(v, w), max(v, w)], dtype=torch.float64)
    low, high = ACTIVATIONS[name].proximal(pair, alpha).tolist()
    slack = 1e-12 * (1 + pair.abs().max().item())
    assert -slack <= high - low <= float(pair[1] - pair[0]) + slack


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_lower_precision_gives_the_same_up_to_rounding(name, dtype):
    v = torch.linspace(-5, 5, 101, dtype=torch.float64).to(dtype)
    expected = ACTIVATIONS[name].proximal(v.double(), 2.0)
    found = ACTIVATIONS[name].proximal(v, 2.0)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=32 * torch.finfo(dtype).eps)


def test_a_given_pair_of_value_and_slope_gets_its_proximal_operator():
    given_ = ProximalActivation(torch.atan, lambda x: 1 / (1 + x**2))
    v = _points()
    for alpha in STEPS:
        z = given_.proximal(v, alpha)
        error = (given_(z + (v - z) / alpha) - z).abs() / (1 + v.abs())
        assert float(error.max()) < 1e-13 * max(1, 1 / alpha)


def test_parameters_move_the_activation():
    x = torch.tensor([-2.0, -0.5, 0.5, 3.0])
    assert leaky_relu(0.5)(x).tolist() == [-1.0, -0.25, 0.5, 3.0]
    assert soft_threshold(0.25)(x).tolist() == [-1.75, -0.25, 0.25, 2.75]
    assert soft_threshold(0.25).proximal(x, 4.0).tolist() == [-1.0, 0.0, 0.0, 2.0]
    assert hardtanh(0.0, 1.0)(x).tolist() == [0.0, 0.0, 0.5, 1.0]


@pytest.mark.parametrize("name", ["gelu", "silu", "sin", 3])
def test_activation_without_proximal_operator_is_refused_with_the_reason(name):
    with pytest.raises(stabnet.InvalidOptionError, match="converges to a wrong point"):
        proximal_activation(name)


@pytest.mark.parametrize(
    ("value", "slope"),
    [
        (torch.sin, torch.cos),
        (torch.nn.functional.gelu, lambda x: torch.ones_like(x) / 2),
        (lambda x: 2 * torch.tanh(x), lambda x: torch.ones_like(x) / 2),
        (torch.tanh, lambda x: 2 * torch.ones_like(x)),
        (torch.tanh, lambda x: x / 0),
    ],
)
def test_pair_that_is_no_proximal_operator_is_refused(value, slope):
    with pytest.raises(stabnet.InvalidOptionError, match="no proximal operator"):
        ProximalActivation(value, slope)


@pytest.mark.parametrize(
    "make",
    [
        lambda: leaky_relu(0.0),
        lambda: leaky_relu(1.5),
        lambda: soft_threshold(-1.0),
        lambda: hardtanh(1.0, 1.0),
    ],
)
def test_parameters_out_of_range_are_refused(make):
    with pytest.raises(stabnet.InvalidOptionError):
        make()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_can_be_copied_and_sent_to_other_processes(name):
    x = torch.linspace(-3, 3, 7)
    for copied in (copy.deepcopy(ACTIVATIONS[name]), pickle.loads(pickle.dumps(ACTIVATIONS[name]))):
        assert torch.equal(copied(x), ACTIVATIONS[name](x))
