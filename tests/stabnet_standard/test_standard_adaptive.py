from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import stabnet
from stabnet.interfaces import VectorField

NAMES = ["adaptive_heun", "bosh3", "dopri5", "dopri8"]
METHODS = pytest.mark.parametrize("name", NAMES)
TIGHT = {"rtol": 1e-9, "atol": 1e-11}


def integrator(name, **options):
    return stabnet.build(name, kind="integrator", **options)


def random(*shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def small_field(**options):
    torch.manual_seed(0)
    options = {"hidden": (5,), "time_dependent": True, **options}
    return stabnet.build(
        "mlp", kind="vector_field", state_shape=(3,), feature_shape=(4,), **options
    ).double()


def forced(t, z, u):
    """Solved by ``z(t) = z(0)·exp(−t²) + u·t``."""
    return -2 * t * (z - u * t) + u


@METHODS
@pytest.mark.parametrize("times", [(0.0, 1.0), (0.0, 0.3, 1.5), (1.5, 0.3, 0.0)])
def test_states_meet_the_tolerance_at_every_time(name, times):
    z0, u = random(3, 2), random(3, 2)

    def exact(t):
        return z0 * math.exp(-(t**2)) + u * t

    method = integrator(name, rtol=1e-6, atol=1e-6)
    states = method(forced, exact(times[0]), times, u).states
    expected = torch.stack([exact(t) for t in times])
    growth = max(1.0, math.exp(times[0] ** 2 - times[-1] ** 2))  # of an error made on the way
    torch.testing.assert_close(states, expected, rtol=0, atol=5e-5 * growth)


@pytest.mark.parametrize("times", [(0.0, 0.5, 1.5), (1.5, 0.5, 0.0)])
def test_states_have_the_accuracy_of_the_method_and_not_of_an_interpolant(times):
    z0 = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    rotation = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    states = integrator("dopri8", rtol=1e-8, atol=1e-8)(
        lambda t, z, u: 2 * z @ rotation.T, z0, times
    ).states[:, 0]
    angles = 2 * (torch.tensor(times, dtype=torch.float64) - times[0])
    exact = torch.stack([angles.cos(), -angles.sin()], 1)
    torch.testing.assert_close(states, exact, rtol=0, atol=3e-8)


@METHODS
@pytest.mark.parametrize("adjoint", [False, True])
def test_nfe_counts_the_forward_evaluations_exactly(name, adjoint):
    field = small_field()
    calls = []
    field.register_forward_hook(lambda *_: calls.append(1))
    trajectory = integrator(name, adjoint=adjoint)(
        field, random(2, 3), (0.0, 1.0, 3.0), random(2, 4)
    )
    assert trajectory.nfe == len(calls) > 0
    trajectory.states[-1].sum().backward()
    assert trajectory.nfe < len(calls) or not adjoint


def gradients(field, method, times, z0, u):
    """Return the gradient of a function of all states, in all there is to differentiate in."""
    leaves = [z0, *u] if isinstance(u, tuple) else [z0, u]
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    features = tuple(leaves[1:]) if isinstance(u, tuple) else leaves[1]
    states = method(field, leaves[0], times, features).states
    weights = random(*states.shape)
    return torch.autograd.grad((weights * states.sin()).sum(), [*leaves, *field.parameters()])


@pytest.mark.parametrize("name", ["bosh3", "dopri5", "dopri8"])
@pytest.mark.parametrize("times", [(0.0, 1.0), (0.0, 0.4, 1.0), (1.0, 0.4, 0.0)])
def test_adjoint_and_backpropagation_agree_in_state_features_and_parameters(name, times):
    field, z0, u = small_field(), random(2, 3), random(2, 4)
    tolerances = {"rtol": 1e-7, "atol": 1e-9}
    back = gradients(field, integrator(name, **tolerances), times, z0, u)
    adjoint = gradients(field, integrator(name, adjoint=True, **tolerances), times, z0, u)
    for one, other in zip(adjoint, back, strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("adjoint", [False, True])
def test_gradients_are_those_of_a_fine_fixed_step_solve(adjoint):
    field, z0, u = small_field(), random(2, 3), random(2, 4)
    found = gradients(field, integrator("dopri5", adjoint=adjoint, **TIGHT), (0.0, 1.0), z0, u)
    fine = gradients(field, integrator("rk4", step_size=0.01), (0.0, 1.0), z0, u)
    for one, other in zip(found, fine, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


class _Tied(VectorField):
    """A field driven by two features; its weight may be behind the features, too."""

    def __init__(self):
        super().__init__()
        self.state_shape, self.feature_shape = (3,), (3,)
        self.layer = nn.Linear(3, 3).double()

    def forward(self, t, z, u=None):
        return torch.tanh(self.layer(z) + u[0]) * u[1]


def test_adjoint_counts_a_weight_behind_features_and_field_once():
    torch.manual_seed(0)
    field, z0, x = _Tied(), random(2, 3), random(2, 3)

    def gradient(adjoint):
        first = field.layer(x)
        second = first.sin()  # one feature behind the other
        states = integrator("dopri5", adjoint=adjoint, **TIGHT)(
            field, z0, (0.0, 1.0), (first, second)
        ).states
        return torch.autograd.grad(states[-1].square().sum(), tuple(field.parameters()))

    for one, other in zip(gradient(True), gradient(False), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("values", [(0.0, 0.5, 1.2), (1.2, 0.5, 0.0)])
def test_gradients_reach_the_times(adjoint, values):
    field, z0, u = small_field(), random(2, 3), random(2, 4)
    times = torch.tensor(values, dtype=torch.float64, requires_grad=True)

    def gradient(method):
        states = method(field, z0, times, u).states
        return torch.autograd.grad((random(*states.shape) * states).sum(), times)[0]

    found = gradient(integrator("dopri5", adjoint=adjoint, **TIGHT))
    torch.testing.assert_close(
        found, gradient(integrator("rk4", step_size=0.02)), rtol=1e-5, atol=1e-7
    )


def test_adjoint_works_for_a_frozen_field_and_without_gradients():
    field, z0 = small_field().requires_grad_(False), random(2, 3)
    u = random(2, 4).requires_grad_()
    method = integrator("dopri5", adjoint=True)
    with torch.no_grad():
        reference = method(field, z0, (0.0, 1.0), u).states
    states = method(field, z0, (0.0, 1.0), u).states
    torch.testing.assert_close(states, reference, rtol=0, atol=0)
    states.sum().backward()
    assert u.grad is not None
    assert u.grad.abs().sum() > 0


@pytest.mark.parametrize("adjoint", [False, True])
def test_autocast_changes_the_field_and_not_the_state(adjoint):
    field = small_field().float()
    lift = nn.Linear(4, 4)
    method = integrator("bosh3", rtol=1e-2, atol=1e-2, adjoint=adjoint)
    with torch.autocast("cpu", torch.bfloat16):
        states = method(field, torch.zeros(2, 3), (0.0, 1.0), lift(torch.ones(2, 4))).states
    assert states.dtype == torch.float32
    states.sum().backward()
    for p in (*field.parameters(), *lift.parameters()):
        assert p.grad is not None
        assert p.grad.dtype == torch.float32
        assert p.grad.isfinite().all()


def test_easy_samples_do_not_hide_the_error_of_a_hard_one():
    method = integrator("dopri5")

    def field(t, z, u):
        return u * z

    rates = torch.zeros(64, 1, dtype=torch.float64)
    rates[0] = -8.0
    z0 = torch.ones(64, 1, dtype=torch.float64)
    together = method(field, z0, (0.0, 1.0), rates)
    alone = method(field, z0[:1], (0.0, 1.0), rates[:1])
    assert together.nfe == alone.nfe
    torch.testing.assert_close(together.states[:, :1], alone.states)


def test_a_field_that_vanishes_has_finite_gradients():
    z0 = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    states = integrator("dopri5")(lambda t, z, u: 0 * z, z0, (0.0, 1.0)).states
    states.sum().backward()
    torch.testing.assert_close(z0.grad, torch.full_like(z0, 2.0))


@pytest.mark.parametrize(
    ("field", "options", "reason"),
    [
        (lambda t, z, u: z**2, {}, "step size underflows"),  # reaches infinity at t = 1
        (lambda t, z, u: z * math.nan, {}, "step size underflows"),
        (lambda t, z, u: torch.sin(1e4 * t) * z, {"max_steps": 5}, "max_steps=5: that many"),
    ],
)
def test_an_integration_that_fails_says_so(field, options, reason):
    with pytest.raises(stabnet.ConvergenceError, match=f"dopri5 gave up with .*{reason}"):
        integrator("dopri5", **options)(field, torch.ones(1, 1), (0.0, 2.0))


def test_assertions_of_the_field_are_left_alone():
    def field(t, z, u):
        raise AssertionError("mine")

    with pytest.raises(AssertionError, match="mine"):
        integrator("dopri5")(field, torch.ones(1, 1), (0.0, 1.0))


def test_the_adjoint_method_refuses_a_field_whose_parameters_it_cannot_know():
    field = small_field()
    with pytest.raises(stabnet.InvalidInputError, match="a vector field that is a module"):
        integrator("dopri5", adjoint=True)(
            lambda t, z, u: field(t, z, u), random(2, 3), (0.0, 1.0), random(2, 4)
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rtol": 0.0}, "rtol is a positive finite number"),
        ({"atol": -1.0}, "atol is finite and at least 0"),
        ({"max_steps": 0}, "max_steps is a positive whole number"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(stabnet.InvalidOptionError, match=message):
        integrator("dopri5", **options)
