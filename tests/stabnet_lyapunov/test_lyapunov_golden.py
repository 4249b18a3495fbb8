"""The field and the Monte Carlo loss against the released ones, and against plain formulas.

``golden/lyanet_official_*.npz`` hold the values and gradients that the released field and loss of
[LyaNet] gave in double precision with dropout off, on small random inputs and weights, in both
forms of the field: ``direction``, as released, and ``simplex``, its alternative. ``W`` are the
features, ``eta`` the states, ``y`` the labels; the loss is the mean of ``relu(V̇ + κV)``.
"""

from __future__ import annotations

from pathlib import Path
from typing import final

import numpy as np
import pytest
import torch
from stabnet_lyapunov import DataControlledField, LyapunovMonteCarlo, Sampler, SupervisedPotential
from torch import nn

import stabnet
from stabnet import Flow, StabilityModel
from stabnet.interfaces import Context

GOLDEN = Path(__file__).parent / "golden"
FORMS = ["simplex", "direction"]
NAMES = {
    "first.weight": "hidden_to_mlp.weight",
    "first.bias": "hidden_to_mlp.bias",
    "last.weight": "mlp_to_hidden.weight",
    "last.bias": "mlp_to_hidden.bias",
    "activation.weight": "activation.weight",
}
"""Ours, and the released names of the parameters."""


def close(actual, expected, relative=1e-10):
    """Compare in norm and entry by entry, relative to the greatest entry."""
    assert actual.shape == expected.shape
    scale = expected.abs().max().item()
    torch.testing.assert_close(actual, expected, rtol=relative, atol=relative * scale)
    assert ((actual - expected).norm() <= relative * expected.norm()).item()


@pytest.fixture(params=FORMS)
def golden(request):
    with np.load(GOLDEN / f"lyanet_official_{request.param}.npz") as file:
        values = {name: torch.from_numpy(np.array(file[name])) for name in file.files}
    return {"form": request.param, **values}


@pytest.fixture
def field(golden):
    width = golden["W"].shape[1]
    field = DataControlledField(
        (golden["eta"].shape[1],),
        (width**2,),
        form=golden["form"],
        rate=golden["kappa"].item(),
        gain=golden["gain"].item(),
    ).double()
    weights = {ours: golden[f"param.{theirs}"] for ours, theirs in NAMES.items()}
    field.load_state_dict({**weights, "gain": golden["gain"]})
    return field


def check_gradients(golden, field, features):
    close(features.grad.reshape(golden["grad_W"].shape), golden["grad_W"])
    gradients = {name: p.grad for name, p in field.named_parameters()}
    assert gradients.keys() == NAMES.keys()
    for ours, theirs in NAMES.items():
        close(gradients[ours], golden[f"grad.{theirs}"])


def test_parts_reproduce_the_released_values_and_all_gradients(golden, field):
    features = golden["W"].flatten(1).requires_grad_()
    states = golden["eta"].unsqueeze(0)
    velocity = field(0.0, states, features)
    potential = SupervisedPotential(field.state_shape, truncation=0.0)
    value, rate = potential.value_and_rate(states, velocity, Context(label=golden["y"]))
    violation = torch.relu(rate + golden["kappa"] * value)
    for name, ours in (("f", velocity), ("V", value), ("Vdot", rate), ("violation", violation)):
        close(ours, golden[name])
    loss = violation.mean()
    close(loss, golden["loss"])
    loss.backward()
    check_gradients(golden, field, features)


@final
class Given(Sampler):
    """Always the same states."""

    needs_size, size = False, None

    def __init__(self, states):
        super().__init__()
        self.states = states

    def forward(self, flow, u, samples, size, generator):
        return [(0.0, self.states.unsqueeze(0))]


@final
class Stored(nn.Module):
    """A stand-in for a backbone: features by the input's index."""

    def __init__(self, features):
        super().__init__()
        self.features = nn.Parameter(features)
        self.out_shape = tuple(features.shape[1:])

    def forward(self, x):
        return self.features[x[:, 0].long()]


def test_official_objective_reproduces_the_released_loss_and_gradients(golden, field):
    backbone, classes = Stored(golden["W"].flatten(1)), golden["eta"].shape[1]
    flow = Flow(field, stabnet.build("rk4", kind="integrator"))
    model = StabilityModel((1,), classes, backbone, flow, nn.Identity()).double()
    objective = LyapunovMonteCarlo("official", sampler=Given(golden["eta"]))
    assert objective.rate(classes) == pytest.approx(golden["kappa"].item(), rel=1e-15)
    loss, logs = objective(model, torch.arange(len(golden["y"])).double()[:, None], golden["y"])
    close(loss, golden["loss"])
    close(logs["violations"].double(), (golden["violation"] > 0).double().mean(), 1e-6)
    loss.backward()
    check_gradients(golden, field, backbone.features)


