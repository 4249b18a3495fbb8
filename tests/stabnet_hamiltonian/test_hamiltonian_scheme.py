"""Schemes: orders, inverses, clocks, composition, and what states they take."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stabnet_hamiltonian import SCHEMES, compose, inverse_step, step
from stabnet_hamiltonian.scheme import halves, is_separable
from torch import Tensor

import stabnet

ORDERS = {"symplectic_euler": 1, "leapfrog": 2, "yoshida4": 4}


class DrivenPendulum:
    """A nonlinear field with both parts dependent on time, so that wrong clocks cost the order."""

    def velocity(self, t: float | Tensor, p: Tensor, u: object = None) -> Tensor:
        return p * (1 + 0.5 * torch.sin(3 * torch.as_tensor(t, dtype=torch.float64)))

    def force(self, t: float | Tensor, q: Tensor, u: object = None) -> Tensor:
        return -torch.sin(q) * (1 + 0.5 * torch.cos(2 * torch.as_tensor(t, dtype=torch.float64)))


def _carried(scheme: str, z: Tensor, steps: int) -> Tensor:
    for k in range(steps):
        z = step(SCHEMES[scheme], DrivenPendulum(), k / steps, z, 1 / steps)
    return z


def _states(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("name", SCHEMES)
def test_error_falls_with_the_order_of_the_scheme_for_a_field_that_depends_on_time(name):
    z = _states(3, 4)
    exact = _carried("yoshida4", z, 400)
    errors = [float((_carried(name, z, n) - exact).norm()) for n in (20, 40)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(ORDERS[name], abs=0.15)


@pytest.mark.parametrize("name", SCHEMES)
@settings(max_examples=10, deadline=None)
@given(h=st.floats(-1, 1), t=st.floats(-3, 3), seed=st.integers(0, 1000))
def test_inverse_step_undoes_a_step(name, h, t, seed):
    z = torch.randn(2, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    there = step(SCHEMES[name], DrivenPendulum(), t, z, h)
    back = inverse_step(SCHEMES[name], DrivenPendulum(), t, there, h)
    assert float((back - z).abs().max()) <= 1e-13 * max(1.0, float(there.abs().max()))


@pytest.mark.parametrize("name", ["leapfrog", "yoshida4"])
def test_symmetric_schemes_are_inverted_by_the_opposite_step(name):
    z = _states(2, 4)
    there = step(SCHEMES[name], DrivenPendulum(), 0.0, z, 0.3)
    back = step(SCHEMES[name], DrivenPendulum(), 0.3, there, -0.3)
    torch.testing.assert_close(back, z, rtol=0, atol=1e-14)


def test_symplectic_euler_is_the_formula_of_the_chapter():
    field, z = DrivenPendulum(), _states(3, 4)
    q, p = z.chunk(2, 1)
    q = q + 0.2 * field.velocity(0.5, p)
    p = p + 0.2 * field.force(0.7, q)
    found = step(SCHEMES["symplectic_euler"], field, 0.5, z, 0.2)
    torch.testing.assert_close(found, torch.cat([q, p], 1), rtol=0, atol=1e-15)


@pytest.mark.parametrize("name", SCHEMES)
def test_shares_of_drifts_and_of_kicks_sum_to_one(name):
    for kind in ("drift", "kick"):
        total = sum(weight for move, weight in SCHEMES[name] if move == kind)
        assert total == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize("name", SCHEMES)
def test_composition_makes_the_steps_one_after_the_other(name):
    z, field = _states(3, 4), DrivenPendulum()
    composed = step(compose((SCHEMES[name], 1.0), (SCHEMES[name], 1.0)), field, 0.2, z, 0.1)
    twice = step(SCHEMES[name], field, 0.2, z, 0.1)
    twice = step(SCHEMES[name], field, 0.3, twice, 0.1)
    torch.testing.assert_close(composed, twice, rtol=0, atol=1e-14)


def test_composition_merges_neighboring_moves_of_one_kind():
    kinds = [kind for kind, _ in SCHEMES["yoshida4"]]
    assert kinds == ["kick", "drift"] * 3 + ["kick"]


def test_step_length_as_a_tensor_gives_the_same_state_and_a_gradient():
    z, h = _states(3, 4), torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    found = step(SCHEMES["leapfrog"], DrivenPendulum(), 0.0, z, h)
    plain = step(SCHEMES["leapfrog"], DrivenPendulum(), 0.0, z, 0.2)
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-15)
    (slope,) = torch.autograd.grad(found.sum(), h)
    assert torch.isfinite(slope)
    assert slope != 0


def test_halves_lie_along_the_first_dimension_of_a_state():
    class Images:
        state_shape = (4, 3, 3)

    q, p, axis = halves(torch.arange(36.0).reshape(1, 4, 3, 3), Images())
    assert axis == -3
    assert torch.equal(q.flatten(), torch.arange(18.0))
    assert torch.equal(p.flatten(), torch.arange(18.0, 36.0))
    q, _, axis = halves(torch.zeros(1, 5, 4, 3, 3), Images())
    assert q.shape == (1, 5, 2, 3, 3)


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 4), (7,)])
def test_states_without_two_halves_are_refused(shape):
    with pytest.raises(stabnet.InvalidInputError, match="two equal halves"):
        step(SCHEMES["leapfrog"], DrivenPendulum(), 0.0, torch.zeros(shape), 0.1)


def test_a_field_is_separable_if_it_has_both_parts():
    assert is_separable(DrivenPendulum())
    assert not is_separable(lambda t, z, u: z)
