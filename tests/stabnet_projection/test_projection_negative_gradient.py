"""The negative gradient: descent of any potential, at a rate for convex ones that grow."""

from __future__ import annotations

import pytest
import torch
from stabnet_projection import ICNN, NegativeGradientField, Quadratic

import stabnet
from stabnet.interfaces import BoundsGrowth, Context, Potential, is_descending


def _states(count: int, n: int = 3, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Return states at all distances from the origin, from 1e-12 to 1e6."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(count, n, generator=generator, dtype=torch.float64)
    return (torch.logspace(-12, 6, count, dtype=torch.float64)[:, None] * drawn).to(dtype)


class _Wells(Potential):
    """A potential with two minima, that lets its wells depend on the features."""

    def __init__(self) -> None:
        super().__init__()
        self.state_shape = (3,)

    def forward(self, z: torch.Tensor, context: Context | None = None) -> torch.Tensor:
        square = z.square().sum(-1)
        bump = (3 * z[..., 0]).cos()
        if context is not None and context.features is not None:
            height = context.features.sum(-1).tanh()
            bump = bump * (height[:, None] if z.ndim == 3 and height.ndim == 1 else height)
        return square * (2 + bump)


class _Tight(Potential):
    """V(z) = max(|z|, z²): convex, at least z², with ‖∇V‖² = V just inside |z| = 1."""

    convex = True

    def __init__(self) -> None:
        super().__init__()
        self.state_shape = (1,)

    def forward(self, z: torch.Tensor, context: Context | None = None) -> torch.Tensor:
        return torch.maximum(z.abs(), z.square()).sum(-1)

    def growth_bound(self) -> torch.Tensor:
        return torch.ones((), dtype=torch.float64)


def _train(field: NegativeGradientField) -> NegativeGradientField:
    """Train a field towards an unstable one for 1,000 steps."""
    optimizer = torch.optim.Adam(field.parameters(), 1e-2)
    for _ in range(1000):
        z = torch.randn(16, 3).double()
        loss = (field(0.0, z) - 5 * z).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return field


@pytest.fixture(scope="module", params=["icnn", "quadratic"])
def trained(request) -> NegativeGradientField:
    torch.manual_seed(0)
    potential = {"name": request.param, "center": [0.5, -1.0, 2.0]}
    return _train(NegativeGradientField((3,), None, potential, gain=0.7).double())


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-6)])
def test_potential_decays_at_the_rate(trained, dtype, bound):
    z, field = _states(100_000, dtype=dtype), trained.to(dtype)
    with torch.no_grad():
        velocity, value, rate = field.descent(0.0, z)
        _, gradient = field.potential.value_and_gradient(z)
    alpha = field.alpha
    field.double()
    assert alpha > 0
    assert torch.isfinite(velocity).all()
    along = (gradient * velocity).sum(-1)
    scale = gradient.norm(dim=-1) * velocity.norm(dim=-1) + alpha * value
    assert (along + alpha * value <= bound * scale).all()
    torch.testing.assert_close(rate, along)


def test_field_is_the_negative_gradient(trained):
    z = torch.randn(20, 3).double().requires_grad_()
    (gradient,) = torch.autograd.grad(trained.potential(z).sum(), z)
    torch.testing.assert_close(trained(0.0, z), -0.7 * gradient)


def test_center_is_an_equilibrium_after_training(trained):
    c = trained.potential.center.expand(5, 3)
    velocity, value, _ = trained.descent(0.0, c)
    assert velocity.abs().max() <= 1e-12
    assert value.abs().max() <= 1e-12


def test_trajectories_obey_the_exponential_bound_and_never_move_apart(trained):
    z = 3 * torch.randn(1000, 3, generator=torch.Generator().manual_seed(2)).double()
    times = [0.0, 0.5, 1.0, 4.0]
    dopri8 = stabnet.build("dopri8", kind="integrator", rtol=1e-7, atol=1e-10)
    with torch.no_grad():
        states = dopri8(trained, z, times).states
        value, eta = trained.potential(z), trained.potential.growth_bound()
    distances = (states - trained.potential.center).norm(dim=-1)
    decay = torch.exp(-trained.alpha * torch.tensor(times).double() / 2)[:, None]
    assert (distances <= (value / eta).sqrt() * decay * (1 + 1e-5)).all()
    apart = (states[:, :500] - states[:, 500:]).norm(dim=-1)
    assert (apart[1:] <= apart[:-1] * (1 + 1e-5) + 1e-8).all()