def expanded(field, states, features, y, kappa):
    """Return velocity, V, V̇ and loss by the formulas as they stand, one state at a time.

    Features are repeated for every state, corners are formed, and V is differentiated by autograd.
    """
    batch, (samples, classes) = len(y), states.shape[-2:]
    width = field.first.out_features
    W = features.view(batch, 1, width, width).repeat(1, samples, 1, 1).flatten(0, 1)
    eta = states.expand(batch, samples, classes).flatten(0, 1).detach().requires_grad_()
    slope = field.activation.weight

    def prelu(a):
        return torch.where(a >= 0, a, slope * a)

    hidden = prelu(eta @ field.first.weight.T + field.first.bias)
    r = prelu(torch.einsum("nij,nj->ni", W, hidden)) @ field.last.weight.T + field.last.bias
    corners = field.corner * (2 * torch.eye(classes, dtype=eta.dtype) - 1)
    if field.form == "simplex":
        mean = torch.einsum("nk,kj->nj", r.softmax(-1), corners)
        velocity = field.rate * field.gain / classes * (mean - eta)
    else:
        d = r / r.norm(dim=-1, keepdim=True)
        towards = corners - eta.unsqueeze(1)
        share = torch.einsum("nkj,nj->nk", towards, d).softmax(-1)
        w = (towards.norm(dim=-1) * share).mean(-1, keepdim=True)
        velocity = field.rate * field.gain * w * d
    label = y.repeat_interleave(samples)
    V = torch.nn.functional.cross_entropy(eta, label, reduction="none")
    (gradient,) = torch.autograd.grad(V.sum(), eta)
    rate = (gradient * velocity).sum(-1)
    loss = torch.relu(rate + kappa * V.detach()).mean()
    return (*(part.unflatten(0, (batch, samples)) for part in (velocity, V, rate)), loss)


def random_problem(form, classes, width, batch, samples, seed):
    torch.manual_seed(seed)
    field = DataControlledField((classes,), (width**2,), form, rate=4.0).double()
    nn.init.uniform_(field.activation.weight, -0.5, 1.5)
    features = torch.randn(batch, width**2, dtype=torch.float64).requires_grad_()
    y = torch.randint(classes, (batch,))
    radius = 15 * classes**0.5 * torch.rand(samples, 1, dtype=torch.float64)
    direction = torch.randn(samples, classes, dtype=torch.float64)
    states = radius * torch.nn.functional.normalize(direction, dim=-1)
    # … and half of them near the corners, where distances nearly vanish.
    corners = 15 * (2 * torch.eye(classes, dtype=torch.float64) - 1)
    near = corners[torch.arange(samples) % classes]
    near = near + torch.logspace(-8, 0, samples, dtype=torch.float64)[:, None] * direction
    states = torch.where((torch.arange(samples) % 2 == 0)[:, None], states, near)
    return field, features, y, states


SIZES = [
    # classes, width, batch, samples
    (2, 3, 5, 7),
    (3, 8, 4, 1),
    (10, 5, 1, 16),
    (10, 16, 6, 12),
    (37, 4, 3, 80),
]


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "per_example"])
def test_parts_agree_with_the_formulas_as_they_stand(form, size, seed, shared):
    field, features, y, states = random_problem(form, *size, seed)
    if shared:
        states = states.unsqueeze(0)
    else:
        states = states + torch.randn(len(y), 1, 1, dtype=torch.float64)
    kappa, parameters = 3.0, [features, *field.parameters()]
    *expected, expected_loss = expanded(field, states, features, y, kappa)
    expected_gradients = torch.autograd.grad(expected_loss, parameters)

    velocity = field(0.0, states, features)
    potential = SupervisedPotential(field.state_shape, truncation=0.0)
    value, rate = potential.value_and_rate(states, velocity, Context(label=y))
    loss = torch.relu(rate + kappa * value.detach()).mean()
    for ours, theirs in zip((velocity, value, rate), expected, strict=True):
        close(ours, theirs)
    close(loss, expected_loss)
    for ours, theirs in zip(torch.autograd.grad(loss, parameters), expected_gradients, strict=True):
        close(ours, theirs)


@pytest.mark.parametrize("form", FORMS)
def test_one_state_per_example_is_a_set_of_one_sample(form):
    field, features, y, states = random_problem(form, 10, 5, 6, 6, seed=3)
    expected = expanded(field, states.unsqueeze(1), features, y, 3.0)[:3]
    velocity = field(0.0, states, features)
    potential = SupervisedPotential(field.state_shape, truncation=0.0)
    value, rate = potential.value_and_rate(states, velocity, Context(label=y))
    for ours, theirs in zip((velocity, value, rate), expected, strict=True):
        close(ours, theirs.squeeze(1))


def test_single_precision_keeps_the_distance_to_a_near_corner():
    field, features, _, _ = random_problem("direction", 10, 5, 1, 1, seed=4)
    corner = 15 * (2 * torch.eye(10, dtype=torch.float64)[3] - 1)
    # Steer towards that corner, so that its distance alone makes the velocity's size.
    with torch.no_grad():
        field.last.weight.zero_()
        field.last.bias.copy_(corner)
    for distance in (1e-1, 1e-2, 1e-3):
        state = (corner + distance * torch.eye(10, dtype=torch.float64)[5])[None]
        exact = field(0.0, state.float().double(), features)
        rounded = field.float()(0.0, state.float(), features.float())
        close(rounded.double(), exact, 1e-5)
        field.double()


def test_gradients_at_a_corner_are_finite():
    field, features, _, _ = random_problem("direction", 4, 3, 1, 1, seed=5)
    corner = (15 * (2 * torch.eye(4, dtype=torch.float64)[2] - 1))[None].requires_grad_()
    (gradient,) = torch.autograd.grad(field(0.0, corner, features).sum(), corner)
    assert gradient.isfinite().all()
