"""The linear field: its matrix is Hurwitz for every weight, and every Hurwitz matrix is one."""

from __future__ import annotations

import math

import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stabnet_projection import HurwitzField
from stabnet_projection.fields.lyapunov import solve_lyapunov

import stabnet
from stabnet.interfaces import is_descending

RATE = 0.05


def _abscissa(matrix: torch.Tensor) -> float:
    return float(torch.linalg.eigvals(matrix.detach().double()).real.max())


def _rounding(field: HurwitzField) -> float:
    """Bound how far rounding moves the abscissa of the matrix, and of its eigenvalues' solver.

    In the norm of P the field's matrix is at most −ρ, and a perturbation E adds at most
    √κ(P) ‖E‖. The product (J − R)P rounds by a few n units of ‖J − R‖‖P‖.
    """
    with torch.no_grad():
        P = field.potential.P.double()
        S, C = field.turning.double(), field.damping.double()
        mixed = torch.linalg.matrix_norm(S) * 2 + torch.linalg.matrix_norm(C) ** 2
        size = mixed * torch.linalg.matrix_norm(P) + field.rate
        eps = torch.finfo(field.turning.dtype).eps
        condition = torch.linalg.cond(P) ** 0.5
        return float(4 * len(P) * eps * condition * size)


def _hurwitz(n: int, gap: float) -> torch.Tensor:
    """Return a random matrix whose abscissa is ``−RATE − gap``."""
    drawn = torch.randn(n, n, dtype=torch.float64)
    return drawn - (_abscissa(drawn) + RATE + gap) * torch.eye(n, dtype=torch.float64)


@pytest.fixture(scope="module")
def trained() -> HurwitzField:
    """Return a field after 1,000 steps towards an unstable matrix."""
    torch.manual_seed(0)
    field = HurwitzField((3,), rate=RATE, center=[0.5, -1.0, 2.0]).double()
    target = torch.tensor([[1.0, 9, 0], [-9, 2, 3], [0, 1, 3]]).double()
    optimizer = torch.optim.Adam(field.parameters(), 1e-2)
    for _ in range(1000):
        loss = (field.matrix - target).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return field


def test_eigenvalues_stay_in_the_left_half_plane_through_adversarial_training(trained):
    rounding = _rounding(trained)
    assert rounding < 1e-9
    assert -RATE - 0.05 < _abscissa(trained.matrix) <= -RATE + rounding  # pushed to the boundary


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.sampled_from([1, 2, 5, 12]),
    scale=st.floats(-2, 3),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_eigenvalues_are_in_the_left_half_plane_for_all_weights(seed, n, scale, dtype):
    torch.manual_seed(seed)
    field = HurwitzField((n,), rate=RATE).to(dtype)
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.copy_(10**scale * torch.randn_like(parameter))
    assert _abscissa(field.matrix) <= -RATE + _rounding(field)
    # The same weights without the rounding of float32 in the product.
    field.double()
    assert _abscissa(field.matrix) <= -RATE + _rounding(field)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.sampled_from([1, 2, 3, 8, 16]),
    gap=st.sampled_from([1e-9, 1e-6, 1e-2, 1.0, 100.0]),
    size=st.sampled_from([1e-3, 1.0, 1e4]),
)
def test_every_hurwitz_matrix_is_fitted_to_rounding(seed, n, gap, size):
    torch.manual_seed(seed)
    A = size * _hurwitz(n, gap)
    field = HurwitzField((n,), rate=RATE * size).double()
    field.fit(A)
    assert float((field.matrix - A).detach().norm() / A.norm()) <= 1e-9
    assert float(torch.linalg.eigvalsh(field.potential.P.detach())[0]) >= 1


def test_matrices_without_a_basis_of_eigenvectors_are_fitted():
    for n, off in ((2, 1.0), (2, 100.0), (4, 1.0), (6, 0.5)):
        A = torch.diag(torch.full((n,), -1.0)) + torch.diag(torch.full((n - 1,), off), 1)
        field = HurwitzField((n,)).double()
        field.fit(A.double())
        torch.testing.assert_close(field.matrix, A.double(), rtol=1e-8, atol=1e-8)


