"""Steps in discrete time: the potential never rises, at the promised rate, for any potential."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from stabnet_projection import ICNN, ProjectedField, StableStep

import stabnet
from stabnet.interfaces import (
    BoundsSmoothness,
    Context,
    Descent,
    FixedStep,
    Potential,
    is_descending,
)
from stabnet.interfaces import VectorField as Field
from stabnet.training import step_size_sensitivity

STEPS = (0.01, 0.1, 0.5)
RATES = (0.0, 0.1, 1.0, 10.0)


class _Swirl(Field):
    """A field that turns, climbs here and descends there, with the origin as an equilibrium."""

    state_shape, feature_shape = (2,), ()

    def forward(self, t, z, u=None):
        x, y = z.unbind(-1)
        return torch.stack([3 * y + x.square(), torch.sin(3 * y) - 2 * x], -1)


class _Given(Potential):
    """A function of the state, not convex, as a potential."""

    state_shape = (2,)

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, z, context=None):
        return self.function(z)


def wavy(z):
    """Positive away from the origin, and rising and falling along rays."""
    return z.square().sum(-1) + 2 * torch.sin(3 * z[..., 0]).square()


def well(z):
    """Two wells, of which the origin's is the deeper."""
    x, y = z.unbind(-1)
    return x.square() * (x - 2).square() + 0.05 * x.square() + y.square()


def ring(z):
    """A valley all around the origin, at radius 2."""
    square = z.square().sum(-1)
    return square * ((square - 4).square() / 4 + 0.02)


NOT_CONVEX = {"wavy": wavy, "well": well, "ring": ring}
CONVEX = {"icnn": {"hidden": (6, 5)}, "tangent": {"hidden": (6,), "tangent": True}}


def _potential(name: str) -> Potential:
    torch.manual_seed(0)
    return _Given(NOT_CONVEX[name]) if name in NOT_CONVEX else ICNN((2,), **CONVEX[name])


def _problem(name: str, alpha: float, count: int, dtype=torch.float64):
    """Return a field and states, from next to the center to far away."""
    projected = ProjectedField((2,), (), _Swirl(), _potential(name), alpha=alpha).to(dtype)
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    z = z * 10 ** (4 * torch.rand(count, 1, generator=generator, dtype=torch.float64) - 3)
    return projected, z.to(dtype)


def _slack(potential: Potential, dtype: torch.dtype) -> float:
    """Return what rounding may add: nothing where the inequality itself is evaluated."""
    evaluated = not potential.convex
    return 0.0 if evaluated else 16 * torch.finfo(dtype).eps


@pytest.mark.parametrize("name", [*CONVEX, *NOT_CONVEX])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("scheme", ["scaled", "shortened"])
@torch.no_grad()
def test_no_step_raises_the_potential_at_100_000_points_where_plain_euler_does(name, dtype, scheme):
    count = 10**5 // (len(STEPS) * len(RATES)) + 1
    rose = 0
    for alpha in RATES:
        projected, z = _problem(name, alpha, count, dtype)
        potential = projected.potential
        velocity, value, _ = projected.descent(0.0, z)
        for h in STEPS:
            rose += int((potential(z + h * velocity) > value).sum())
            stepped = StableStep(h, scheme)(projected, z, (0.0, h)).states[-1]
            reached = potential(stepped)
            bound = value * (1 + _slack(potential, dtype))
            assert (reached <= bound).all(), (alpha, h, float((reached / value).max()) - 1)
            if scheme == "scaled":
                decay = math.exp(-alpha * h) * (1 + _slack(potential, dtype))
                rounded = 1 + 2 * torch.finfo(dtype).eps  # of the decay itself
                assert (reached <= decay * value * rounded).all(), (alpha, h)
    assert rose > count / 10


