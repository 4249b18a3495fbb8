"""The certificate: what it proves holds, and what does not hold it never proves."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import make_circles
from stabnet_lyapunov import (
    DataControlledField,
    LyapunovCertificate,
    SupervisedPotential,
    lyapunov_certificate,
)
from torch import nn

import stabnet
from stabnet import Flow, InvalidInputError, InvalidOptionError, StabilityModel
from stabnet.interfaces import Context

DOUBLE = torch.float64
KAPPA = 1.5


def circles(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = make_circles(count, noise=0.05, factor=0.5, random_state=0)
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y)


def assembled(
    backbone: nn.Module,
    classes: int = 2,
    step: float = 0.1,
    integrator: str = "rk4",
    initial: str = "zeros",
    **options,
) -> StabilityModel:
    options = {"rate": 3.0, "gain": 2.0, "corner": 4.0, "activation": "tanh"} | options
    field = DataControlledField((classes,), backbone.out_shape, **options)
    options = {"step_size": step} if integrator in ("euler", "midpoint", "rk4") else {}
    flow = Flow(field, stabnet.build(integrator, kind="integrator", **options), initial)
    return StabilityModel((2,), classes, backbone, flow, nn.Identity())


def untrained(seed: int = 0, classes: int = 2, **options) -> StabilityModel:
    torch.manual_seed(seed)
    backbone = stabnet.build(
        "mlp", kind="backbone", in_shape=(2,), hidden=(16,), width=16, activation="tanh"
    )
    return assembled(backbone, classes, **options)


def stepping(model: StabilityModel, step: float, integrator: str = "rk4") -> StabilityModel:
    """Return a copy of a model that is evaluated in other steps."""
    model = copy.deepcopy(model)
    model.dynamics.integrator = stabnet.build(integrator, kind="integrator", step_size=step)
    return model


@pytest.fixture(scope="module")
def trained() -> StabilityModel:
    """A model of the circles, trained by the Monte Carlo Lyapunov loss on the line it moves on."""
    model, (x, y) = untrained(), circles(400)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    potential = SupervisedPotential((2,), truncation=0.0)
    for _ in range(150):
        chosen = torch.randint(0, 400, (64,), generator=generator)
        half = 4 * (2 * torch.rand(1, 32, 1, generator=generator) - 1)
        z = torch.cat([half, -half], -1)
        velocity = model.dynamics.vector_field(0.0, z, model.features(x[chosen]))
        v, rate = potential.value_and_rate(z, velocity, Context(label=y[chosen]))
        loss = F.relu(rate + 2 * KAPPA * v).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def certificate(trained: StabilityModel) -> LyapunovCertificate:
    x, y = circles(40)
    return lyapunov_certificate(trained, x, y, KAPPA, eps_max=0.3, steps=6, max_boxes=4)


def final_potential(model: StabilityModel, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(x), y, reduction="none")


def attacks(model, x, y, radius, seeds: int = 3):
    """Yield inputs within each radius: random ones, and ones that gradients lead to."""
    generator = torch.Generator().manual_seed(0)
    size = radius[:, None]
    for seed in range(seeds):
        yield x + size * (2 * torch.rand(x.shape, generator=generator, dtype=x.dtype) - 1)
        yield x + size * (torch.randint(0, 2, x.shape, generator=generator) * 2 - 1)
        moved = x + 0.1 * seed * size
        for _ in range(10):
            moved = moved.detach().requires_grad_()
            (way,) = torch.autograd.grad(final_potential(model, moved, y).sum(), moved)
            moved = (moved + size / 3 * way.sign()).clamp(x - size, x + size)
        yield moved.detach()


def test_most_inputs_of_a_trained_model_are_verified(certificate):
    assert certificate.verified_share > 0.8
    verified = torch.tensor([s == "verified" for s in certificate.status])
    assert torch.equal(certificate.radius > 0, verified)
    assert float(certificate.radius[verified].median()) > 0.02
    assert bool((certificate.decrease[verified] <= 0).all())
    assert bool((certificate.end[verified] < math.log(2)).all())
    assert bool((certificate.radius_theorem <= certificate.radius_flow).all())
    assert bool((certificate.lipschitz[verified] > 0).all())


def test_the_certified_potential_bounds_that_of_every_perturbed_input(trained, certificate):
    x, y = circles(40)
    found = certificate.radius > 0
    x, y = x.double()[found], y[found]
    pairs = (
        (copy.deepcopy(trained).double(), certificate.radius, certificate.end),
        (stepping(trained, 1 / 32).double(), certificate.radius_flow, certificate.end_flow),
        (stepping(trained, 1 / 32).double(), certificate.radius_theorem, None),
    )
    for model, radius, end in pairs:
        largest = torch.full_like(radius[found], math.log(2)) if end is None else end[found]
        for moved in attacks(model, x, y, radius[found], seeds=2):
            assert bool((final_potential(model, moved, y) <= largest + 1e-9).all())


def test_no_attack_flips_a_certified_input_in_single_precision(trained, certificate):
    x, y = circles(40)
    found = certificate.radius > 0
    for moved in attacks(trained, x[found], y[found], certificate.radius[found].float()):
        assert torch.equal(trained(moved).argmax(1), y[found])


def test_a_radius_much_larger_than_the_certified_one_can_be_attacked(trained, certificate):
    x, y = circles(40)
    flipped = torch.zeros(40, dtype=torch.bool)
    for moved in attacks(trained, x, y, torch.full((40,), 0.5)):
        flipped |= trained(moved).argmax(1) != y
    assert bool(flipped.all())


@pytest.mark.parametrize("seed", range(3))
def test_what_is_certified_of_an_untrained_model_holds(seed):
    model, (x, y) = untrained(seed, activation="prelu"), circles(30)
    found = lyapunov_certificate(model, x, y, 0.05, eps_max=0.5, steps=4, slack=0.01, max_boxes=1)
    assert not any(
        s == "verified" for s, r in zip(found.status, found.radius, strict=True) if not r
    )
    for moved in attacks(copy.deepcopy(model).double(), x.double(), y, found.radius):
        end = final_potential(copy.deepcopy(model).double(), moved, y)
        assert bool((end <= found.end + 1e-9).all())


def test_three_classes_are_certified():
    model = aimed(3, 0, width=2.0)
    x, y = torch.zeros(1, 2), torch.zeros(1, dtype=torch.long)
    found = lyapunov_certificate(model, x, y, 1.5, eps_max=0.1, steps=3, max_cells=2**14)
    assert found.status == ("verified",)
    for moved in attacks(copy.deepcopy(model).double(), x.double(), y, found.radius):
        assert bool((final_potential(model.double(), moved, y) <= found.end).all())


def aimed(
    classes: int, label: int, width: float = 0.0, bump: float = 0.0, at: float = 1.0, **options
) -> StabilityModel:
    """Return a model that steers to a class, except where the state passes a narrow bump.

    Its choice is ``r_label − r_other = 6``, less ``bump`` where the label's own entry lies within
    ``width`` of ``at``; inputs turn it a little.
    """
    backbone = stabnet.build("linear", kind="backbone", in_shape=(2,), width=9)
    model = assembled(backbone, classes, **({"activation": "softplus"} | options))
    field = model.dynamics.vector_field
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        layer = backbone.net[1]
        layer.bias.copy_(torch.eye(3).flatten())
        layer.weight[0, 0] = 0.01
        field.last.bias[label] = 6.0
        if bump:
            # A hat made of softplus of softplus: a steep rise, and twice as steep a fall.
            field.first.weight[:, label] = 40 / width
            edges = torch.tensor([-width, 0.0, width])
            field.first.bias.copy_(-(40 / width) * (at + edges))
            field.last.weight[label] = -bump / 40 * torch.tensor([1.0, -2.0, 1.0])
    return model


def worst_decrease(model: StabilityModel, label: int, kappa: float) -> float:
    """Return the largest ``V̇ + κV`` on the line on which the state of two classes moves."""
    half = torch.linspace(0, 3, 300_001, dtype=DOUBLE)[None, :, None]
    z = torch.cat([half, -half], -1)
    z = z if label == 0 else z.flip(-1)
    model = copy.deepcopy(model).double()
    y = torch.tensor([label])
    velocity = model.dynamics.vector_field(0.0, z, model.features(torch.zeros(1, 2).double()))
    potential = SupervisedPotential((2,), truncation=0.0)
    v, rate = potential.value_and_rate(z, velocity, Context(label=y))
    target = math.exp(-kappa) * math.log(2)
    return float((rate + kappa * v).masked_fill(v < target, -math.inf).max().detach())


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("width", [0.3, 1e-2, 1e-4, 1e-7])
def test_a_violation_planted_in_a_narrow_place_is_never_called_verified(width, label):
    x, y = torch.zeros(1, 2), torch.tensor([label])
    sane = lyapunov_certificate(aimed(2, label), x, y, 2.0, eps_max=0.1, steps=3)
    assert sane.status == ("verified",)
    planted = aimed(2, label, width=width, bump=9.0, at=0.5)
    found = lyapunov_certificate(planted, x, y, 2.0, eps_max=0.1, steps=3)
    assert found.status != ("verified",)
    assert float(found.radius) == 0
    if width >= 1e-4:
        assert worst_decrease(planted, label, 2.0) > 0  # it is what it is meant to be
        assert found.status == ("falsified",)
        assert float(found.violation) > 0
        assert "not the robustness" in found.reason[0]
        state = found.witness.abs()
        torch.testing.assert_close(state, torch.full_like(state, 0.5), atol=2 * width, rtol=0)


def test_a_bump_too_low_to_matter_is_verified():
    planted = aimed(2, 0, width=0.1, bump=2.0, at=0.5)
    assert worst_decrease(planted, 0, 2.0) < 0
    x, y = torch.zeros(1, 2), torch.zeros(1, dtype=torch.long)
    assert lyapunov_certificate(planted, x, y, 2.0, eps_max=0.1).status == ("verified",)


def test_a_violation_that_is_allowed_for_is_counted():
    planted, kappa = aimed(2, 0, width=0.02, bump=5.8, at=0.5), 2.0
    x, y = torch.zeros(1, 2), torch.zeros(1, dtype=torch.long)
    worst = worst_decrease(planted, 0, kappa)
    assert 0 < worst < 1
    strict = lyapunov_certificate(planted, x, y, kappa, eps_max=0.1, steps=3)
    assert strict.status == ("falsified",)
    allowed = lyapunov_certificate(planted, x, y, kappa, eps_max=0.1, steps=3, slack=1.05 * worst)
    assert allowed.status == ("verified",)
    assert worst <= float(allowed.decrease) <= 1.05 * worst
    delta = math.exp(-kappa) * math.log(2)
    assert float(allowed.end_flow) >= delta + worst / kappa * (1 - math.exp(-kappa))


def test_a_wrong_prediction_is_falsified(trained):
    x, y = circles(8)
    found = lyapunov_certificate(trained, x, 1 - y, KAPPA, eps_max=0.1, steps=2)
    assert set(found.status) == {"falsified"}
    assert all("classified wrongly" in reason for reason in found.reason)
    assert bool((found.radius == 0).all())
    assert found.guarantee().status == "falsified"


def test_a_rate_that_the_flow_does_not_reach_is_not_verified(trained):
    x, y = circles(8)
    found = lyapunov_certificate(trained, x, y, 60.0, eps_max=0.1, steps=2)
    assert set(found.status) == {"falsified"}
    assert bool((found.violation > 0).all())
    assert bool((found.radius == 0).all())


def test_a_rate_too_small_for_any_certificate_is_an_error_that_says_so():
    x, y = torch.zeros(1, 2), torch.zeros(1, dtype=torch.long)
    with pytest.raises(InvalidOptionError, match=r"kappa > 0\.46"):
        lyapunov_certificate(aimed(3, 0), x, y, 0.4, eps_max=0.1)
    with pytest.raises(InvalidOptionError, match="certifies nothing"):
        lyapunov_certificate(aimed(2, 0), x, y, 1e-18, eps_max=0.1)
    small = lyapunov_certificate(aimed(2, 0), x, y, 1e-6, eps_max=0.1, steps=2)
    assert small.status == ("verified",)  # hardly any decay is asked for, and none is claimed
    assert float(small.end) > math.log(2) * (1 - 1e-5)


def test_a_start_that_is_right_already_is_certified():
    model = aimed(2, 0, initial="learned")
    with torch.no_grad():
        model.dynamics.start.copy_(torch.tensor([3.9, -3.9]))
    x, y = torch.zeros(2, 2), torch.tensor([0, 1])
    found = lyapunov_certificate(model, x, y, 1.0, eps_max=0.1, steps=2)
    assert float(found.start[0]) == pytest.approx(math.log1p(math.exp(-7.8)))
    # So near the corner the field is slower than the rate; and the other class starts too far.
    assert found.status == ("falsified", "falsified")
    with torch.no_grad():
        model.dynamics.start.copy_(torch.tensor([1.0, -2.0]))
    found = lyapunov_certificate(model, x[:1], y[:1], 1.0, eps_max=0.1, steps=2)
    assert found.status == ("verified",)
    assert float(found.end) < float(found.start[0])


def test_long_steps_are_bounded_as_they_are_and_short_ones_come_to_the_flow(trained):
    x, y = circles(8)
    options = {"eps_max": 0.2, "steps": 7, "max_boxes": 1}
    flow = lyapunov_certificate(trained, x, y, KAPPA, **options).radius_flow
    previous = torch.zeros_like(flow)
    for step in (0.25, 0.05, 0.02):
        model = stepping(trained, step)
        found = lyapunov_certificate(model, x, y, KAPPA, **options)
        torch.testing.assert_close(found.radius_flow, flow)
        assert bool((found.radius >= previous - 0.2 / 2**6).all())
        previous = found.radius
        for moved in attacks(model.double(), x.double(), y, found.radius, seeds=1):
            assert bool((final_potential(model, moved, y) <= found.end + 1e-9).all())
    assert bool((previous >= 0.9 * flow - 0.2 / 2**7).all())
    euler = stepping(trained, 0.25, "euler")
    found = lyapunov_certificate(euler, x, y, KAPPA, **options)
    for moved in attacks(euler.double(), x.double(), y, found.radius, seeds=1):
        assert bool((final_potential(euler, moved, y) <= found.end + 1e-9).all())


def test_steps_that_blow_up_are_not_verified():
    model = stepping(aimed(2, 0), 1.0, "euler")  # a h = 3 > 2
    x, y = torch.zeros(1, 2), torch.zeros(1, dtype=torch.long)
    found = lyapunov_certificate(model, x, y, 1.0, eps_max=0.1, steps=2)
    assert found.status == ("sampled",)
    assert float(found.radius) == 0 < float(found.radius_flow)
    assert "no cube" in found.reason[0]


def test_an_adaptive_integrator_leaves_a_statement_on_the_exact_flow():
    model = aimed(2, 0, integrator="dopri5")
    x, y = torch.zeros(1, 2), torch.zeros(1, dtype=torch.long)
    found = lyapunov_certificate(model, x, y, 1.0, eps_max=0.1, steps=2)
    assert found.status == ("verified",)
    assert "exact flow" in found.evaluation
    assert torch.equal(found.radius, found.radius_flow)


@pytest.mark.parametrize("kind", ["direction", "classes", "features", "hooked", "broken"])
def test_what_no_covering_speaks_of_is_evidence_at_most(kind):
    x, y = circles(6)
    model = {
        "direction": lambda: untrained(form="direction"),
        "classes": lambda: aimed(4, 0),
        "features": starting_at_features,
        "hooked": lambda: aimed(2, 0),
        "broken": lambda: aimed(2, 0),
    }[kind]()
    if kind == "classes":
        y = torch.zeros_like(y)
    if kind == "hooked":
        model.backbone.register_forward_hook(lambda module, inputs, out: -out)
    if kind == "broken":
        model.dynamics.vector_field.first.weight.data[0] = math.nan
    found = lyapunov_certificate(model, x, y, 3.0, eps_max=0.1, steps=2)
    assert "verified" not in found.status
    assert bool((found.radius == 0).all())
    assert found.guarantee().status in ("sampled", "falsified")
    if kind == "classes":
        assert set(found.status) == {"sampled"}
        assert "too large" in found.reason[0]
        assert bool((found.radius_sampled == 0.1).all())
        assert found.guarantee().status == "sampled"


def starting_at_features() -> StabilityModel:
    backbone = stabnet.build("identity", kind="backbone", in_shape=(2,))
    field = stabnet.build("mlp", kind="vector_field", state_shape=(2,), feature_shape=None)
    flow = Flow(field, stabnet.build("rk4", kind="integrator"), "features")
    return StabilityModel((2,), 2, backbone, flow, nn.Identity())


def test_bad_arguments_are_refused_and_say_why(trained):
    x, y = circles(4)

    def certify(x=x, y=y, kappa=1.0, model=trained, **options):
        return lyapunov_certificate(model, x, y, kappa, **({"eps_max": 0.1} | options))

    for wrong in (math.nan, math.inf):
        bad = x.clone()
        bad[1, 0] = wrong
        with pytest.raises(InvalidInputError, match="finite"):
            certify(bad)
    with pytest.raises(InvalidInputError, match="labels go from 0 to 2"):
        certify(y=torch.tensor([0, 1, 2, 0]))
    with pytest.raises(InvalidInputError, match="one integer class"):
        certify(y=y.float())
    with pytest.raises(InvalidInputError, match="outside of"):
        certify(clip=(0.0, 1.0))
    with pytest.raises(InvalidInputError, match="flow"):
        certify(model=nn.Linear(2, 2))
    for name, value in (("kappa", 0.0), ("eps_max", math.nan), ("v_min", 0.7), ("slack", -1.0)):
        with pytest.raises(InvalidOptionError, match=name):
            certify(**{name: value})
    with pytest.raises(InvalidOptionError, match="max_cells"):
        certify(max_cells=0)


def test_the_model_and_its_modes_stay_as_they_are(trained):
    model, (x, y) = copy.deepcopy(trained).train(), circles(4)
    model.backbone.eval()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    lyapunov_certificate(model, x, y, KAPPA, eps_max=0.1, steps=1)
    assert model.training
    assert not model.backbone.training
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_more_effort_and_a_higher_floor_certify_more(trained):
    x, y = circles(4)
    options = {"eps_max": 0.3, "steps": 5}
    plain = lyapunov_certificate(trained, x, y, KAPPA, max_boxes=1, **options)
    parts = lyapunov_certificate(trained, x, y, KAPPA, max_boxes=4, **options)
    assert bool((parts.radius >= plain.radius).all())
    assert float(parts.radius.mean()) > 1.2 * float(plain.radius.mean())
    floor = lyapunov_certificate(trained, x, y, KAPPA, max_boxes=1, v_min=0.6, **options)
    assert bool((floor.radius >= plain.radius - 0.3 / 2**5).all())
    clipped = lyapunov_certificate(
        trained, x, y, KAPPA, max_boxes=1, clip=(float(x.min()), float(x.max())), **options
    )
    assert bool((clipped.radius >= plain.radius - 1e-12).all())


def test_the_certificate_becomes_json_and_a_guarantee(certificate):
    plain = json.loads(json.dumps(certificate.to_dict(), allow_nan=False))
    assert plain["verified_share"] == certificate.verified_share
    assert len(plain["radius"]) == 40
    guarantee = certificate.guarantee()
    assert guarantee.status == "verified"
    assert f"{certificate.count('verified')} of the 40" in guarantee.claim
    assert "input" in guarantee.claim
    assert guarantee.to_dict() == plain["guarantee"] | {"assumptions": guarantee.assumptions}
