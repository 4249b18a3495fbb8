"""The parts of the certificate: bounds that contain what they bound, coverings that cover."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stabnet_lyapunov import DataControlledField, SupervisedPotential
from stabnet_lyapunov.certificate.cells import bound_cells, target_interval
from stabnet_lyapunov.certificate.cover import Question, decide, grid
from stabnet_lyapunov.certificate.inputs import balls, region_of
from stabnet_lyapunov.certificate.scheme import exact_flow, runge_kutta
from stabnet_lyapunov.certificate.system import System, read_system
from stabnet_lyapunov.certificate.theorem import Decay, sensitivity
from torch import nn

import stabnet
from stabnet import Flow, StabilityModel
from stabnet.interfaces import Context

DOUBLE = torch.float64
TABLEAUS = {
    "euler": ((), (1.0,)),
    "midpoint": (((0.5,),), (0.0, 1.0)),
    "rk4": (((0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}


def random_model(
    seed: int,
    classes: int = 2,
    activation: str = "tanh",
    integrator: str = "rk4",
    step: float = 0.1,
    scale: float = 2.0,
) -> StabilityModel:
    """Return a model with random weights, in float64, that is anything but stable."""
    torch.manual_seed(seed)
    backbone = stabnet.build(
        "mlp", kind="backbone", in_shape=(2,), hidden=(6,), width=9, activation="tanh"
    )
    field = DataControlledField(
        (classes,), (9,), rate=3.0, gain=1.7, corner=4.0, activation=activation
    )
    flow = Flow(field, stabnet.build(integrator, kind="integrator", step_size=step))
    model = StabilityModel((2,), classes, backbone, flow, nn.Identity()).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
        if activation == "prelu":
            field.activation.weight.fill_(-0.4 if seed % 2 else 0.3)
    return model


def framed(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return margins and sum of states ``(rows, points, n)``."""
    n = z.shape[-1]
    rows = []
    for state, label in zip(z, y.tolist(), strict=True):
        others = [k for k in range(n) if k != label]
        rows.append(torch.cat([state[:, others] - state[:, [label]], state.sum(1, True)], 1))
    return torch.stack(rows)