@pytest.mark.parametrize("name", [*CONVEX, *NOT_CONVEX])
@pytest.mark.parametrize("theta", [0.1, 0.9])
@torch.no_grad()
def test_a_shortened_step_descends_as_far_as_it_promises(name, theta):
    for alpha in (0.1, 10.0):
        projected, z = _problem(name, alpha, 500)
        velocity, value, rate = projected.descent(0.0, z)
        stepped = StableStep(0.5, "shortened", theta=theta)(projected, z, (0.0, 0.5)).states[-1]
        along = (velocity / velocity.norm(dim=1, keepdim=True) * (stepped - z)).sum(1)
        s = along / velocity.norm(dim=1)
        torch.testing.assert_close(stepped, z + s[:, None] * velocity)
        assert (s > 0).all()
        assert (s <= 0.5 * (1 + 1e-9)).all()
        reached, rounding = projected.potential(stepped), 1 + 1e-12
        assert (reached <= (value + (1 - theta) * s * rate) * rounding).all()
        assert (reached <= (1 - (1 - theta) * alpha * s) * value * rounding).all()


def test_both_ways_of_shortening_are_exercised():
    assert isinstance(_potential("icnn"), BoundsSmoothness)
    assert not isinstance(_potential("wavy"), BoundsSmoothness)
    assert _potential("icnn").convex
    assert not _potential("wavy").convex


@torch.no_grad()
def test_ray_condition_fails_for_the_energies_and_the_step_backtracks():
    """The scaled state of the closed form alone would lie too high."""
    for name in NOT_CONVEX:
        projected, z = _problem(name, 1.0, 20_000)
        potential = projected.potential
        y = z + 0.5 * projected(0.0, z)
        target, reached = math.exp(-0.5) * potential(z), potential(y)
        gamma = (target / reached).clamp_max(1)
        wrong = potential(gamma[:, None] * y) > target * (1 + 1e-12)
        assert wrong.any()
        stepped = StableStep(0.5)(projected, z, (0.0, 0.5)).states[-1]
        assert (potential(stepped) <= target * (1 + 4e-16)).all()
        # It never gives up, and keeps the closed form where that will do.
        assert (stepped.norm(dim=1) > 0).all()
        torch.testing.assert_close(stepped[gamma == 1], y[gamma == 1])
        kept = ~wrong & (gamma < 1)
        torch.testing.assert_close(stepped[kept], (gamma[:, None] * y)[kept])


@pytest.mark.parametrize("convex", [True, False])
@pytest.mark.parametrize(("method", "order", "evaluations"), [("rk4", 4, 4), ("midpoint", 2, 2)])
@torch.no_grad()
def test_scaled_steps_keep_the_order_of_their_integrator(convex, method, order, evaluations):
    """The projected field is smooth where it is active throughout, as for an outward field."""
    potential = _Given(smooth)
    potential.convex = convex
    projected = ProjectedField((2,), (), _Rotation(), potential, alpha=1.0).double()
    z0 = torch.tensor([[1.0, 0.2], [-0.4, 0.9], [0.7, -0.7]], dtype=torch.float64)
    exact = stabnet.build("dopri8", kind="integrator", rtol=1e-12, atol=1e-14)
    reference = exact(projected, z0, (0.0, 1.0)).states[-1]
    errors, scaled = [], 0
    for h in (0.1, 0.05, 0.025):
        inside = stabnet.build(method, kind="integrator", step_size=h)
        trajectory = StableStep(h, integrator=inside)(projected, z0, (0.0, 1.0))
        assert trajectory.nfe == evaluations * round(1 / h)
        errors.append(float((trajectory.states[-1] - reference).norm()))
        scaled += int((trajectory.states[-1] != inside(projected, z0, (0.0, 1.0)).states[-1]).sum())
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert min(orders) > order - 0.5, (errors, orders)
    assert scaled > 0


def smooth(z):
    """A convex function."""
    return z.square().sum(-1) + 0.1 * z[..., 0].square().square()


class _Rotation(Field):
    """A field that turns and climbs, so that the projection acts everywhere."""

    state_shape, feature_shape = (2,), ()

    def forward(self, t, z, u=None):
        return torch.stack([z[..., 0] + 2 * z[..., 1], z[..., 1] - 2 * z[..., 0]], -1)


