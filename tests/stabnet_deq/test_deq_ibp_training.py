"""Certified training: schedule and loss of the objective, the model, a training on the digits."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from stabnet_deq import IntervalCrossEntropy, StridedConv

import stabnet
from stabnet import bounds, certify

CONV = {"name": "strided_conv", "channels": [3, 4], "width": 8}
SOLVER = {"name": "picard", "tolerance": 1e-12, "max_evaluations": 200}


def _model(seed: int = 0, **options):
    torch.manual_seed(seed)
    options = {"backbone": CONV, "solver": SOLVER, **options}
    return stabnet.build("ibp_mondeq", in_shape=(1, 8, 8), num_outputs=4, **options)


def _batch(batch: int = 6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(batch, 1, 8, 8, generator=generator, dtype=dtype)
    return x, torch.randint(4, (batch,), generator=generator)


def test_radius_and_kappa_wait_and_then_grow_linearly():
    objective = IntervalCrossEntropy(
        eps=0.1, train_eps=0.12, kappa=0.5, warmup_steps=2, ramp_steps=4
    )
    model, (x, y) = _model().double(), _batch()
    radii = []
    for _ in range(8):
        radii.append(objective.schedule())
        _, logs = objective(model, x, y)
        assert float(logs["eps"]) == pytest.approx(radii[-1][0])
    shares = [0, 0, 0.25, 0.5, 0.75, 1, 1, 1]
    expected = [(0.12 * s, 0.5 * s) for s in shares]
    torch.testing.assert_close(torch.tensor(radii), torch.tensor(expected))


def test_evaluation_uses_the_full_radius_and_counts_no_step():
    objective = IntervalCrossEntropy(eps=0.1, train_eps=0.12, warmup_steps=5).eval()
    model, (x, y) = _model().double().eval(), _batch()
    _, logs = objective(model, x, y)
    assert float(logs["eps"]) == pytest.approx(0.1)
    assert int(objective.step) == 0


def test_steps_are_part_of_the_state_so_that_training_resumes():
    objective = IntervalCrossEntropy(warmup_steps=1, ramp_steps=10)
    model, (x, y) = _model().double(), _batch()
    for _ in range(4):
        objective(model, x, y)
    other = IntervalCrossEntropy(warmup_steps=1, ramp_steps=10)
    other.load_state_dict(objective.state_dict())
    assert other.schedule() == objective.schedule() != (0.0, 0.0)


def test_no_ramp_is_a_jump():
    objective = IntervalCrossEntropy(eps=0.1, kappa=0.4, warmup_steps=0, ramp_steps=0)
    assert objective.schedule() == (0.1, 0.4)


def test_loss_mixes_clean_and_worst_logits():
    objective = IntervalCrossEntropy(eps=0.03, kappa=0.3).eval()
    model, (x, y) = _model().double(), _batch()
    loss, logs = objective(model, x, y)
    margins = certify.margin_bounds(model, x, y, 0.03)
    expected = 0.7 * F.cross_entropy(model(x), y) + 0.3 * F.cross_entropy(-margins, y)
    torch.testing.assert_close(loss, expected)
    others = ~F.one_hot(y, 4).bool()
    verified = ((margins > 0) | ~others).all(1).double().mean()
    assert float(logs["accuracy"]) == pytest.approx(float(verified))


def test_without_radius_the_loss_is_the_cross_entropy():
    objective = IntervalCrossEntropy(eps=0.0, kappa=0.7).eval()
    model, (x, y) = _model().double(), _batch()
    loss, logs = objective(model, x, y)
    torch.testing.assert_close(loss, F.cross_entropy(model(x), y))
    assert logs["accuracy"] == logs["clean_accuracy"]


def test_the_worst_case_reaches_every_parameter():
    objective = IntervalCrossEntropy(eps=0.05, kappa=1.0).eval()
    model, (x, y) = _model().double(), _batch()
    objective(model, x, y)[0].backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": -0.1}, "eps=-0.1"),
        ({"eps": float("nan")}, "eps=nan"),
        ({"train_eps": 8}, "8/255"),
        ({"kappa": 1.5}, "kappa=1.5"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"ramp_steps": 2.5}, "whole number"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(stabnet.InvalidOptionError, match=message):
        IntervalCrossEntropy(**options)


def test_a_model_without_bounds_is_refused():
    model = stabnet.build("deq", in_shape=(1, 8, 8), num_outputs=4, backbone=CONV)
    with pytest.raises(stabnet.StabnetError, match="bounds"):
        IntervalCrossEntropy().eval()(model, *_batch(dtype=torch.float32))


def test_strided_features_lie_within_their_bounds():
    torch.manual_seed(0)
    backbone = StridedConv((1, 9, 8), channels=[3, 4], width=5).double()
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(4, 1, 9, 8, generator=generator, dtype=torch.float64)
    lower, upper = bounds.interval(backbone, x - 0.1, x + 0.1, sound=True)
    for _ in range(50):
        noise = 0.2 * torch.rand(x.shape, generator=generator, dtype=x.dtype) - 0.1
        u = backbone(x + noise)
        assert (lower <= u).all()
        assert (u <= upper).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_shape": (1, 3, 8)}, "at least 4 pixels"),
        ({"in_shape": (64,)}, "images"),
        ({"in_shape": (1, 8, 8), "width": 0}, "positive"),
        ({"in_shape": (1, 8, 8), "channels": (0,)}, "positive"),
    ],
)
def test_strided_convolutions_refuse_what_cannot_be(options, message):
    with pytest.raises(stabnet.InvalidOptionError, match=message):
        StridedConv(**options)


def test_model_survives_saving_with_default_backbone(tmp_path):
    model = stabnet.build("ibp_mondeq", in_shape=(1, 8, 8), num_outputs=4)
    x, _ = _batch(dtype=torch.float32)
    stabnet.save(model, tmp_path / "model.safetensors")
    loaded = stabnet.load(tmp_path / "model.safetensors")
    assert torch.equal(loaded(x), model(x))
    assert loaded.config["backbone"]["name"] == "linear"
    assert loaded.dynamics.cell.state_shape == (200,)


def test_training_on_digits_certifies_most_of_them(tmp_path):
    data = stabnet.data.split(stabnet.data.load("digits"), seed=0)
    torch.manual_seed(0)
    model = stabnet.build(
        "ibp_mondeq",
        in_shape=data.dataset.in_shape,
        num_outputs=data.dataset.num_outputs,
        backbone={"name": "linear", "width": 32},
    )
    before = copy.deepcopy(model)
    result = stabnet.training.fit(
        model,
        data,
        objective={"name": "ibp", "eps": 0.02, "warmup_steps": 40, "ramp_steps": 100},
        epochs=10,
        batch_size=50,
        learning_rate=5e-3,
        run_dir=tmp_path / "run",
        progress=False,
    )
    batches = [(x, y) for x, y in stabnet.data.loader(data.test, batch_size=500)]
    report = certify.verified_accuracy(model, batches, 0.02)
    assert report.clean_accuracy > 0.93
    assert report.verified_accuracy > 0.8
    assert certify.verified_accuracy(before, batches, 0.02).verified_accuracy < 0.2
    # What training reports as its accuracy agrees with what is proven, up to rounding.
    assert result.test["accuracy"] == pytest.approx(report.verified_accuracy, abs=0.01)
    pgd = {"name": "pgd", "eps": 0.02, "step_size": 0.005, "steps": 10}
    attacked = stabnet.robustness.attack_model(model, batches, pgd)
    assert attacked.robust_accuracy >= report.verified_accuracy
