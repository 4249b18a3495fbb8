"""The three readings of LyaDEQ's projection."""

from __future__ import annotations

import math

import pytest
import torch
from stabnet_deq import DEQCell
from stabnet_projection import ICNN, PointProjection, ProjectionFlow, projection

import stabnet
from stabnet.interfaces import Context, Potential


class _Quadratic(Potential):
    state_shape = (5,)

    def forward(self, z, context=None):
        center = 0 if context is None or context.center is None else context.center
        return (z - center).square().sum(-1)


def test_output_reading_on_a_quadratic_halves_and_reflects_the_state():
    z = torch.randn(7, 5, dtype=torch.float64)
    block = PointProjection((5,), _Quadratic(), "output", 0.6)
    torch.testing.assert_close(block(z), -0.3 * z)


def test_residual_reading_is_the_steepest_descent_at_the_promised_rate():
    z = torch.randn(7, 5, dtype=torch.float64)
    potential = ICNN((5,)).double()
    value, gradient = potential.value_and_gradient(z)
    expected = -0.6 * (value / gradient.square().sum(-1))[:, None] * gradient
    torch.testing.assert_close(PointProjection((5,), potential, "residual", 0.6)(z), expected)


def test_output_reading_is_always_active_away_from_the_center():
    z = torch.randn(200, 5, dtype=torch.float64)
    potential = ICNN((5,)).double()
    out = PointProjection((5,), potential, "output", 0.5)(z)
    value, gradient = potential.value_and_gradient(z)
    torch.testing.assert_close((gradient * out).sum(-1), -0.5 * value)


def _flow(alpha: float, time: float, step_size: float):
    torch.manual_seed(0)
    cell = DEQCell((5,), (5,)).double().eval()
    equilibrium = stabnet.Equilibrium(
        cell, stabnet.build("anderson", kind="solver", tolerance=1e-14, max_evaluations=300)
    )
    potential = ICNN((5,), tangent=True).double()
    flow = ProjectionFlow((5,), stabnet.CellField(cell), potential, alpha, time, step_size)
    u = torch.randn(50, 5, dtype=torch.float64)
    return flow, u, equilibrium(u).state.detach()


@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("step_size", [0.05, 0.5, 3.0])
def test_flow_descends_at_the_promised_rate_for_every_step_size(alpha, step_size):
    flow, u, equilibrium = _flow(alpha, 6.0, step_size)
    solution = flow(equilibrium, u)
    context, potential = Context(center=equilibrium), flow.vector_field.potential
    values = torch.stack([potential(z, context) for z in solution.states])
    h = 6.0 / solution.nfe
    assert solution.nfe == len(values) - 1 == math.ceil(6 / step_size)
    assert (values[1:] <= math.exp(-alpha * h) * values[:-1] * (1 + 1e-12) + 1e-28).all()
    bound = (values[0] / potential.eta).sqrt() * math.exp(-alpha * 6.0 / 2)
    assert ((solution.state - equilibrium).norm(dim=1) <= bound + 1e-12).all()


def test_plain_euler_would_raise_the_potential_where_the_flow_does_not():
    """The scaled step is needed: without it some states rise."""
    flow, u, equilibrium = _flow(0.5, 3.0, 3.0)
    context, potential = Context(center=equilibrium), flow.vector_field.potential
    z = 3 * torch.randn_like(equilibrium)
    field = flow.vector_field.towards(equilibrium)
    velocity, value, _ = field.descent(0.0, z, u)
    assert (potential(z + 3.0 * velocity, context) > value).any()
    stepped = flow.integrator(field, z, (0.0, 3.0), u).states[-1]
    assert (potential(stepped, context) <= math.exp(-1.5) * value * (1 + 1e-12)).all()


def test_equilibrium_stays_an_equilibrium_of_the_flow():
    flow, u, equilibrium = _flow(1.0, 1.0, 0.1)
    field = flow.vector_field.towards(equilibrium)
    stepped = flow.integrator(field, equilibrium, (0.0, 0.1), u).states[-1]
    torch.testing.assert_close(stepped, equilibrium, rtol=0, atol=1e-12)


def test_distinct_inputs_keep_distinct_equilibria():
    flow, u, equilibrium = _flow(4.0, 12.0, 0.5)
    reached = flow(equilibrium, u).state
    torch.testing.assert_close(reached, equilibrium, atol=1e-3, rtol=0)
    assert torch.pdist(equilibrium).min() > 1e-2


def test_flow_passes_gradcheck_in_center_and_features():
    flow, u, equilibrium = _flow(1.0, 0.4, 0.2)
    inputs = (equilibrium[:2].clone().requires_grad_(), u[:2].clone().requires_grad_())
    assert torch.autograd.gradcheck(lambda z, u: flow(z, u).state, inputs)


def test_rate_zero_claims_no_exponential_stability():
    for alpha, word in ((0.0, " stable"), (1.0, "exponentially stable")):
        claim = _flow(alpha, 1.0, 0.5)[0].guarantees()[0].claim
        assert word in claim
        assert ("exponentially" in claim) == (alpha > 0)


def test_every_reading_says_that_inputs_are_not_covered():
    flow, _, _ = _flow(1.0, 1.0, 0.5)
    for block in (
        flow,
        projection(state_shape=(5,)),
        projection(state_shape=(5,), reading="residual"),
    ):
        claims = [g for g in block.guarantees() if g.claim.startswith("NOT guaranteed")]
        assert len(claims) == 1
        assert "input" in claims[0].claim
        assert claims[0].status == "conditional"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"reading": "outputs"}, "no reading 'outputs'"),
        ({"reading": "flow"}, "given no vector_field"),
        ({"reading": "output", "vector_field": "mlp"}, "given a vector_field"),
        ({"alpha": -1.0}, "alpha"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, words):
    with pytest.raises(stabnet.InvalidOptionError, match=words):
        projection(state_shape=(5,), **options)
