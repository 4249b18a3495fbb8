"""The field A(z)(z − c): A negative definite for every weight, and what follows from it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stabnet_projection import NegativeDefiniteField

import stabnet
from stabnet.interfaces import is_descending

RATE = 0.05


def _states(count: int, n: int = 3, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Return states at all distances from the origin, from 1e-12 to 1e6."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(count, n, generator=generator, dtype=torch.float64)
    return (torch.logspace(-12, 6, count, dtype=torch.float64)[:, None] * drawn).to(dtype)


@pytest.fixture(scope="module")
def trained() -> NegativeDefiniteField:
    """Return a field after 1,000 steps towards F(z) = 5z + rotation, as unstable as can be."""
    torch.manual_seed(0)
    center = [0.5, -1.0, 2.0]
    field = NegativeDefiniteField((3,), (2,), rate=RATE, hidden=(8,), center=center).double()
    turn = torch.tensor([[5.0, 9, 0], [-9, 5, 3], [0, -3, 5]]).double()
    optimizer = torch.optim.Adam(field.parameters(), 1e-2)
    for _ in range(1000):
        z, u = torch.randn(32, 3).double(), torch.randn(32, 2).double()
        loss = (field(0.0, z, u) - (z - field.potential.center) @ turn.T).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return field


def test_symmetric_part_stays_negative_definite_through_adversarial_training(trained):
    z = _states(100_000)
    u = torch.randn(100_000, 2, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        A = trained.matrix(z, u)
    assert (A - A.mT).abs().max() > 10  # it has learned the rotation
    largest = torch.linalg.eigvalsh((A + A.mT) / 2)[:, -1]
    rounding = 10 * torch.finfo(torch.float64).eps * torch.linalg.matrix_norm(A)
    assert (largest <= -RATE + rounding).all()


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-6)])
def test_potential_decays_at_the_rate(trained, dtype, bound):
    z, field = _states(100_000, dtype=dtype), trained.to(dtype)
    u = torch.randn(100_000, 2, generator=torch.Generator().manual_seed(1)).to(dtype)
    with torch.no_grad():
        velocity, value, rate = field.descent(0.0, z, u)
        _, gradient = field.potential.value_and_gradient(z)
    field.double()
    assert torch.isfinite(velocity).all()
    assert (rate <= -field.alpha * value).all()
    along = (gradient * velocity).sum(-1)
    scale = gradient.norm(dim=-1) * velocity.norm(dim=-1) + field.alpha * value
    assert (along + field.alpha * value <= bound * scale).all()
    assert ((along - rate).abs() <= bound * scale).all()


def test_center_is_an_equilibrium_to_the_last_bit(trained):
    u = torch.randn(7, 2).double()
    c = trained.potential.center.expand(7, 3)
    velocity, value, rate = trained.descent(0.0, c, u)
    assert not velocity.any()
    assert not value.any()
    assert not rate.any()
    assert torch.isfinite(trained(0.0, c + 1e-12, u)).all()


def test_features_as_center_give_each_sample_its_equilibrium():
    torch.manual_seed(0)
    field = NegativeDefiniteField((2, 3), (2, 3), center="features").double()
    u = torch.randn(4, 2, 3).double()
    assert not field(0.0, u, u).any()
    z = torch.randn(1, 5, 2, 3).double()
    many = field(0.0, z, u)
    assert many.shape == (4, 5, 2, 3)
    torch.testing.assert_close(field(0.0, z, u[1]), many[1:2])


def test_trajectories_obey_the_exponential_bound(trained):
    z = 3 * torch.randn(1000, 3, generator=torch.Generator().manual_seed(2)).double()
    u = torch.randn(1000, 2, generator=torch.Generator().manual_seed(3)).double()
    times = [0.0, 0.25, 0.5, 1.0]
    dopri8 = stabnet.build("dopri8", kind="integrator", rtol=1e-8, atol=1e-10)
    with torch.no_grad():
        states = dopri8(trained, z, times, u).states
    distances = (states - trained.potential.center).norm(dim=-1)
    bound = distances[0] * torch.exp(-RATE * torch.tensor(times).double())[:, None]
    assert (distances <= bound * (1 + 1e-6)).all()


def test_matrix_times_offset_is_the_field(trained):
    z, u = torch.randn(2, 6, 3).double(), torch.randn(2, 2).double()
    product = trained.matrix(z, u) @ (z - trained.potential.center)[..., None]
    torch.testing.assert_close(trained(0.0, z, u), product[..., 0])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_every_matrix_with_such_a_symmetric_part_has_factors(seed):
    torch.manual_seed(seed)
    field = NegativeDefiniteField((3,), rate=RATE, hidden=(4,)).double()
    K, M = torch.randn(2, 3, 3).double()
    A = K - K.T - M @ M.T - RATE * torch.eye(3)
    values, vectors = torch.linalg.eigh(-RATE * torch.eye(3) - (A + A.T) / 2)
    P = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    with torch.no_grad():
        field.rest[-1].weight.zero_()
        field.rest[-1].bias.copy_(torch.stack([P, A / 2]).flatten())
        found = field.matrix(torch.randn(5, 3).double())
    torch.testing.assert_close(found, A.expand(5, 3, 3))


def test_two_trajectories_may_move_apart_as_the_guarantees_say(trained):
    """What is not guaranteed does happen: the Jacobian's symmetric part is positive somewhere."""
    z = 3 * torch.randn(200, 3, generator=torch.Generator().manual_seed(4)).double()
    u = torch.zeros(2).double()
    J = torch.vmap(torch.func.jacrev(lambda z: trained(0.0, z, u)))(z)
    assert torch.linalg.eigvalsh((J + J.mT) / 2).max() > 0.1
    decay, apart = trained.guarantees()
    assert decay.status == "by construction"
    assert "perturbed inputs" in decay.claim
    assert apart.claim.startswith("NOT guaranteed")
    assert apart.status == "conditional"


