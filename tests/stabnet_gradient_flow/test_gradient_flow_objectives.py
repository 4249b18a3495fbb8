"""Objectives with a margin: against plain loops, their invariances, limits, and training."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

import stabnet
from stabnet import InvalidInputError, InvalidOptionError
from stabnet.training import fit

NAMES = ("margin_cross_entropy", "margin_hinge")


def objective(name="margin_cross_entropy", **options):
    return stabnet.build(name, kind="objective", **options)


def model(seed=0, **options):
    torch.manual_seed(seed)
    given = {"channels": (2,), "blocks": (1,), "in_shape": (1, 4, 4), "num_outputs": 3, **options}
    built = stabnet.build("nonexpansive_net", **given)
    if isinstance(built.head, nn.Linear):
        nn.init.normal_(built.head.weight)
        nn.init.normal_(built.head.bias)
    return built.double().eval()


def batch(size=6, shape=(1, 4, 4), dtype=torch.float64):
    x = torch.rand(size, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x.to(dtype), torch.arange(size) % 3


def reference_radii(network, x, y, expansion=1.0):
    """Return, sample by sample, the radii to the other classes by a plain loop."""
    logits = network(x).detach()
    found = []
    for f, label in zip(logits, y.tolist(), strict=True):
        radii = []
        for j in range(len(f)):
            if j == label:
                continue
            distance = math.sqrt(2)
            if isinstance(network.head, nn.Linear):
                w = network.head.weight.detach()
                distance = math.sqrt(sum(float(e) ** 2 for e in w[label] - w[j]))
            radii.append(float(f[label] - f[j]) / (expansion * distance))
        found.append(radii)
    return found


def norm_head(network):
    """Give a network a head that is not affine, with three outputs."""
    network.head = nn.Sequential(nn.Linear(32, 3), nn.Tanh()).double()
    return network


def untrained():
    torch.manual_seed(0)
    options = {"in_shape": (1, 8, 8), "num_outputs": 10, "channels": (2,), "blocks": (1,)}
    return stabnet.build("nonexpansive_net", **options)


def digits():
    return stabnet.data.split(stabnet.data.load("digits"))


# What they compute


@pytest.mark.parametrize("case", ["plain", "normalized", "other head"])
def test_losses_are_those_of_a_plain_loop(case):
    network, expansion = model(), 1.0
    if case == "normalized":
        network, expansion = model(mean=(0.4,), std=(0.25,)), 4.0
    if case == "other head":
        network = norm_head(network)
    x, y = batch()
    radii = reference_radii(network, x, y, expansion)
    margin, t = 0.7, 0.3
    hinge = sum(max(0.0, margin - min(r)) for r in radii) / len(radii)
    soft = sum(t * math.log1p(sum(math.exp((margin - m) / t) for m in r)) for r in radii)
    found = objective("margin_hinge", margin=margin)(network, x, y)[0]
    assert float(found.detach()) == pytest.approx(hinge, rel=1e-7)
    found = objective(margin=margin, temperature=t)(network, x, y)[0]
    assert float(found.detach()) == pytest.approx(soft / len(radii), rel=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_logs_say_accuracy_and_the_share_beyond_the_margin(name):
    network = model()
    x, y = batch(30)
    nearest = [min(r) for r in reference_radii(network, x, y)]
    right = sorted(r for r in nearest if r > 0)
    margin = right[len(right) // 2] - 1e-9
    certified = len(right) - len(right) // 2
    assert 0 < certified < len(right) < 30
    logs = objective(name, margin=margin)(network, x, y)[1]
    assert set(logs) == {"loss", "accuracy", "nominal_certified", "nfe"}
    assert float(logs["accuracy"]) == pytest.approx(len(right) / 30)
    assert float(logs["nominal_certified"]) == pytest.approx(certified / 30)
    assert not any(value.requires_grad or value.shape for value in logs.values())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [2, 1e-30, 1e30])
def test_scale_of_the_last_layer_does_not_change_the_loss(name, scale):
    network, loss = model().float(), objective(name)
    x, y = batch(dtype=torch.float32)
    before = loss(network, x, y)[0]
    with torch.no_grad():
        network.head.weight.mul_(scale)
        network.head.bias.mul_(scale)
    after = loss(network, x, y)[0]
    torch.testing.assert_close(after, before, rtol=1e-5 if scale != 2 else 0, atol=0)
    after.backward()
    assert network.head.weight.grad.isfinite().all()


def test_cross_entropy_tends_to_the_hinge_as_the_temperature_does_to_zero():
    network = model()
    x, y = batch(30)
    hinge = objective("margin_hinge", margin=0.6)(network, x, y)[0]
    gaps = []
    for t in (1e-1, 1e-2, 1e-3, 1e-9):
        soft = objective(margin=0.6, temperature=t)(network, x, y)[0]
        gaps.append(float((soft - hinge).detach()))
        assert -1e-14 <= gaps[-1] <= t * math.log(3)  # log of the number of classes
    assert all(later <= gap + 1e-14 for gap, later in pairwise(gaps))
    assert gaps[-1] < 1e-8 < gaps[0]


def test_loss_of_very_low_temperature_has_finite_gradients():
    network = model().float()
    x, y = batch(dtype=torch.float32)
    loss = objective(margin=5.0, temperature=1e-6)(network, x, y)[0]
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("head", ["linear", "identity"])
def test_nominal_radii_are_the_certified_ones_of_a_renormalized_model(head):
    options = {"features": (3,), "dense_block": "gradient_flow", "mean": (0.5,), "std": (0.25,)}
    network = model(head=head, **options)
    stabnet.renormalize(network)
    x, y = batch(30)
    certified = stabnet.certify.certified_radii(network, x, y).radius
    hinge = objective("margin_hinge", margin=100.0)  # 100 less the radius, for a single sample
    losses = [hinge(network, x[i : i + 1], y[i : i + 1])[0].detach() for i in range(30)]
    nominal = (100 - torch.stack(losses)).clamp(min=0)
    assert (certified > 0).any()
    assert (certified <= nominal).all()
    torch.testing.assert_close(certified, nominal, rtol=1e-4, atol=1e-12)


# Gradients


@pytest.mark.parametrize("name", NAMES)
def test_gradients_agree_with_central_differences(name):
    network, loss = model(mean=(0.4,), std=(0.25,)), objective(name, margin=0.7)
    x, y = batch(3)
    names = [n for n, _ in network.named_parameters()]

    def value(x, *parameters):
        swapped = dict(zip((f"model.{n}" for n in names), parameters, strict=True))
        return torch.func.functional_call(Trained(network, loss), swapped, (x, y))

    parameters = [p.detach().clone().requires_grad_() for p in network.parameters()]
    assert torch.autograd.gradcheck(value, (x.requires_grad_(), *parameters))


class Trained(nn.Module):
    def __init__(self, network, loss):
        super().__init__()
        self.model, self.loss = network, loss

    def forward(self, x, y):
        return self.loss(self.model, x, y)[0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", ["equal rows", "zero"])
def test_rows_that_coincide_give_a_finite_loss_and_gradient(name, value):
    network = model()
    with torch.no_grad():
        if value == "zero":
            network.head.weight.zero_()
        else:
            network.head.weight[1] = network.head.weight[0]
    loss = objective(name)(network, *batch())[0]
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


# Where they are used


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("head", ["linear", "orthogonal"])
def test_objective_compiles_whole(name, head):
    trained = Trained(model(head=head), objective(name))
    x, y = batch()
    compiled = torch.compile(trained, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, y), trained(x, y))


@pytest.mark.parametrize("name", NAMES)
def test_mixed_precision_computes_margins_in_single(name):
    network, loss = model().float(), objective(name)
    x, y = batch(dtype=torch.float32)
    exact = loss(network, x, y)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(network, x, y)[0]
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, exact, rtol=0.05, atol=0.02)
    value.backward()
    assert network.head.weight.grad.isfinite().all()


def test_plain_module_counts_as_non_expansive_without_a_known_head():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double()
    x, y = batch(1)
    logits = plain(x).detach()[0]
    nearest = float(logits[y[0]] - logits[[j for j in range(3) if j != int(y[0])]].max())
    loss, logs = objective("margin_hinge", margin=1.0)(plain, x, y)
    assert float(loss.detach()) == pytest.approx(max(0.0, 1 - nearest / math.sqrt(2)))
    assert "nfe" not in logs


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.zeros(6), "whole numbers"),
        (torch.zeros(6, dtype=torch.bool), "whole numbers"),
        (torch.zeros(5, dtype=torch.long), "shape"),
        (torch.tensor([0, 1, 2, 3, 0, 1]), "label 3 but the model has 3 outputs"),
        (torch.tensor([0, 1, 2, -1, 0, 1]), "label -1"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_labels_that_are_none_are_refused(name, y, message):
    with pytest.raises(InvalidInputError, match=message):
        objective(name)(model(), batch()[0], y)


def test_one_output_has_no_margin():
    with pytest.raises(InvalidInputError, match="two classes"):
        objective()(model(num_outputs=1), batch()[0], torch.zeros(6, dtype=torch.long))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("margin_cross_entropy", {"margin": 0}),
        ("margin_cross_entropy", {"margin": math.inf}),
        ("margin_cross_entropy", {"temperature": 0.0}),
        ("margin_cross_entropy", {"temperature": "warm"}),
        ("margin_hinge", {"margin": -1.0}),
        ("margin_hinge", {"margin": math.nan}),
    ],
)
def test_options_out_of_range_are_refused(name, options):
    with pytest.raises(InvalidOptionError, match=next(iter(options))):
        objective(name, **options)


# Training


@pytest.mark.parametrize("name", NAMES)
def test_steps_on_digits_lower_the_loss_and_raise_the_radius(name):
    loader = digits().loader("train", batch_size=128, shuffle=False, augment=False)
    x, y = next(iter(loader))
    network = untrained()
    loss = objective(name)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    history = []
    for _ in range(40):
        optimizer.zero_grad()
        value, logs = loss(network, x, y)
        value.backward()
        optimizer.step()
        history.append(logs)
    assert history[-1]["loss"] < 0.3 * history[0]["loss"]
    assert history[-1]["nominal_certified"] > 0.3 > history[0]["nominal_certified"]


def test_fit_trains_for_the_radius_and_judges_epochs_by_the_loss(tmp_path):
    network = untrained()
    options = {"epochs": 3, "batch_size": 64, "learning_rate": 2e-2, "progress": False}
    loss = {"name": "margin_cross_entropy", "margin": 0.3}
    result = fit(network, digits(), objective=loss, run_dir=tmp_path / "run", **options)
    losses = [record["validation_loss"] for record in result.history]
    assert losses[-1] < losses[0]
    assert result.history[-1]["validation_nominal_certified"] > 0.3
    assert result.history[0].keys() >= {"validation_accuracy", "train_nominal_certified"}