def test_fit_in_single_precision_keeps_the_eigenvalues():
    A = [[0.0, 1.0], [-4.0, -0.4]]
    field = stabnet.build("hurwitz", kind="vector_field", state_shape=(2,), matrix=A)
    torch.testing.assert_close(field.matrix, torch.tensor(A), rtol=1e-5, atol=1e-5)
    assert _abscissa(field.matrix) == pytest.approx(-0.2, abs=1e-5)


@pytest.mark.parametrize(
    ("A", "abscissa"),
    [
        ([[0.3, 0.0], [0.0, -1.0]], "0.3"),
        ([[0.5, 1.0], [-1.0, 0.5]], "0.5"),
        ([[-0.01, 0.0], [0.0, -1.0]], "-0.01"),
    ],
)
def test_matrix_that_is_not_hurwitz_is_refused_with_its_abscissa(A, abscissa):
    with pytest.raises(stabnet.InvalidOptionError, match=f"spectral abscissa {abscissa},"):
        HurwitzField((2,), rate=RATE, matrix=A)
    with pytest.raises(stabnet.InvalidOptionError, match=f"spectral abscissa {abscissa},"):
        HurwitzField((2,), rate=RATE).fit(torch.tensor(A, dtype=torch.float64))


def test_matrix_with_no_factors_in_double_precision_is_refused():
    A = torch.diag(torch.full((8,), -0.1)) + torch.diag(torch.full((7,), 100.0), 1)
    field = HurwitzField((8,))
    before = field.matrix.detach().clone()
    with pytest.raises(stabnet.InvalidOptionError, match="too close to unstable"):
        field.fit(A)
    assert torch.equal(field.matrix, before)


@pytest.mark.parametrize(
    "A", [[[1.0]], "no", [[1.0, float("nan")], [0.0, 1.0]], [[1.0, 2.0], [3.0]]]
)
def test_what_is_no_matrix_is_refused(A):
    with pytest.raises(stabnet.InvalidOptionError, match="2 rows of 2"):
        HurwitzField((2,), matrix=A)


@pytest.mark.parametrize("n", [1, 4, 12])
def test_lyapunov_equation_is_solved_as_scipy_does(n):
    torch.manual_seed(n)
    B, root = _hurwitz(n, 0.3), torch.randn(n, n, dtype=torch.float64)
    Q = root @ root.T + torch.eye(n)
    expected = scipy.linalg.solve_continuous_lyapunov(B.T.numpy(), -Q.numpy())
    torch.testing.assert_close(
        solve_lyapunov(B, Q), torch.from_numpy(expected), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-6)])
def test_potential_decays_at_the_rate(trained, dtype, bound):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(100_000, 3, generator=generator).double()
    z = (torch.logspace(-12, 6, 100_000, dtype=torch.float64)[:, None] * z).to(dtype)
    field = trained.to(dtype)
    with torch.no_grad():
        velocity, value, rate = field.descent(0.0, z)
        _, gradient = field.potential.value_and_gradient(z)
        size = 1 + torch.linalg.matrix_norm(field.matrix)
    field.double()
    assert torch.isfinite(velocity).all()
    assert (rate <= -field.alpha * value).all()
    along = (gradient * velocity).sum(-1)
    # The velocity is a difference of terms as large as this.
    scale = gradient.norm(dim=-1) * (velocity.norm(dim=-1) + size * gradient.norm(dim=-1))
    assert (along + field.alpha * value <= bound * scale).all()
    assert ((along - rate).abs() <= bound * scale).all()


def test_field_is_its_matrix_times_the_offset(trained):
    z = torch.randn(2, 5, 3).double()
    product = (z - trained.potential.center) @ trained.matrix.T
    torch.testing.assert_close(trained(0.0, z), product)


def test_center_is_an_equilibrium_to_the_last_bit(trained):
    velocity, value, rate = trained.descent(0.0, trained.potential.center[None])
    assert not velocity.any()
    assert not value.any()
    assert not rate.any()


def test_features_as_center_give_each_sample_its_equilibrium():
    field = HurwitzField((2, 2), (2, 2), center="features").double()
    u = torch.randn(4, 2, 2).double()
    assert not field(0.0, u, u).any()
    assert field(0.0, torch.randn(1, 5, 2, 2).double(), u).shape == (4, 5, 2, 2)