@torch.no_grad()
def test_a_step_inside_is_cut_by_the_integrator_inside():
    projected, z = _problem("icnn", 1.0, 10)
    step = StableStep(0.5, integrator={"name": "rk4", "step_size": 0.1})
    trajectory = step(projected, z, (0.0, 0.7, 1.0))
    assert trajectory.nfe == (2 * 4 + 1 * 3) * 4  # steps of 0.35 in four, and one of 0.3 in three
    assert trajectory.states.shape == (3, 10, 2)
    assert StableStep(0.5)(projected, z, (0.0, 0.7, 1.0)).nfe == 3


@pytest.mark.parametrize("name", ["icnn", "wavy"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scheme": "shortened"},
        {"integrator": {"name": "rk4", "step_size": 0.3}},
    ],
)
def test_a_short_run_passes_gradcheck(name, options):
    projected, _ = _problem(name, 0.5, 1)
    step = StableStep(0.3, **options)
    z = torch.tensor([[0.6, -0.3], [-0.8, 0.5]], dtype=torch.float64, requires_grad=True)
    names = [n for n, _ in projected.named_parameters()]
    leaves = [p.detach().clone().requires_grad_() for p in projected.parameters()]

    def run(z, *values):
        parameters = {f"field.{name}": value for name, value in zip(names, values, strict=True)}
        return torch.func.functional_call(_Run(projected, step), parameters, (z,))

    if step.scheme == "shortened":  # gradients take L, which depends on the weights, as given
        leaves = [leaf.detach() for leaf in leaves]
    assert torch.autograd.gradcheck(run, (z, *leaves), eps=1e-7, atol=1e-5, rtol=1e-4)


class _Run(torch.nn.Module):
    """Two steps of a field, as a module of the field's parameters."""

    def __init__(self, field, step) -> None:
        super().__init__()
        self.field, self.step = field, step

    def forward(self, z):
        """Return the last state."""
        return self.step(self.field, z, (0.0, 0.6)).states[-1]


def test_gradients_reach_times_of_a_tensor():
    projected, z = _problem("icnn", 1.0, 5)
    for options in ({}, {"integrator": "rk4"}, {"scheme": "shortened"}):
        step = StableStep(0.25, **options)
        times = torch.tensor([0.0, 0.5], dtype=torch.float64, requires_grad=True)
        end = step(projected, z, times).states[-1]
        torch.testing.assert_close(end, step(projected, z, (0.0, 0.5)).states[-1])
        (gradient,) = torch.autograd.grad(end.sum(), times)
        assert torch.isfinite(gradient).all()
        # A step that is cut short does not depend on how long it was to be.
        assert (gradient.abs().max() > 0) == (step.scheme == "scaled")


