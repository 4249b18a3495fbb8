"""The quadratic potential: positive definite by construction, with the best constants."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from potential_checks import (
    check_center,
    check_export,
    check_transforms,
    search_steepness,
    train,
)
from stabnet_projection import Quadratic

import stabnet
from stabnet.interfaces import BoundsGrowth, BoundsSmoothness, Context


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def _potential(seed: int = 0, scale: float = 1.0, **options) -> Quadratic:
    potential = Quadratic((4,), **options).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        potential.factor.add_(scale * torch.randn(4, 4, generator=generator))
    return potential


def test_is_the_quadratic_form_of_its_matrix():
    potential = _potential(center=[1.0, 2.0, 3.0, 4.0])
    z = torch.randn(20, 4, dtype=torch.float64)
    offset, P = z - torch.tensor([1.0, 2.0, 3.0, 4.0]).double(), potential.P
    value, gradient = potential.value_and_gradient(z)
    torch.testing.assert_close(value, torch.einsum("bi,ij,bj->b", offset, P, offset))
    torch.testing.assert_close(gradient, 2 * offset @ P)
    assert torch.equal(P, P.mT)


def test_starts_as_a_sphere():
    potential = Quadratic((2, 3), eta=0.5)
    torch.testing.assert_close(potential.P, 1.5 * torch.eye(6))
    assert potential(torch.ones(7, 2, 3)).tolist() == [9.0] * 7


@pytest.mark.parametrize("center", [None, [0.3, -1.0, 2.0, 7.0]])
def test_center_stays_and_the_matrix_stays_definite_through_training(center):
    potential = Quadratic((4,), center=center).double()
    before = potential.P.detach().clone()
    train(potential, 1000)
    assert (potential.P - before).abs().max() > 0.1
    check_center(potential)
    assert np.linalg.eigvalsh(potential.P.detach().numpy())[0] >= 0.1 * (1 - 1e-12)


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0, 1e6])
def test_bounds_are_the_extreme_curvatures_and_sound(scale):
    potential = _potential(1, scale)
    with torch.no_grad():
        potential.factor.mul_(scale)
    exact = np.linalg.svd(potential.factor.detach().numpy())[1] ** 2
    assert isinstance(potential, BoundsGrowth)
    assert isinstance(potential, BoundsSmoothness)
    least, largest = float(potential.growth_bound()), float(potential.smoothness_bound())
    assert potential.eta <= least <= potential.eta + exact[-1] * (1 + 1e-15)
    assert 2 * (potential.eta + exact[0]) <= largest <= 2 * (potential.eta + exact[0]) * (1 + 1e-7)
    assert least >= potential.eta + exact[-1] - 1e-7 * exact[0]
    z = torch.randn(2000, 4, dtype=torch.float64)
    assert (potential(z) >= least * z.square().sum(1) * (1 - 1e-14)).all()


def test_smoothness_bound_is_approached_and_never_passed():
    potential = _potential(2)
    found, bound = search_steepness(potential), float(potential.smoothness_bound())
    assert 0.99 * bound <= found <= bound * (1 + 1e-9)  # a ratio of differences, to rounding


@pytest.mark.parametrize("distance", [1e-150, 1e-12, 1.0, 1e6])
def test_is_accurate_at_any_distance(distance):
    potential = _potential(3)
    z = distance * torch.randn(50, 4, dtype=torch.float64)
    value, gradient = potential.value_and_gradient(z)
    P = potential.P.detach().numpy().astype(np.longdouble)
    wide = z.numpy().astype(np.longdouble)
    expected = np.einsum("bi,ij,bj->b", wide, P, wide)
    assert (abs(value.detach().numpy() - expected) <= 1e-14 * expected).all()
    error = gradient.detach().numpy() - 2 * wide @ P
    assert (abs(error).max(1) <= 1e-14 * abs(2 * wide @ P).max(1)).all()


def test_every_stable_linear_system_descends_one():
    generator = torch.Generator().manual_seed(5)
    A = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    A = A - (1 + torch.linalg.eigvals(A).real.max()) * torch.eye(4)
    P = scipy.linalg.solve_continuous_lyapunov(A.T.numpy(), -np.eye(4))
    eta = 0.5 * float(np.linalg.eigvalsh(P)[0])
    potential = Quadratic((4,), eta=eta).double()
    with torch.no_grad():
        potential.factor.copy_(torch.from_numpy(scipy.linalg.cholesky(P - eta * np.eye(4))))
    z = torch.randn(100, 4, generator=generator, dtype=torch.float64)
    rate = potential.value_and_rate(z, z @ A.mT)[1]
    torch.testing.assert_close(rate, -z.square().sum(1))


def test_works_under_every_transform_and_exports():
    check_transforms(_potential(4))
    check_export(_potential(4))


def test_passes_gradcheck_twice():
    potential = _potential(6)
    z, c = torch.randn(2, 3, 4, dtype=torch.float64)
    inputs = (z.requires_grad_(), c.requires_grad_(), potential.factor)

    def evaluate(z, c, _):
        return potential.value_and_gradient(z, Context(center=c))

    assert torch.autograd.gradcheck(evaluate, inputs)
    assert torch.autograd.gradgradcheck(evaluate, inputs)


def test_autocast_does_not_touch_it():
    potential = Quadratic((4,))
    z = torch.randn(9, 4)
    expected = potential.value_and_gradient(z)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(potential.value_and_gradient(z), expected, rtol=0, atol=0)
        assert potential(z.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("options", [{"eta": 0.0}, {"center": [1.0]}, {"center": "origin"}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(stabnet.InvalidOptionError, match=r"eta|center"):
        Quadratic((4,), **options)