def random_cells(system: System, rows: int, cells: int, width: float, seed: int):
    """Return cells around random states of the cube, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(rows) % system.classes
    z = (2 * torch.rand(rows, cells, system.classes, generator=generator, dtype=DOUBLE) - 1) * 4
    center = framed(z, y)
    size = width * torch.rand(center.shape, generator=generator, dtype=DOUBLE)
    return y, (center - size, center + size)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    classes=st.sampled_from([2, 3]),
    activation=st.sampled_from(["tanh", "prelu", "softplus"]),
    method=st.sampled_from(["flow", "euler", "midpoint", "rk4"]),
    width=st.sampled_from([0.0, 1e-3, 0.3, 2.0]),
    eps=st.sampled_from([0.0, 1e-3, 0.1, 1.0]),
)
def test_bounds_of_a_step_contain_every_step(seed, classes, activation, method, width, eps):
    name = "rk4" if method == "flow" else method
    model = random_model(seed, classes, activation, name)
    system, kappa = read_system(model), 2.3
    scheme = system.flow if method == "flow" else system.steps[0]
    y, cells = random_cells(system, 3, 4, width, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    x = torch.randn(3, 2, generator=generator, dtype=DOUBLE)
    box = balls(x, torch.full((3,), eps, dtype=DOUBLE), None)
    bounds = bound_cells(system, scheme, kappa, system.features(*box), y, cells)
    potential = SupervisedPotential((classes,), truncation=0.0)
    field = model.dynamics.vector_field
    h = float(scheme.step)
    for _ in range(10):
        share = torch.rand(cells[0].shape, generator=generator, dtype=DOUBLE)
        z = system.states(torch.lerp(*cells, share), y)
        way = 2 * torch.rand(3, 2, generator=generator, dtype=DOUBLE) - 1
        u, context = model.features(x + eps * way), Context(label=y)
        v, rate = potential.value_and_rate(z, field(0.0, z, u), context)
        level, after = (rate + kappa * v) / kappa, v
        if h:
            steps = [
                model.dynamics.integrator(field, state, (0.0, h), u).states[-1]
                for state in z.unbind(1)
            ]
            after = potential(torch.stack(steps, 1), context)
            level = (after - math.exp(-kappa * h) * v) / -math.expm1(-kappa * h)
        rounding = 1e-9 * (1 + v.abs())
        assert bool((bounds.least <= v + rounding).all())
        assert bool((v <= bounds.most + rounding).all())
        assert bool((after <= bounds.after + rounding).all())
        assert bool((level <= bounds.level + rounding).all())


@pytest.mark.parametrize("classes", [2, 3])
def test_bounds_at_a_point_are_the_values_themselves(classes):
    model = random_model(5, classes)
    system, kappa = read_system(model), 2.3
    y, cells = random_cells(system, 3, 4, 0.0, 0)
    x = torch.randn(3, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    features = system.features(x, x)
    z, context = system.states(cells[0], y), Context(label=y)
    potential = SupervisedPotential((classes,), truncation=0.0)
    field, integrator = model.dynamics.vector_field, model.dynamics.integrator
    v, rate = potential.value_and_rate(z, field(0.0, z, model.features(x)), context)
    flow = bound_cells(system, system.flow, kappa, features, y, cells)
    torch.testing.assert_close(flow.least, v, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(flow.most, v, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(flow.level, rate / kappa + v, rtol=1e-10, atol=1e-10)
    steps = [integrator(field, s, (0.0, 0.1), model.features(x)).states[-1] for s in z.unbind(1)]
    after = bound_cells(system, system.steps[0], kappa, features, y, cells).after
    torch.testing.assert_close(
        after, potential(torch.stack(steps, 1), context), rtol=1e-9, atol=1e-13
    )


@pytest.mark.parametrize("name", TABLEAUS)
def test_a_scheme_averages_targets_as_its_method_does(name):
    a, b = TABLEAUS[name]
    rate, step = 3.0, 0.2
    scheme = runge_kutta(a, b, Fraction(rate), Fraction(step))
    targets = torch.randn(len(b), 5, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    z, calls = torch.ones(1, 5, dtype=DOUBLE), []

    def field(t, z, u):
        calls.append(z[0])
        return rate * (targets[len(calls) - 1] - z)

    integrator = stabnet.build(name, kind="integrator", step_size=step)
    end = integrator(field, z, (0.0, step)).states[-1]
    for row, stage in zip(scheme.stages, calls[1:], strict=True):
        mean = sum((float(g) * s for g, s in zip(row, targets, strict=False)), torch.zeros(5))
        torch.testing.assert_close(mean + float(1 - sum(row)) * z[0], stage)
    mean = sum(float(c) * s for c, s in zip(scheme.weights, targets, strict=True))
    torch.testing.assert_close(mean + float(scheme.kept) * z, end)


@pytest.mark.parametrize("name", TABLEAUS)
@pytest.mark.parametrize("x", [0.3, 1.0, 1.7])
def test_no_step_leaves_its_cube_whatever_the_targets_are(name, x):
    a, b = TABLEAUS[name]
    scheme = runge_kutta(a, b, Fraction(1), Fraction(x))
    half = scheme.half_width(Fraction(0), Fraction(4))
    assert half is not None
    assert half >= 4 or name == "euler"
    generator = torch.Generator().manual_seed(0)
    z = torch.zeros(2000, dtype=DOUBLE)
    for _ in range(200):
        targets = torch.randint(0, 2, (len(b), 2000), generator=generator) * 8.0 - 4
        moved = (float(c) * s for c, s in zip(scheme.weights, targets, strict=True))
        z = float(scheme.kept) * z + sum(moved)
    assert float(z.abs().max()) <= float(half) * (1 + 1e-12)
    if name == "rk4" and x <= 1:
        assert half == 4


def test_steps_that_blow_up_have_no_cube():
    assert (
        runge_kutta((), (1.0,), Fraction(1), Fraction(5, 2)).half_width(Fraction(0), Fraction(1))
        is None
    )


def test_the_decay_of_short_steps_is_that_of_the_flow():
    flow, short = exact_flow(Fraction(1)), runge_kutta((), (1.0,), Fraction(1), Fraction(1, 2**30))
    assert flow.decay(2.0) == (2.0, 2.0)
    assert short.decay(2.0) == pytest.approx((2.0, 2.0), rel=1e-8)
    low, high = runge_kutta((), (1.0,), Fraction(1), Fraction(1, 4)).decay(2.0)
    assert low < -math.expm1(-0.5) * 4 < high


@pytest.mark.parametrize("classes", [2, 3])
def test_the_grid_covers_every_state_of_the_region(classes):
    model = random_model(0, classes)
    system = read_system(model)
    start = torch.full((2,), math.log(classes), dtype=DOUBLE)
    region = region_of(system, [system.flow], 0.05 * start, start)
    assert region is not None
    assert region.half_width == 4
    y = torch.tensor([0, 1])
    generator = torch.Generator().manual_seed(0)
    # States on random trajectories from the origin, whose sum goes its prescribed way.
    z = torch.zeros(2, 4000, classes, dtype=DOUBLE)
    for _ in range(20):
        corner = torch.randint(0, classes, (2, 4000, 1), generator=generator)
        target = torch.full_like(z, -4.0).scatter(-1, corner, 4.0)
        z = torch.lerp(z, target, torch.rand(2, 4000, 1, generator=generator, dtype=DOUBLE) * 0.2)
    v = SupervisedPotential((classes,), truncation=0.0)(z, Context(label=y))
    inside = (v >= region.least[:, None]) & (v <= region.most[:, None])
    assert bool(inside.any(1).all())
    states = framed(z, y)[:, :, None]
    cells = grid(system, region, False)
    slack = 1e-12
    lower, upper = cells.lower[:, None] - slack, cells.upper[:, None] + slack
    covered = ((states >= lower) & (states <= upper)).all(-1).any(-1)
    assert bool(covered[inside].all())
    below = grid(system, region, True)
    lower, upper = below.lower[:, None] - slack, below.upper[:, None] + slack
    covered = ((states >= lower) & (states <= upper)).all(-1).any(-1)
    assert bool(covered[v <= region.most[:, None]].all())


@pytest.mark.parametrize(("classes", "seed"), [(2, 0), (2, 1), (2, 2), (3, 0), (3, 3)])
def test_a_proven_level_bounds_every_state_and_a_lower_one_is_not_proven(classes, seed):
    model = random_model(seed, classes, scale=1.0)
    system, kappa = read_system(model), 1.5
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)
    y = torch.arange(4) % classes
    start = torch.full((4,), math.log(classes), dtype=DOUBLE)
    region = region_of(system, [system.flow], 0.3 * start, start)
    assert region is not None
    cells = grid(system, region, False)
    features = system.features(x, x)
    middle = system.states(cells.middles.lower, y)
    potential, context = SupervisedPotential((classes,), truncation=0.0), Context(label=y)
    velocity = model.dynamics.vector_field(0.0, middle, model.features(x))
    v, rate = potential.value_and_rate(middle, velocity, context)
    inside = (v >= region.least[:, None]) & (v <= region.most[:, None])
    inside &= middle.abs().amax(-1) <= 4
    seen = (rate / kappa + v).masked_fill(~inside, -math.inf).amax(1)
    unlimited = torch.full_like(start, math.inf)

    def ask(level):
        return decide(
            Question(system, system.flow, kappa, features, y, region, level, unlimited, cells),
            2**14,
        )

    generous = ask(seen + 1.0)
    assert bool(generous.proven.all())
    assert bool((generous.level >= seen).all())
    assert not bool(ask(seen - 1e-6).proven.any())
    if classes == 2:  # cells of a line become points soon, so that bounds are tight
        tight = ask(seen + 0.15)
        assert bool(tight.proven.all())


def test_the_change_between_inputs_is_within_the_lipschitz_bound():
    for classes, activation in ((2, "tanh"), (2, "prelu"), (3, "prelu"), (3, "softplus")):
        model = random_model(1, classes, activation, scale=1.0)
        system, eps = read_system(model), 0.05
        generator = torch.Generator().manual_seed(2)
        x = torch.randn(3, 2, generator=generator, dtype=DOUBLE)
        y = torch.arange(3) % classes
        start = torch.full((3,), math.log(classes), dtype=DOUBLE)
        region = region_of(system, [system.flow], 0.05 * start, start)
        assert region is not None
        box = balls(x, torch.full((3,), eps, dtype=DOUBLE), None)
        clean = system.features(x, x)
        bound = sensitivity(system, y, clean, system.features(*box), region)
        z = system.states(grid(system, region, False).middles.lower, y)
        potential, context = SupervisedPotential((classes,), truncation=0.0), Context(label=y)
        field = model.dynamics.vector_field
        v, rate = potential.value_and_rate(z, field(0.0, z, model.features(x)), context)
        inside = (v >= region.least[:, None]) & (v <= region.most[:, None])
        inside &= z.abs().amax(-1) <= region.half_width
        largest = torch.zeros(3, dtype=DOUBLE)
        for _ in range(30):
            moved = x + eps * (torch.randint(0, 2, x.shape, generator=generator) * 2.0 - 1)
            other = potential.value_and_rate(z, field(0.0, z, model.features(moved)), context)[1]
            change = (other - rate).abs().masked_fill(~inside, 0.0).amax(1)
            largest = torch.maximum(largest, change)
        assert bool((largest <= bound).all())
        small = balls(x, torch.full((3,), eps / 100, dtype=DOUBLE), None)
        shrunk = sensitivity(system, y, clean, system.features(*small), region)
        assert bool((shrunk < bound / 30 + 1e-6).all())


def test_the_end_of_a_decay_is_the_largest_of_its_three_bounds():
    one = torch.ones(1, dtype=DOUBLE)
    decay = Decay(kappa=2.0, span=1.0, start=one, least=0.1 * one)
    target = math.exp(-2.0)
    assert float(decay.target) == pytest.approx(target)
    assert float(decay.end(-one, -one)) == pytest.approx(target)
    assert float(decay.end(0.5 * one, -one)) == pytest.approx(target + 0.5 * (1 - target))
    assert float(decay.end(-one, 0.3 * one)) == pytest.approx(0.3)
    level = decay.level()
    assert float(decay.end(level, -one)) < math.log(2)
    assert float(decay.end(level * 1.001, -one)) > math.log(2) * (1 - 1e-3)


def test_targets_of_saturated_choices_are_the_corners():
    model = random_model(0, 3)
    with torch.no_grad():
        model.dynamics.vector_field.last.bias.copy_(torch.tensor([900.0, -900.0, 0.0]))
    system = read_system(model)
    y, cells = random_cells(system, 3, 2, 0.1, 0)
    x = torch.zeros(3, 2, dtype=DOUBLE)
    lower, upper = target_interval(system, system.features(x, x), y, cells)
    # Class 0 is chosen: as the label it is right by 2·corner; seen from another it is wrong so.
    expected = torch.tensor([[-8.0, -8.0], [8.0, 0.0], [8.0, 0.0]], dtype=DOUBLE)
    torch.testing.assert_close(lower, expected[:, None].expand_as(lower), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(upper, expected[:, None].expand_as(upper), atol=1e-12, rtol=1e-12)
