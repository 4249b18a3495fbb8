"""The certificate against what is meant to deceive it: nothing false is ever called verified."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import pytest
import torch
from stabnet_lyapunov import DataControlledField, lyapunov_certificate
from stabnet_lyapunov.certificate.inputs import region_of
from stabnet_lyapunov.certificate.scheme import exact_flow
from stabnet_lyapunov.certificate.system import read_system
from stabnet_lyapunov.certificate.theorem import _continuity
from torch import nn

import stabnet
from stabnet import Flow, StabilityModel
from stabnet.interfaces import Integrator

DOUBLE = torch.float64


def steered(
    classes: int = 2, method: str = "rk4", step: float = 0.1, times=(0.0, 1.0), **options
) -> StabilityModel:
    """Return a model of one ReLU unit of the input that steers to class 0, wherever it is."""
    backbone = nn.Sequential(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 4))
    options = {"rate": 3.0, "gain": float(classes), "corner": 4.0, "activation": "tanh"} | options
    field = DataControlledField((classes,), (4,), **options)
    integrator = stabnet.build(method, kind="integrator", step_size=step)
    flow = Flow(field, integrator, "zeros", times)
    model = StabilityModel((2,), classes, backbone, flow, nn.Identity()).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        field.last.bias[0] = 4.0
    return model


def certify(model: nn.Module, label: int = 0, kappa: float = 2.0, **options):
    x, y = torch.zeros(1, 2, dtype=DOUBLE), torch.tensor([label])
    return lyapunov_certificate(model, x, y, kappa, **({"eps_max": 0.5, "steps": 5} | options))


class Damped(StabilityModel):
    def forward(self, x):
        return -super().forward(x)


class Turned(DataControlledField):
    def choice(self, z, u):
        return -super().choice(z, u)


class Opposite(nn.Linear):
    def forward(self, x):
        return -super().forward(x)


class Longer(Integrator):
    """Says that it takes the steps of one method, and takes others."""

    def __init__(self) -> None:
        super().__init__()
        self.tableau = stabnet.build("rk4", kind="integrator").tableau
        self.step_size = 0.1
        self.inner = stabnet.build("euler", kind="integrator", step_size=0.25)

    def forward(self, vector_field, z0, times, u=None):
        return self.inner(vector_field, z0, times, u)


def deceive(model: StabilityModel, how: str) -> None:
    field = model.dynamics.vector_field
    if how == "subclass":
        model.__class__ = Damped
    elif how == "features":
        model.features = lambda x: torch.zeros(len(x), 4).to(x)
    elif how == "field":
        field.__class__ = Turned
    elif how == "method":
        field._read = lambda mixed: -DataControlledField._read(field, mixed)
    elif how == "layer":
        field.last.__class__ = Opposite
    elif how == "dropout":
        field.dropout = nn.Tanh()
    elif how == "activation":
        field.activation = nn.ELU(alpha=3.0)
    else:
        model.dynamics.integrator = Longer()


@pytest.mark.parametrize(
    "how",
    ["subclass", "features", "field", "method", "layer", "dropout", "activation", "integrator"],
)
@pytest.mark.parametrize("label", [0, 1])
def test_a_model_that_computes_something_else_than_its_classes_is_not_covered(how, label):
    model = steered()
    assert certify(model).status == ("verified",)
    deceive(model, how)
    found = certify(model, label)
    assert found.status != ("verified",)
    assert float(found.radius) == float(found.radius_flow) == 0


@pytest.mark.parametrize("offset", [0.05, 0.45])
@pytest.mark.parametrize("height", [4.0, 1e8])
def test_a_spike_in_the_input_limits_the_radius(offset, height):
    model = steered()
    field = model.dynamics.vector_field
    with torch.no_grad():
        # Nothing of the input arrives until x₁ exceeds the offset; then the choice turns steeply.
        model.backbone[0].weight[0, 0] = 1.0
        model.backbone[0].bias[0] = -offset
        model.backbone[2].weight[0, 0] = height
        field.first.bias[0] = 1.0
        field.last.weight[0, 0] = -20.0
    found = certify(model)
    assert found.status == ("verified",)
    radius = float(found.radius)
    line = offset + torch.logspace(-9, 0, 2000, dtype=DOUBLE)
    x = torch.stack([line, torch.zeros_like(line)], 1)
    with torch.no_grad():
        flipped = line[model(x).argmax(1) != 0]
    assert radius < float(flipped.min())
    assert radius > offset - 0.02  # and it is no smaller than it need be
    grid = torch.cartesian_prod(*[torch.linspace(-radius, radius, 41, dtype=DOUBLE)] * 2)
    with torch.no_grad():
        potential = -model(grid).log_softmax(1)[:, 0]
    assert float(potential.max()) <= float(found.end)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_labels_of_every_integer_type_are_labels(dtype):
    x, y = torch.zeros(2, 2, dtype=DOUBLE), torch.tensor([1, 0], dtype=dtype)
    found = lyapunov_certificate(steered(), x, y, 2.0, eps_max=0.1, steps=0)
    assert found.status == ("falsified", "verified")


@pytest.mark.parametrize("method", ["euler", "midpoint", "rk4"])
@pytest.mark.parametrize("classes", [2, 3])
def test_steps_of_several_lengths_never_leave_their_common_region(method, classes):
    lengths = (0.6, 0.3, 0.05)
    model = steered(classes, method, 0.6, times=(0.0, 0.6, 0.9, 0.95))
    system = read_system(model)
    assert [float(s.step) for s in system.steps] == pytest.approx(list(lengths))
    one = torch.ones(1, dtype=DOUBLE)
    region = region_of(system, system.steps, one, one)
    assert region is not None
    generator = torch.Generator().manual_seed(0)
    for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2)):
        z = torch.zeros(500, classes, dtype=DOUBLE)
        for k in order * 10:
            scheme = system.steps[k]
            chosen = torch.randint(0, classes, (len(scheme.weights), 500, 1), generator=generator)
            targets = torch.full((len(scheme.weights), 500, classes), -4.0, dtype=DOUBLE)
            targets = targets.scatter(2, chosen, 4.0)
            moved = (float(w) * s for w, s in zip(scheme.weights, targets, strict=True))
            z = float(scheme.kept) * z + sum(moved)
            assert float(z.abs().max()) <= region.half_width * (1 + 1e-12)
            assert region.sums[0] - 1e-9 <= float(z.sum(1).min())
            assert float(z.sum(1).max()) <= region.sums[1] + 1e-9


def test_one_step_too_long_leaves_no_common_region():
    model = steered(method="euler", step=1.0, times=(0.0, 1.0, 1.1))  # a h = 3, then 0.3
    found = certify(model, kappa=1.0)
    assert float(found.radius) == 0 < float(found.radius_flow)
    assert found.status == ("sampled",)
    assert "smaller step_size" in found.reason[0]
    system = read_system(model)
    one = torch.ones(1, dtype=DOUBLE)
    assert region_of(system, system.steps, one, one) is None
    assert region_of(system, [exact_flow(Fraction(3))], one, one) is not None


@pytest.mark.parametrize("name", ["gain", "rate", "corner"])
def test_a_field_that_is_turned_around_is_not_covered(name):
    model = steered()
    field = model.dynamics.vector_field
    setattr(field, name, -getattr(field, name))
    found = certify(model)
    assert "verified" not in found.status
    assert float(found.radius_flow) == 0


def test_the_continuity_of_softplus_counts_the_drop_where_it_becomes_the_identity():
    for activation in (nn.Softplus(), nn.Softplus(beta=2.0, threshold=1.0)):
        slope, jump = _continuity(activation)
        x = torch.linspace(-3, 30, 200_001, dtype=DOUBLE)
        y = activation(x)
        assert bool(((y[1:] - y[:-1]).abs() <= slope * (x[1:] - x[:-1]) + jump).all())
        assert jump <= 1.01 * float((y[:-1] - y[1:]).max()) + 1e-3


def test_inputs_that_move_nothing_are_looked_at_without_an_error():
    model = steered(4)  # too many classes to be covered
    found = certify(model, kappa=1.5)
    assert found.status == ("sampled",)
    assert float(found.radius_sampled) == 0.5


def test_inputs_without_an_upper_bound_become_json():
    found = certify(steered(), clip=(-1.0, math.inf), steps=0)
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["clip"] == [-1.0, None]


def test_only_states_of_the_region_refute_the_hypothesis():
    model = steered(method="euler", step=0.6)  # a h = 1.8: iterates leave the cube of the flow
    found = certify(model, kappa=1.0)
    moved = model.solve(torch.zeros(1, 2, dtype=DOUBLE), (0.0, 0.6)).state
    assert bool((moved.abs() > 4).any())
    assert found.status[0] != "falsified"
    assert float(found.radius_flow) > 0