def test_exact_trajectories_obey_the_exponential_bounds(trained):
    """The flow of a linear field is a matrix exponential: no integrator is involved."""
    c, P = trained.potential.center, trained.potential.P.detach()
    z = c + 3 * torch.randn(1000, 3, generator=torch.Generator().manual_seed(2)).double()
    eta = trained.potential.growth_bound()
    for t in (0.1, 1.0, 10.0):
        flow = torch.linalg.matrix_exp(t * trained.matrix.detach())
        state = c + (z - c) @ flow.T
        decayed = (trained.potential(z) / eta).sqrt() * math.exp(-RATE * t)
        assert ((state - c).norm(dim=-1) <= decayed * (1 + 1e-9)).all()
        apart, before = state[:500] - state[500:], z[:500] - z[500:]
        lengths = [torch.einsum("bi,ij,bj->b", d, P, d).sqrt() for d in (apart, before)]
        assert (lengths[0] <= math.exp(-RATE * t) * lengths[1] * (1 + 1e-9)).all()


@pytest.mark.parametrize("step", [{}, {"scheme": "shortened"}])
def test_stable_step_never_raises_its_potential(trained, step):
    assert is_descending(trained)
    z = 3 * torch.randn(200, 3, generator=torch.Generator().manual_seed(5)).double()
    integrator = stabnet.build("stable_step", kind="integrator", step_size=0.5, **step)
    with torch.no_grad():
        values = trained.potential(integrator(trained, z, [0.0, 0.5, 1.0, 1.5]).states)
        euler = trained.potential(z + 0.5 * trained(0.0, z))
    assert (values.diff(dim=0) <= 1e-12 * values[:-1]).all()
    assert (euler > values[0]).any()


def test_gradients_are_right():
    torch.manual_seed(0)
    field = HurwitzField((2,), (2,), center="features").double()
    z, u = torch.randn(2, 3, 2).double().unbind(0)
    inputs = (z.requires_grad_(), u.requires_grad_())
    for k in range(3):
        assert torch.autograd.gradcheck(lambda z, u, k=k: field.descent(0.0, z, u)[k], inputs)
    names = list(dict(field.named_parameters()))

    def of_weights(*weights: torch.Tensor) -> torch.Tensor:
        replaced = dict(zip(names, weights, strict=True))
        return torch.func.functional_call(field, replaced, (0.0, z.detach(), u.detach()))

    assert torch.autograd.gradcheck(of_weights, tuple(field.parameters()))


def test_field_composes_with_func_vmap_compile_and_export(trained):
    z = torch.randn(4, 3).double()
    expected = trained(0.0, z)
    torch.testing.assert_close(torch.vmap(lambda z: trained(0.0, z))(z), expected)
    jacobian = torch.func.jacrev(lambda z: trained(0.0, z))(z[0])
    torch.testing.assert_close(jacobian, trained.matrix)
    compiled = torch.compile(trained, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(0.0, z), expected)
    exported = torch.export.export(trained, (0.0, z)).module()
    torch.testing.assert_close(exported(0.0, z), expected)


def test_autocast_does_not_reach_the_products():
    field, z = HurwitzField((3,)), torch.randn(4, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = field(0.0, z)
    torch.testing.assert_close(found, field(0.0, z))


def test_guarantees_are_by_construction_and_speak_of_the_state():
    for guarantee in HurwitzField((3,)).guarantees():
        assert guarantee.status == "by construction"
        assert "perturbed inputs" in guarantee.claim


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"rate": 0.0}, "rate"),
        ({"rate": -1.0}, "rate"),
        ({"center": "middle"}, "center"),
        ({"center": "features"}, "center"),
        ({"feature_shape": (2,)}, "center='features'"),
    ],
)
def test_options_out_of_range_are_refused(options, match):
    with pytest.raises(stabnet.InvalidOptionError, match=match):
        HurwitzField((3,), **options)


def test_inputs_that_do_not_fit_are_refused():
    with pytest.raises(stabnet.InvalidInputError, match="states"):
        HurwitzField((3,))(0.0, torch.zeros(4, 2))
    with pytest.raises(stabnet.InvalidInputError, match="Pass u"):
        HurwitzField((3,), (3,), center="features")(0.0, torch.zeros(4, 3))