@pytest.mark.parametrize("name", ["icnn", "wavy"])
@pytest.mark.parametrize("scheme", ["scaled", "shortened"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@torch.no_grad()
def test_states_that_are_not_finite_stay_visible(name, scheme, bad):
    projected, z = _problem(name, 1.0, 3)
    z[1, 0] = bad
    states = StableStep(0.1, scheme)(projected, z, (0.0, 0.5)).states
    assert not torch.isfinite(states[:, 1]).all(-1).any()
    assert torch.isfinite(states[:, [0, 2]]).all()


class _Overflowing(Field):
    """A field that is not finite on one side."""

    state_shape, feature_shape = (2,), ()

    def forward(self, t, z, u=None):
        return torch.where(z[..., :1] > 0, math.inf, 1.0) * torch.ones_like(z)


@pytest.mark.parametrize("name", ["icnn", "wavy"])
@pytest.mark.parametrize("scheme", ["scaled", "shortened"])
@torch.no_grad()
def test_a_field_that_is_not_finite_leaves_no_finite_state(name, scheme):
    potential = _potential(name).double()
    projected = ProjectedField((2,), (), _Overflowing(), potential, centered=False)
    z = torch.tensor([[1.0, 1.0], [-1.0, 1.0]], dtype=torch.float64)
    end = StableStep(0.1, scheme)(projected, z, (0.0, 0.1)).states[-1]
    assert not torch.isfinite(end[0]).any()
    assert torch.isfinite(end[1]).all()


@pytest.mark.parametrize("name", ["icnn", "wavy"])
@pytest.mark.parametrize("scheme", ["scaled", "shortened"])
@pytest.mark.parametrize("centered", [True, False])
def test_the_center_stays_where_it_is(name, scheme, centered):
    """Also for a field that does not vanish there; derivatives are finite."""
    field = _Constant()
    projected = ProjectedField(
        (2,), (), field, _potential(name), alpha=1.0, centered=centered
    ).double()
    z = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    end = StableStep(0.1, scheme)(projected, z, (0.0, 0.3)).states[-1]
    assert torch.equal(end, torch.zeros_like(end))
    (gradient,) = torch.autograd.grad(end.sum(), z)
    assert torch.isfinite(gradient).all()


class _Constant(Field):
    """A constant field."""

    state_shape, feature_shape = (2,), ()

    def forward(self, t, z, u=None):
        return torch.ones_like(z)


@torch.no_grad()
def test_fine_steps_of_an_unstable_field_obey_the_exponential_bound():
    torch.manual_seed(0)
    projected, _ = _problem("tangent", 2.0, 1)
    projected.vector_field = _Rotation()
    z0 = 3 * torch.randn(1000, 2, dtype=torch.float64)
    times = [0.0, 0.5, 1.0, 3.0]
    for scheme in ("scaled", "shortened"):
        states = StableStep(0.01, scheme)(projected, z0, times).states
        values = torch.stack([projected.potential(z) for z in states])
        if scheme == "shortened":
            # It lags behind: time is what it has taken, and not what was asked for.
            assert (values[1:] <= values[:-1]).all()
            continue
        for t, z in zip(times, states, strict=True):
            bound = (values[0] / projected.potential.eta).sqrt() * math.exp(-t)
            assert (z.norm(dim=1) <= bound * (1 + 1e-12)).all()


def test_states_of_any_shape_take_the_steps_of_flat_ones():
    torch.manual_seed(0)
    images = ProjectedField((2, 3, 3), None, "mlp", "icnn").double()
    vectors = ProjectedField((18,), None, "mlp", "icnn").double()
    vectors.load_state_dict(
        {k: v.reshape(vectors.state_dict()[k].shape) for k, v in images.state_dict().items()}
    )
    z = torch.randn(4, 2, 3, 3, dtype=torch.float64)
    for options in ({}, {"scheme": "shortened"}):
        step = StableStep(0.4, **options)
        ours = step(images, z, (0.0, 1.0)).states
        assert ours.shape == (2, 4, 2, 3, 3)
        flat = step(vectors, z.flatten(1), (0.0, 1.0)).states
        torch.testing.assert_close(ours.flatten(2), flat)


class _WavyAround(Potential):
    """A potential that is not convex, around the center that the context gives."""

    state_shape = (3,)

    def forward(self, z, context=None):
        offset = z - context.center.unsqueeze(1) if z.ndim == 3 else z - context.center
        return offset.square().sum(-1) + 2 * torch.sin(3 * offset[..., 0]).square()


@pytest.mark.parametrize("kind", ["icnn", "wavy"])
@pytest.mark.parametrize("scheme", ["scaled", "shortened"])
def test_every_sample_descends_to_its_own_center(kind, scheme):
    torch.manual_seed(0)
    potential = _WavyAround() if kind == "wavy" else {"name": "icnn", "tangent": True}
    projected = ProjectedField((3,), (3,), "mlp", potential, alpha=1.0, center="features").double()
    u = 5 * torch.randn(20, 3, dtype=torch.float64)
    flow = stabnet.Flow(projected, StableStep(0.25, scheme), "zeros", (0.0, 0.5, 10.0))
    states = flow(u).states
    values = torch.stack([projected.potential(z, Context(center=u)) for z in states])
    assert (values[1:] < values[:-1]).all()
    if scheme == "scaled":
        torch.testing.assert_close(states[-1], u, rtol=0, atol=1e-1)
    torch.testing.assert_close(flow(u[:1]).states, states[:, :1], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_step_size_is_read_anew_and_reported_on():
    torch.manual_seed(0)
    model = stabnet.StabilityModel(
        (4,),
        2,
        torch.nn.Identity(),
        stabnet.Flow(ProjectedField((4,), (4,), "mlp", center="features"), StableStep(0.5)),
        torch.nn.Linear(4, 2),
    )
    step = model.dynamics.integrator
    assert isinstance(step, FixedStep)
    data = [(torch.randn(8, 4), torch.randn(8, 2))]
    found = step_size_sensitivity(model, data, factor=5)
    assert (found.nfe, found.refined_nfe) == (2, 10)
    assert found.step_sizes == {"dynamics.integrator": 0.5}
    assert 0 < found.mean_change < 1
    assert step.step_size == 0.5
    step.step_size = 0.1
    assert model.solve(data[0][0]).nfe == 10


def test_what_a_step_cannot_take_is_refused():
    projected, z = _problem("icnn", 1.0, 2)
    with pytest.raises(stabnet.InvalidInputError, match=r"decreasing times \[1.0, 0.0\]"):
        StableStep(0.1)(projected, z, (1.0, 0.0))
    with pytest.raises(stabnet.InvalidInputError, match="_Swirl names none"):
        StableStep(0.1)(_Swirl(), z, (0.0, 1.0))
    for options, words in (
        ({"step_size": 0.0}, "step_size"),
        ({"theta": 1.0}, "theta"),
        ({"halvings": 0}, "halvings"),
        ({"scheme": "euler"}, "'euler' is unknown"),
        ({"scheme": "shortened", "integrator": "rk4"}, "Euler steps and no other"),
    ):
        with pytest.raises(stabnet.InvalidOptionError, match=words):
            StableStep(**options)


class _Claims:
    """A field that says that it descends, and does not."""

    alpha = 1.0

    def __init__(self, potential) -> None:
        self.potential = potential

    def __call__(self, t, z, u=None):
        return z

    def context(self, u=None):
        return Context()

    def descent(self, t, z, u=None):
        value, gradient = self.potential.value_and_gradient(z)
        return Descent(z, value, (gradient * z).sum(-1))


@pytest.mark.parametrize("name", ["icnn", "wavy"])
@torch.no_grad()
def test_not_even_a_field_that_climbs_makes_a_step_rise(name):
    climbing = _Claims(_potential(name).double())
    assert is_descending(climbing)
    z = torch.randn(1000, 2, dtype=torch.float64)
    value = climbing.potential(z)
    for scheme in ("scaled", "shortened"):
        end = StableStep(0.1, scheme)(climbing, z, (0.0, 0.1)).states[-1]
        assert (climbing.potential(end) <= value * (1 + 1e-15)).all()


def test_guarantees_name_the_scheme():
    scaled, shortened = (StableStep(scheme=s).guarantees()[0] for s in ("scaled", "shortened"))
    assert "e^(−α h)" in scaled.formula
    assert any("convex" in assumption for assumption in scaled.assumptions)
    assert "s_k" in shortened.formula
    assert any("∇VᵀF" in assumption for assumption in shortened.assumptions)


class _Careless(Potential):
    """Bumpy around each sample's center, for states ``(batch, 2)`` and no other shape."""

    state_shape = (2,)

    def forward(self, z, context=None):
        assert z.shape == context.center.shape
        offset = z - context.center
        return offset.square().sum(-1) + 2 * (3 * offset[:, 0]).sin() ** 2


@pytest.mark.parametrize("scheme", ["scaled", "shortened"])
def test_candidates_are_each_evaluated_as_a_state_of_its_sample(scheme):
    """A potential that broadcasts states against centers would mix samples up, if it could."""
    torch.manual_seed(0)
    step = StableStep(0.3, scheme, halvings=3)
    for batch in (1, 3, 4, 7):
        field = ProjectedField((2,), (2,), "mlp", _Careless(), 0.5, center="features").double()
        z, u = torch.randn(2, batch, 2, dtype=torch.float64)
        after = step(field, z, (0.0, 0.3), u).states[-1]
        before = field.potential(z, field.context(u))
        assert (field.potential(after, field.context(u)) <= before).all()