@pytest.mark.parametrize("step", [{}, {"scheme": "shortened"}])
def test_stable_step_never_raises_its_potential(trained, step):
    assert is_descending(trained)
    z, u = 3 * torch.randn(200, 3).double(), torch.randn(200, 2).double()
    integrator = stabnet.build("stable_step", kind="integrator", step_size=0.5, **step)
    with torch.no_grad():
        states = integrator(trained, z, [0.0, 0.5, 1.0, 1.5], u).states
        values = trained.potential(states)
    assert (values.diff(dim=0) <= 1e-12 * values[:-1]).all()
    with torch.no_grad():
        euler = trained.potential(z + 0.5 * trained(0.0, z, u))
    assert (euler > values[0]).any()


def test_gradients_are_right():
    torch.manual_seed(0)
    field = NegativeDefiniteField((2,), (2,), hidden=(4,), center="features").double()
    z, u = torch.randn(2, 3, 2).double().unbind(0)
    inputs = (z.requires_grad_(), u.requires_grad_())
    for k in range(3):
        assert torch.autograd.gradcheck(
            lambda z, u, k=k: field.descent(0.0, z, u)[k], inputs, check_batched_grad=True
        )
    assert torch.autograd.gradgradcheck(lambda z, u: field(0.0, z, u), inputs)


def test_field_composes_with_func_vmap_compile_and_export(trained):
    z, u = torch.randn(4, 3).double(), torch.randn(4, 2).double()
    expected = trained(0.0, z, u)
    one_by_one = torch.vmap(lambda z, u: trained(0.0, z, u))(z, u)
    torch.testing.assert_close(one_by_one, expected)
    by_name = dict(trained.named_parameters())
    torch.testing.assert_close(torch.func.functional_call(trained, by_name, (0.0, z, u)), expected)
    compiled = torch.compile(trained, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(0.0, z, u), expected)
    exported = torch.export.export(trained, (0.0, z, u)).module()
    torch.testing.assert_close(exported(0.0, z, u), expected)


def test_autocast_does_not_reach_the_products(trained):
    z, u = torch.randn(4, 3), torch.randn(4, 2)
    field = NegativeDefiniteField((3,), (2,), hidden=(16,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = field(0.0, z, u)
    torch.testing.assert_close(found, field(0.0, z, u))


def test_matrix_is_of_order_one_at_first_however_large_the_state():
    torch.manual_seed(0)
    for n in (2, 64):
        A = NegativeDefiniteField((n,)).matrix(torch.randn(1, n))
        assert 0.05 < torch.linalg.matrix_norm(A, 2).item() < 5


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"rate": 0.0}, "rate"),
        ({"rate": float("nan")}, "rate"),
        ({"hidden": ()}, "hidden"),
        ({"hidden": (0,)}, "hidden"),
        ({"center": "middle"}, "center"),
        ({"center": "features"}, "center"),
        ({"center": [1.0]}, "center"),
    ],
)
def test_options_out_of_range_are_refused(options, match):
    with pytest.raises(stabnet.InvalidOptionError, match=match):
        NegativeDefiniteField((3,), (2,), **options)


def test_inputs_that_do_not_fit_are_refused(trained):
    z, u = torch.randn(4, 3).double(), torch.randn(4, 2).double()
    with pytest.raises(stabnet.InvalidInputError, match="states"):
        trained(0.0, z[:, :2], u)
    with pytest.raises(stabnet.InvalidInputError, match="Pass u"):
        trained(0.0, z)
    with pytest.raises(stabnet.InvalidInputError, match="features"):
        trained(0.0, z, z)
