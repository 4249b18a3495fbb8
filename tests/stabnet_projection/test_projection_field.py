"""The projected field as a whole: descent everywhere, its equilibrium, and its derivatives."""

from __future__ import annotations

import math

import pytest
import torch
from stabnet_projection import ProjectedField, project

import stabnet
from stabnet.interfaces import Potential, VectorField

BOUNDS = {torch.float64: 1e-10, torch.float32: 1e-6}


class _Field(VectorField):
    """A function of ``(t, z, u)`` as a field, with as many features as states."""

    def __init__(self, function, n: int = 4) -> None:
        super().__init__()
        self.state_shape = self.feature_shape = (n,)
        self.function = function

    def forward(self, t, z, u=None):
        return self.function(t, z, u)


class _Wavy(Potential):
    """Positive away from the origin, and rising and falling along rays."""

    state_shape = (4,)

    def forward(self, z, context=None):
        return z.square().sum(-1) + 2 * (3 * z[..., 0]).sin().square()


FIELDS = {
    "random": lambda t, z, u: torch.sin(7 * z.roll(1, -1) + u),
    "huge": lambda t, z, u: 1e6 * torch.cos(z + 3),
    "zero": lambda t, z, u: torch.zeros_like(z),
    "constant": lambda t, z, u: torch.ones_like(z),
    "outward": lambda t, z, u: 3 * z,
}


def _projected(potential, dtype, center="potential", **options) -> ProjectedField:
    field = _Field(options.pop("function", FIELDS["random"]))
    return ProjectedField((4,), (4,), field, potential, center=center, **options).to(dtype)


def _points(center, count: int, dtype: torch.dtype, seed: int):
    """Return states at all distances from their centers, from 1e-12 to 1e6."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.logspace(-12, 6, count, dtype=torch.float64)[:, None]
    offset = scale * torch.randn(count, 4, generator=generator, dtype=torch.float64)
    return center + offset.to(dtype)


def _excess(projected: ProjectedField, z, u) -> float:
    """Return the largest relative violation, with derivatives taken apart from the field's own."""
    value, gradient = projected.potential.value_and_gradient(z, projected.context(u))
    out = projected(0.0, z, u)
    assert torch.isfinite(out).all()
    violation = (gradient * out).sum(-1) + projected.alpha * value
    scale = gradient.norm(dim=-1) * out.norm(dim=-1) + projected.alpha * value
    return float((violation - BOUNDS[z.dtype] * scale).max())


@pytest.mark.parametrize("dtype", list(BOUNDS))
@pytest.mark.parametrize("center", ["origin", "given", "per sample"])
@pytest.mark.parametrize("tangent", [False, True])
@torch.no_grad()
def test_whole_field_descends_at_100_000_points(dtype, center, tangent):
    u = torch.randn(1000, 4, generator=torch.Generator().manual_seed(1)).to(dtype)
    given = {"center": [1.0, -2.0, 0.3, 7.0]} if center == "given" else {}
    for depth in (1, 2, 3, 4):
        torch.manual_seed(depth)
        potential = {"name": "icnn", "hidden": [6] * depth, "tangent": tangent, **given}
        projected = _projected(
            potential, dtype, "features" if center == "per sample" else "potential"
        )
        for seed, (kind, function) in enumerate(FIELDS.items()):
            projected.vector_field.function = function
            projected.centered = kind not in ("constant", "huge")
            for projected.alpha in (0.0, 0.01, 1.0, 30.0, 1e4):
                z = _points(projected.context(u).center, 1000, dtype, seed)
                assert _excess(projected, z, u) <= 0, (depth, kind, projected.alpha)


@pytest.mark.parametrize("dtype", list(BOUNDS))
@pytest.mark.parametrize("alpha", [0.0, 1.0])
@torch.no_grad()
def test_whole_field_descends_a_potential_that_is_not_convex(dtype, alpha):
    for function in FIELDS.values():
        projected = _projected(_Wavy(), dtype, alpha=alpha, function=function)
        z = _points(torch.zeros(4, dtype=dtype), 10_000, dtype, 0)
        assert _excess(projected, z, torch.zeros_like(z)) <= 0


@pytest.mark.parametrize("dtype", list(BOUNDS))
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e15])
def test_a_field_that_climbs_straight_up_descends_when_projected(dtype, scale):
    """At rate zero nothing is left of it but rounding, which must not point upwards."""
    gradient = torch.randn(100_000, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    projected = project(scale * gradient, torch.ones_like(gradient[:, 0]), gradient, 0.0)
    assert ((gradient * projected).sum(-1) <= 0).all()
    assert (projected.norm(dim=1) <= 1e2 * torch.finfo(dtype).eps * scale * 10).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["field", "value", "gradient"])