def test_rate_is_the_best_that_growth_and_convexity_give():
    field = NegativeGradientField((1,), None, _Tight(), gain=2.0).double()
    assert isinstance(field.potential, BoundsGrowth)
    assert field.alpha == 2.0
    _, value, rate = field.descent(0.0, torch.tensor([[1 - 1e-9]], dtype=torch.float64))
    torch.testing.assert_close(rate, -field.alpha * value, rtol=1e-6, atol=0.0)


def test_rate_follows_the_weights_of_the_potential():
    field = NegativeGradientField((2,), None, "quadratic", gain=0.5).double()
    before = field.alpha
    with torch.no_grad():
        field.potential.factor.mul_(3)
    smallest = float(torch.linalg.eigvalsh(field.potential.P.detach())[0])
    assert before < field.alpha <= 0.5 * smallest * (1 + 1e-12)


def test_other_potentials_never_rise_and_claim_no_rate():
    field = NegativeGradientField((3,), (2,), _Wells(), gain=0.5).double()
    z, u = 2 * torch.randn(500, 3).double(), torch.randn(500, 2).double()
    _, value, rate = field.descent(0.0, z, u)
    assert field.alpha == 0
    assert (rate <= 0).all()
    (guarantee,) = field.guarantees()
    assert guarantee.status == "conditional"
    step = stabnet.build("stable_step", kind="integrator", step_size=0.5)
    with torch.no_grad():
        states = step(field, z, [0.0, 0.5, 1.0], u).states
        reached = field.potential(states[-1], field.context(u))
        euler = field.potential(z + 0.5 * field(0.0, z, u), field.context(u))
    assert (reached <= value * (1 + 1e-12)).all()
    assert (euler > value).any()


def test_states_shared_by_the_samples_get_the_field_of_each():
    """A potential that depends on the features has a gradient for each of them."""
    field = NegativeGradientField((3,), (2,), _Wells()).double()
    z, u = torch.randn(1, 5, 3).double(), torch.randn(4, 2).double()
    found = field(0.0, z, u)
    for i in range(4):
        expected = field(0.0, z[0], u[i].expand(5, 2))
        torch.testing.assert_close(found[i], expected)
        torch.testing.assert_close(field(0.0, z, u[i])[0], expected)


def test_features_as_center_give_each_sample_its_equilibrium():
    field = NegativeGradientField((2, 3), (2, 3), "icnn", center="features").double()
    u = torch.randn(4, 2, 3).double()
    assert not field(0.0, u, u).any()
    assert is_descending(field)


def test_gradients_are_right():
    torch.manual_seed(0)
    field = NegativeGradientField((2,), (2,), ICNN((2,), (4,)), center="features").double()
    z, u = torch.randn(2, 3, 2).double().unbind(0)
    inputs = (z.requires_grad_(), u.requires_grad_())
    for k in range(3):
        assert torch.autograd.gradcheck(lambda z, u, k=k: field.descent(0.0, z, u)[k], inputs)


def test_field_composes_with_func_vmap_compile_and_export(trained):
    z = torch.randn(4, 3).double()
    expected = trained(0.0, z)
    torch.testing.assert_close(torch.vmap(lambda z: trained(0.0, z))(z), expected)
    by_name = dict(trained.named_parameters())
    torch.testing.assert_close(torch.func.functional_call(trained, by_name, (0.0, z)), expected)
    compiled = torch.compile(trained, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(0.0, z), expected)
    exported = torch.export.export(trained, (0.0, z)).module()
    torch.testing.assert_close(exported(0.0, z), expected)


def test_guarantees_say_what_a_convex_potential_gives():
    decay, together = NegativeGradientField((3,), None, Quadratic((3,))).guarantees()
    assert decay.status == together.status == "by construction"
    assert "perturbed inputs" in decay.claim
    assert "perturbed inputs" in together.claim


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"gain": 0.0}, "gain"),
        ({"gain": float("inf")}, "gain"),
        ({"center": "middle"}, "center"),
        ({"center": "features"}, "center"),
    ],
)
def test_options_out_of_range_are_refused(options, match):
    with pytest.raises(stabnet.InvalidOptionError, match=match):
        NegativeGradientField((3,), (2,), **options)


def test_inputs_that_do_not_fit_are_refused():
    field = NegativeGradientField((3,), (2,))
    with pytest.raises(stabnet.InvalidInputError, match="states"):
        field(0.0, torch.zeros(4, 2), torch.zeros(4, 2))
    with pytest.raises(stabnet.InvalidInputError, match="Pass u"):
        field(0.0, torch.zeros(4, 3))
