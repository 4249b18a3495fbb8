"""The projection: descent for an arbitrary field, and nothing changed where it already descends."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stabnet_projection import ICNN, ProjectedField, project

import stabnet
from stabnet.interfaces import VectorField


def _points(seed: int, count: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Return points at all distances from the origin, from 1e-12 to 1e6."""
    torch.manual_seed(seed)
    scale = torch.logspace(-12, 6, count, dtype=dtype)[:, None]
    return scale * torch.randn(count, 4, dtype=dtype)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-6)])
@pytest.mark.parametrize("alpha", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("kind", ["random", "ascending", "huge", "state"])
def test_projected_field_never_increases_the_potential(dtype, bound, alpha, kind):
    z = _points(0, 20_000, dtype)
    potential = ICNN((4,)).to(dtype)
    value, gradient = potential.value_and_gradient(z)
    field = {
        "random": torch.randn_like(z),
        "ascending": gradient,
        "huge": 1e6 * torch.randn_like(z),
        "state": z,
    }[kind]
    projected = project(field, value, gradient, alpha)
    assert torch.isfinite(projected).all()
    decrease = (gradient * projected).sum(-1)
    slack = bound * (gradient.norm(dim=-1) * projected.norm(dim=-1) + alpha * value)
    assert (decrease + alpha * value <= slack).all()


def test_rate_zero_removes_the_ascending_part_alone():
    z = _points(1, 1000)
    value, gradient = ICNN((4,)).double().value_and_gradient(z)
    field = torch.randn_like(z)
    projected = project(field, value, gradient, 0.0)
    normal = gradient / gradient.norm(dim=-1, keepdim=True)
    expected = field - normal * (normal * field).sum(-1, keepdim=True).relu()
    torch.testing.assert_close(projected, expected, rtol=1e-12, atol=1e-14)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), alpha=st.floats(0, 100))
def test_field_is_unchanged_where_it_already_descends(seed, alpha):
    z = _points(seed, 200)
    value, gradient = ICNN((4,)).double().value_and_gradient(z)
    normal = gradient / gradient.norm(dim=-1, keepdim=True)
    tangent = torch.randn_like(z)
    tangent = tangent - (tangent * normal).sum(-1, keepdim=True) * normal
    bound = alpha * value / gradient.norm(dim=-1)
    field = (
        tangent - normal * (bound * (1 + torch.rand(200).double()) + 1e-9 + 1e-9 * bound)[:, None]
    )
    assert torch.equal(project(field, value, gradient, alpha), field)


def test_projection_is_the_nearest_vector_that_descends():
    torch.manual_seed(0)
    gradient, field = torch.randn(2, 50, 4, dtype=torch.float64)
    value = torch.rand(50, dtype=torch.float64)
    projected = project(field, value, gradient, 2.0)
    other = project(projected + 0.3 * torch.randn_like(field), value, gradient, 2.0)
    assert ((field - projected).norm(dim=1) <= (field - other).norm(dim=1) + 1e-12).all()
    # Projecting again changes nothing.
    torch.testing.assert_close(project(projected, value, gradient, 2.0), projected)


def test_projection_at_the_center_is_the_field_with_finite_gradients():
    z = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    potential = ICNN((4,)).double()
    field = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    projected = project(field, *potential.value_and_gradient(z), 1.0)
    assert torch.equal(projected, field)
    projected.sum().backward()
    assert torch.isfinite(z.grad).all()
    assert torch.isfinite(field.grad).all()


def test_projection_passes_gradcheck_away_from_its_kink():
    torch.manual_seed(1)
    field, gradient = torch.randn(2, 6, 4, dtype=torch.float64)
    value = torch.rand(6, dtype=torch.float64)
    inputs = tuple(t.requires_grad_() for t in (field, value, gradient))
    assert torch.autograd.gradcheck(lambda f, v, g: project(f, v, g, 0.7), inputs)


class _Outward(VectorField):
    def __init__(self, state_shape, feature_shape):
        super().__init__()
        self.state_shape, self.feature_shape = state_shape, feature_shape

    def forward(self, t, z, u=None):
        return 3 * z + u


def test_trajectories_obey_the_exponential_bound():
    """Small steps along the projected field of an unstable one stay below √(V₀/η) e^{−αt/2}."""
    torch.manual_seed(0)
    field = ProjectedField((4,), (4,), _Outward((4,), (4,)), "icnn", alpha=2.0).double()
    z, u = torch.randn(2, 100, 4, dtype=torch.float64)
    v0, h = field.potential(z), 1e-3
    for k in range(1, 1501):
        z = z + h * field(0.0, z, u)
        if k % 300 == 0:
            bound = (v0 / field.potential.eta).sqrt() * torch.exp(torch.tensor(-2.0 * k * h / 2))
            assert (z.norm(dim=1) <= 1.01 * bound).all()


@pytest.mark.parametrize("alpha", [-1.0, float("inf"), float("nan")])
def test_rate_out_of_range_is_refused(alpha):
    with pytest.raises(stabnet.InvalidOptionError, match="alpha"):
        ProjectedField((4,), (4,), _Outward((4,), (4,)), alpha=alpha)


def test_guarantee_names_what_it_needs():
    (guarantee,) = ProjectedField((4,), (4,), _Outward((4,), (4,))).guarantees()
    assert guarantee.status == "by construction"
    assert any("integrator" in assumption for assumption in guarantee.assumptions)