def test_what_is_not_finite_stays_visible(bad, where):
    parts = {
        "field": torch.ones(2, 3),
        "value": torch.ones(2),
        "gradient": torch.ones(2, 3),
    }
    parts[where][0] = bad
    out = project(parts["field"], parts["value"], parts["gradient"], 1.0)
    # A field that is infinitely downhill descends; everything else is NaN or infinite as well.
    assert not torch.isfinite(out[0]).any() or (where == "value" and bad < 0)
    assert torch.isfinite(out[1]).all()


def test_a_state_that_is_not_finite_has_no_finite_field():
    projected = _projected("icnn", torch.float64, function=lambda t, z, u: torch.tanh(z))
    for bad in (math.nan, math.inf):
        z = torch.zeros(2, 4, dtype=torch.float64)
        z[0, 1] = bad
        out = projected(0.0, z, torch.zeros_like(z))
        assert not torch.isfinite(out[0]).all()
        assert torch.isfinite(out[1]).all()


def _trained(center: str, features: bool) -> ProjectedField:
    """Train all weights of field and potential for 1,000 steps."""
    torch.manual_seed(0)
    potential = {"name": "icnn", "hidden": [5], "tangent": center == "features"}
    if center == "given":
        potential["center"] = [0.3, -1.7, 2.1, 0.9]
    projected = ProjectedField(
        (4,),
        (4,) if features else None,
        {"name": "mlp", "hidden": [6], "time_dependent": True},
        potential,
        center="features" if center == "features" else "potential",
    ).double()
    optimizer = torch.optim.Adam(projected.parameters(), lr=1e-2)
    for _ in range(1000):
        z, u = torch.randn(2, 8, 4, dtype=torch.float64)
        loss = (projected(0.5, z, u) - torch.sin(3 * z) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return projected


@pytest.mark.parametrize(
    ("center", "features"),
    [("own", False), ("given", True), ("features", True)],
)
def test_center_is_an_equilibrium_after_1000_training_steps(center, features):
    projected = _trained(center, features)
    u = torch.randn(7, 4, dtype=torch.float64)
    with torch.no_grad():
        fresh = torch.full_like(u, 1.0) if center == "features" else 0 * u
        at = projected.context(u).center.expand(7, 4)
        value = projected.potential(at, projected.context(u))
        assert torch.equal(value, torch.zeros(7, dtype=torch.float64))
        for t in (0.0, 0.5, 7.0):
            assert projected(t, at, u).abs().max() <= 1e-12
            # Samples at the center, and beside it.
            samples = torch.stack([at, at + 1], dim=1)
            out = projected(t, samples, u)
            assert out.shape == (7, 2, 4)
            assert out[:, 0].abs().max() <= 1e-12
            torch.testing.assert_close(out[:, 1], projected(t, at + 1, u), rtol=1e-10, atol=1e-12)
        moved = projected.vector_field(0.0, at + fresh, u)
        assert moved.abs().max() > 1e-2  # training has moved the field itself off zero


@pytest.mark.parametrize("center", ["own", "features"])
@pytest.mark.parametrize("distance", [0.0, 1e-12, 1.0, 1e6])
def test_value_field_and_all_derivatives_are_finite_at_every_distance(center, distance):
    torch.manual_seed(0)
    projected = ProjectedField(
        (4,), (4,), "mlp", "icnn", center="features" if center == "features" else "potential"
    ).double()
    u = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    at = projected.context(u).center.detach()
    z = (at + distance * torch.nn.functional.normalize(torch.randn(5, 4).double(), dim=1)).detach()
    z.requires_grad_()
    out, value, rate = projected.descent(0.0, z, u)
    assert all(torch.isfinite(part).all() for part in (out, value, rate))
    wanted = [z, u, *projected.parameters()]
    total = out.sum() + value.sum() + rate.sum()
    for gradient in torch.autograd.grad(total, wanted, allow_unused=True):
        assert gradient is None or torch.isfinite(gradient).all()
    assert value.min() > 0 or distance <= 1e-12


@pytest.mark.parametrize("center", ["own", "features"])
@pytest.mark.parametrize("distance", [1e-3, 1.0])
def test_whole_field_passes_gradcheck(center, distance):
    """Of many states those are taken where no perturbation crosses the switching surface."""
    torch.manual_seed(3)
    projected = ProjectedField(
        (3,),
        (3,),
        {"name": "mlp", "hidden": [4]},
        {"name": "icnn", "hidden": [4]},
        alpha=0.1,
        center="features" if center == "features" else "potential",
    ).double()
    u = torch.randn(200, 3, dtype=torch.float64)
    at = projected.context(u).center
    z = at + distance * torch.nn.functional.normalize(torch.randn_like(u), dim=1)
    with torch.no_grad():
        for parameter in projected.vector_field.parameters():
            parameter.mul_(3)  # so that it climbs here and descends there
        value, gradient = projected.potential.value_and_gradient(z, projected.context(u))
        field = projected._centered(0.0, z, u, projected.context(u))
        phi = ((gradient * field).sum(-1) + 0.1 * value) / gradient.norm(dim=-1)
        clear = phi.abs() > 0.05 * field.norm(dim=-1)
        chosen = [(clear & (phi > 0)).nonzero()[:2, 0], (clear & (phi < 0)).nonzero()[:2, 0]]
    assert all(len(part) == 2 for part in chosen)  # two that are projected, two that are not
    rows = torch.cat(chosen)
    names = [name for name, _ in projected.named_parameters()]

    def call(z, u, *values):
        return torch.func.functional_call(
            projected, dict(zip(names, values, strict=True)), (0, z, u)
        )

    leaves = [
        x.detach().clone().requires_grad_() for x in (z[rows], u[rows], *projected.parameters())
    ]
    assert torch.autograd.gradcheck(call, leaves, eps=1e-7, atol=1e-5, rtol=1e-5)


class _Drives(VectorField):
    """A field of two features."""

    state_shape, feature_shape = (4,), (4,)

    def forward(self, t, z, u=None):
        first, second = u
        return torch.tanh(z) + first * second


def test_features_may_be_a_tuple():
    torch.manual_seed(0)
    projected = ProjectedField((4,), (4,), _Drives(), "icnn").double()
    u = (torch.randn(6, 4).double(), torch.randn(6, 4).double())
    at = torch.zeros(6, 4, dtype=torch.float64)
    assert projected(0.0, at, u).abs().max() <= 1e-15
    assert projected(0.0, at[:1], tuple(part[:1] for part in u)).shape == (1, 4)
    with pytest.raises(stabnet.InvalidInputError, match="one tensor; got tuple"):
        ProjectedField((4,), (4,), _Drives(), center="features").double()(0.0, at, u)


def test_a_center_that_is_the_features_needs_them():
    projected = ProjectedField((4,), (4,), "mlp", center="features")
    with pytest.raises(stabnet.InvalidInputError, match="needs 'zeros' or 'learned'"):
        stabnet.Flow(projected, stabnet.build("rk4", kind="integrator"), "features")(
            torch.randn(2, 4)
        )
    with pytest.raises(stabnet.InvalidOptionError, match="features that are states"):
        ProjectedField((4,), (3,), "mlp", center="features")
    with pytest.raises(stabnet.InvalidOptionError, match="'potential' or 'features'"):
        ProjectedField((4,), (4,), "mlp", center="origin")


def test_states_have_any_shape_and_batches_one_entry():
    torch.manual_seed(0)
    images = ProjectedField((2, 3, 3), (5,), "mlp", "icnn").double()
    vectors = ProjectedField((18,), (5,), "mlp", "icnn").double()
    vectors.load_state_dict(
        {k: v.reshape(vectors.state_dict()[k].shape) for k, v in images.state_dict().items()}
    )
    z, u = torch.randn(1, 2, 3, 3, dtype=torch.float64), torch.randn(1, 5, dtype=torch.float64)
    out = images(0.0, z, u)
    assert out.shape == z.shape
    torch.testing.assert_close(out.flatten(1), vectors(0.0, z.flatten(1), u))


@pytest.mark.parametrize("method", ["dopri5", "stable_step"])
@torch.no_grad()
def test_trajectories_of_an_unstable_field_obey_the_exponential_bound(method):
    torch.manual_seed(0)
    projected = _projected("icnn", torch.float64, alpha=2.0, function=FIELDS["outward"])
    options = {"rtol": 1e-5, "atol": 1e-7} if method == "dopri5" else {"step_size": 0.01}
    z0, u = 3 * torch.randn(2, 1000, 4, dtype=torch.float64)
    times = [0.0, 0.25, 0.5, 1.0]
    integrator = stabnet.build(method, kind="integrator", **options)
    states = integrator(projected, z0, times, u).states
    v0 = projected.potential(z0)
    for t, z in zip(times, states, strict=True):
        bound = (v0 / projected.potential.eta).sqrt() * math.exp(-2.0 * t / 2)
        slack = 1 + (1e-3 if method == "dopri5" else 1e-12)  # its tolerance; rounding
        assert (z.norm(dim=1) <= bound * slack).all()
        assert (projected.potential(z) <= v0 * math.exp(-2.0 * t) * slack).all()
    assert (states[-1].norm(dim=1) > 0).all()


def test_what_is_guaranteed_depends_on_the_potential_and_the_center():
    (convex,) = _projected("icnn", torch.float64).guarantees()
    assert convex.status == "by construction"
    assert not any("Filippov" in assumption for assumption in convex.assumptions)
    (jumping,) = _projected("icnn", torch.float64, centered=False).guarantees()
    assert any("Filippov" in assumption for assumption in jumping.assumptions)
    (wavy,) = _projected(_Wavy(), torch.float64).guarantees()
    assert wavy.status == "conditional"
    assert "critical point" in wavy.detail
