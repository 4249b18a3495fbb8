"""LyaDEQ: what its guarantee list says of each reading holds as written, and no more is said."""

from __future__ import annotations

import math

import pytest
import torch
from stabnet_projection import ICNN, PointProjection, ProjectionFlow
from torch.nn.functional import cross_entropy

import stabnet
from stabnet.interfaces import Context, Potential, lift_features

READINGS = ("output", "residual", "flow")
ALPHA = 1.5


def lyadeq(tolerance=1e-12, **options):
    """Return a LyaDEQ of six states for eight features, in float64 and eval mode."""
    torch.manual_seed(0)
    defaults = {
        "in_shape": (8,),
        "num_outputs": 3,
        "backbone": {"name": "linear", "width": 6},
        "cell": {"name": "deq", "weight_scale": 0.3},
        "solver": {"name": "anderson", "tolerance": tolerance, "max_evaluations": 200},
        "alpha": ALPHA,
    }
    return stabnet.build("lyadeq", **defaults | options).double().eval()


def trained(**options):
    """Return a LyaDEQ after a few steps of training."""
    model = lyadeq(**options).train()
    x, y = torch.randn(32, 8, dtype=torch.float64), torch.randint(3, (32,))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval()


def inputs(count=20):
    return torch.randn(count, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def equilibria(model, x):
    """Return features and equilibria of inputs, and the block that follows."""
    with torch.no_grad():
        u = model.features(x)
        return u, model.dynamics.stages[0](u).state, model.dynamics.stages[1]


def of_block(model):
    """Return what is guaranteed of the projection itself."""
    found = [g for g in model.guarantees() if g.part == "dynamics.stages.1"]
    assert len(found) == 2
    return found


@pytest.mark.parametrize("head", ["orthogonal", "linear"])
@pytest.mark.parametrize("reading", READINGS)
def test_every_variant_says_what_holds_and_that_robustness_is_not_guaranteed(reading, head):
    model = lyadeq(projection=reading, head=head)
    claim, nothing = of_block(model)
    assert claim.status == "by construction"
    assert nothing.claim == "NOT guaranteed: robustness to perturbations of the input x"
    assert nothing.status == "conditional"
    assert "moves with x" in nothing.detail
    assert any(g.part == "head" for g in model.guarantees()) == (head == "orthogonal")
    for guarantee in model.guarantees():
        if "stable" in guarantee.claim or "decays" in guarantee.claim:
            assert "in the state" in guarantee.claim
        assert "robust" not in guarantee.claim or guarantee.claim.startswith("NOT guaranteed")


def test_the_point_readings_claim_no_convergence():
    for reading in ("output", "residual"):
        claim = of_block(lyadeq(projection=reading))[0].claim
        assert "nothing converges" in claim
        assert "stable" not in claim


def test_output_satisfies_its_formula_at_the_equilibria():
    model = trained(projection="output")
    assert of_block(model)[0].formula == "∇V(z*)ᵀv = −1.5·V(z*)"
    _, z, block = equilibria(model, inputs())
    value, gradient = block.potential.value_and_gradient(z)
    torch.testing.assert_close((gradient * block(z)).sum(1), -ALPHA * value)


def test_residual_satisfies_its_formula_at_the_equilibria():
    model = trained(projection="residual")
    assert of_block(model)[0].formula == "v = −1.5·V(z*) ∇V(z*)/‖∇V(z*)‖²"
    _, z, block = equilibria(model, inputs())
    value, gradient = block.potential.value_and_gradient(z)
    expected = -ALPHA * (value / gradient.square().sum(1))[:, None] * gradient
    torch.testing.assert_close(block(z), expected)


@pytest.mark.parametrize("alpha", [0.0, 0.7])
@pytest.mark.parametrize("reading", ["output", "residual"])
def test_a_potential_with_another_center_keeps_the_inequality_and_claims_no_equality(
    reading, alpha
):
    potential = ICNN((4,), center=[3.0, -2.0, 1.0, 0.5]).double()
    block = PointProjection((4,), potential, reading, alpha)
    z = 3 * torch.randn(500, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    value, gradient = potential.value_and_gradient(z)
    rate, scale = (gradient * block(z)).sum(1), gradient.norm(dim=1) * z.norm(dim=1)
    assert (rate <= -alpha * value + 1e-14 * scale).all()
    claim = block.guarantees()[0]
    assert claim.status == "by construction"
    assert ("does not raise" in claim.claim) == (alpha == 0)
    if reading == "output":
        assert "≤" in claim.formula
        # Some states point at the center fast enough, and come back as they are.
        assert (rate < -alpha * value - 1e-3).any()
        assert (block(z) == z).all(1).any()
    else:
        torch.testing.assert_close(rate, -alpha * value)


@pytest.mark.parametrize("tangent", [True, False])
def test_perturbed_states_return_to_each_inputs_equilibrium_as_promised(tangent):
    model = trained(projection="flow", potential={"name": "icnn", "tangent": tangent})
    u, center, block = equilibria(model, inputs())
    field, potential = block.vector_field.towards(center), block.vector_field.potential
    context = Context(center=center)
    eta, smoothness = float(potential.growth_bound()), float(potential.smoothness_bound())
    claim = of_block(model)[0]
    assert f"√(V(z_0)/{eta:.3g})" in claim.formula
    assert f"({smoothness:.3g}/2)" in claim.formula
    times = [0.3 * k for k in range(40)]
    for size in (1e-3, 1.0, 100.0):
        start = center + size * torch.randn_like(center)
        states = block.integrator(field, start, times, u).states
        values = torch.stack([potential(z, context) for z in states])
        # The step is 0.1, so that three of them are taken from each time to the next.
        decay = torch.tensor([math.exp(-ALPHA * t) for t in times])[:, None]
        distance = (states - center).norm(dim=2)
        assert (values <= values[0] * decay * (1 + 1e-10) + 1e-28).all()
        assert (distance <= (values[0] / eta * decay).sqrt() * (1 + 1e-10) + 1e-13).all()
        assert (values[0] <= smoothness / 2 * distance[0].square() * (1 + 1e-12)).all()


def test_equilibrium_rests_under_the_steps_even_where_its_solve_is_poor():
    """The field's value at z* is the residual, not zero; the steps map z* to itself anyway."""
    model = lyadeq(tolerance=1e-2, projection="flow")
    u, center, block = equilibria(model, inputs())
    field = block.vector_field.towards(center)
    residual = model.dynamics.stages[0].cell(center, u) - center
    assert (residual.norm(dim=1) > 1e-5).any()
    torch.testing.assert_close(field(0.0, center, u), residual)
    stepped = block.integrator(field, center, (0.0, 1.0), u).states[-1]
    assert torch.equal(stepped, center)
    assert any("residual r" in a and "no distance" in a for a in of_block(model)[0].assumptions)


def test_no_state_but_the_equilibrium_rests():
    model = lyadeq(projection="flow")
    u, center, block = equilibria(model, inputs())
    field, potential = block.vector_field.towards(center), block.vector_field.potential
    for size in (1e-4, 1.0, 100.0):
        z = center + size * torch.randn_like(center)
        velocity, value, rate = field.descent(0.0, z, u)
        assert (velocity.norm(dim=1) > 0).all()
        assert (rate <= -ALPHA * value * (1 - 1e-9)).all()
        stepped = block.integrator(field, z, (0.0, 0.1), u).states[-1]
        assert (potential(stepped, Context(center=center)) < value).all()


def test_distinct_inputs_keep_distinct_equilibria_where_a_common_center_merges_them():
    model = lyadeq(projection="flow", alpha=4.0, time=10.0, step_size=0.5)
    u, center, block = equilibria(model, inputs())
    apart = torch.pdist(center).min()
    assert apart > 1e-3
    torch.testing.assert_close(block(center, u).state, center, rtol=0, atol=1e-3 * float(apart))
    # The readings of the paper center the potential at the origin: iterated, all inputs end there.
    origin = block.vector_field.towards(torch.zeros_like(center))
    merged = block.integrator(origin, center, (0.0, 10.0), u).states[-1]
    assert torch.pdist(merged).max() < 1e-3 * apart


def test_in_evaluation_mode_each_sample_has_its_own_trajectory():
    model = trained(projection="flow")
    x = inputs()
    together = model.solve(x).state
    alone = torch.cat([model.solve(row[None]).state for row in x])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-9)


def test_a_perturbed_input_moves_its_equilibrium_and_so_the_output():
    """Stability in z is not robustness in x: δ in x is not forgotten, as δ in z is."""
    model = trained(projection="flow", alpha=4.0, time=10.0, step_size=1.0)
    x = inputs(8)
    shift = 0.1 * torch.randn_like(x)
    u, center, block = equilibria(model, x)
    moved = equilibria(model, x + shift)[1]
    far = (moved - center).norm(dim=1)
    assert (far > 1e-4).all()
    # What the flow returns is as far apart as the equilibria are, and not closer.
    reached = (model.solve(x + shift).state - model.solve(x).state).norm(dim=1)
    torch.testing.assert_close(reached, far, rtol=1e-3, atol=1e-6)
    assert ((model(x + shift) - model(x)).norm(dim=1) > 1e-4).all()
    field = block.vector_field.towards(center)
    forgotten = block.integrator(field, center + (moved - center), (0.0, 20.0), u).states[-1]
    assert ((forgotten - center).norm(dim=1) < 1e-6 * far).all()


class Custom(Potential):
    """A potential of one's own: ``f(‖z − c‖²)``."""

    def __init__(self, f, *, convex, eta=None, listens=True):
        super().__init__()
        self.state_shape, self.f, self.convex, self.listens = (6,), f, convex, listens
        if eta is not None:
            self.growth_bound = lambda: torch.tensor(eta, dtype=torch.float64)

    def forward(self, z, context=None):
        if context is not None and context.center is not None and self.listens:
            z = z - lift_features(context.center, z, 1)
        return self.f(z.square().sum(-1))


def bumpy(s):
    """Grow in s, with critical points at s = π, 3π, …."""
    return s + s.sin()


CUSTOM = {
    "convex, no growth": ((lambda s: (s - 1).clamp(min=0) ** 2, True, None), "grows away"),
    "growth, not convex": ((bumpy, False, 0.5), "critical point"),
    "neither": ((bumpy, False, None), "critical point besides z*, and that V grows"),
}


@pytest.mark.parametrize("case", CUSTOM)
def test_the_flow_says_what_is_open_about_a_potential_of_ones_own(case):
    (f, convex, eta), words = CUSTOM[case]
    model = lyadeq(projection="flow", potential=Custom(f, convex=convex, eta=eta))
    claim = of_block(model)[0]
    assert claim.status == "conditional"
    assert claim.detail.startswith("open: ")
    assert words in claim.detail
    assert ("√" in claim.formula) == (eta is not None)
    # What is claimed of the potential itself holds all the same.
    u, center, block = equilibria(model, inputs())
    field, context = block.vector_field.towards(center), Context(center=center)
    start = center + torch.randn_like(center)
    states = block.integrator(field, start, (0.0, 0.1, 0.2), u).states
    values = torch.stack([block.vector_field.potential(z, context) for z in states])
    assert (values[1:] <= values[:-1] * math.exp(-ALPHA * 0.1) * (1 + 1e-12) + 1e-28).all()


def test_a_convex_potential_of_ones_own_with_growth_is_proven():
    model = lyadeq(projection="flow", potential=Custom(lambda s: 0.5 * s, convex=True, eta=0.5))
    assert of_block(model)[0].status == "by construction"


def test_what_is_open_may_fail_at_a_critical_point():
    z = torch.zeros(1, 6, dtype=torch.float64)
    z[0, 0] = math.sqrt(math.pi)
    potential = Custom(bumpy, convex=False)
    block = PointProjection((6,), potential, "output", ALPHA)
    value, gradient = potential.value_and_gradient(z)
    assert value > 1
    assert (gradient * block(z)).sum() > -ALPHA * value
    claim = block.guarantees()[0]
    assert claim.status == "conditional"
    assert "∇V vanishes only where V does" in claim.detail


def test_the_flow_refuses_a_potential_that_does_not_listen_to_its_center():
    deaf = Custom(lambda s: s, convex=True, eta=1.0, listens=False)
    with pytest.raises(stabnet.InvalidOptionError, match="vanishes at the center of its context"):
        lyadeq(projection="flow", potential=deaf)
    lyadeq(projection="output", potential=deaf)


def test_the_flow_puts_the_equilibrium_in_place_of_a_potentials_own_center():
    options = {"name": "icnn", "tangent": True}
    model = lyadeq(projection="flow", potential=options)
    other = lyadeq(projection="flow", potential={**options, "center": [1.0] * 6})
    assert of_block(other)[0].status == "by construction"
    assert torch.equal(model(inputs()), other(inputs()))


def test_without_a_rate_the_flow_is_stable_and_no_more():
    model = lyadeq(projection="flow", alpha=0.0)
    claim = of_block(model)[0].claim
    assert "stable in the state" in claim
    assert "exponentially" not in claim
    assert "only" not in claim
    assert isinstance(model.dynamics.stages[1], ProjectionFlow)
