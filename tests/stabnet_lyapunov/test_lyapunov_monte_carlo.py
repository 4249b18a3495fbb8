"""The Monte Carlo Lyapunov loss: what it computes, what it costs, and training with it."""

from __future__ import annotations

import copy
import math
import re

import pytest
import torch
import torch.nn.functional as F
from stabnet_lyapunov import (
    Ball,
    DataControlledField,
    GainSchedule,
    Hypercube,
    LyapunovMonteCarlo,
    RateSchedule,
    SupervisedPotential,
    Trajectory,
    hypercube_size,
)
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import stabnet
from stabnet import Flow, InvalidInputError, InvalidOptionError, StabilityModel
from stabnet.data import from_tensors, split
from stabnet.interfaces import Backbone, Context, VectorField
from stabnet.training import fit

CLASSES, IN = 3, (1, 2, 3)


def _model(seed=0, field=None, **options):
    torch.manual_seed(seed)
    field = {"name": "data_controlled", "activation": "tanh", **(field or {})}
    options = {"backbone": {"name": "linear", "width": 16}, **options}
    return stabnet.build("lyanet", in_shape=IN, num_outputs=CLASSES, vector_field=field, **options)


def _batch(batch=4, seed=0, dtype=torch.float32, classes=CLASSES):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(batch, *IN, generator=generator, dtype=dtype)
    return x, torch.randint(classes, (batch,), generator=generator)


def _gradients(model, loss):
    return [*torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)]


class _Driven(VectorField):
    """A smooth field that depends on time."""

    def __init__(self):
        super().__init__()
        self.state_shape, self.feature_shape = (CLASSES,), (16,)
        self.linear = nn.Linear(16, CLASSES)

    def forward(self, t, z, u=None):
        term = self.linear(u).sin()
        return (1 + t) * (z.roll(1, -1).tanh() + (term.unsqueeze(1) if z.ndim == 3 else term))


# What is computed.


@pytest.mark.parametrize("head", ["identity", "linear"])
@pytest.mark.parametrize("form", ["simplex", "direction", "in time"])
def test_the_rate_is_that_of_finite_differences_along_the_exact_flow(form, head):
    options = {} if form == "in time" else {"field": {"form": form, "gain": 1.0}}
    model = _model(head=head, **options).double()
    field = _Driven().double() if form == "in time" else model.dynamics.vector_field
    x, y = _batch(dtype=torch.float64)
    u, context = model.features(x).detach(), Context(label=y, head=model.head)
    z = torch.randn(4, CLASSES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    potential, t, h = SupervisedPotential((CLASSES,)), 0.3, 1e-3
    exact = stabnet.build("rk4", kind="integrator", step_size=h / 4)

    def value(steps):
        if not steps:
            return potential(z, context)
        return potential(exact(field, z, [t, t + steps * h], u).states[-1], context)

    # Five points: an error of h⁴.
    differences = (value(-2) - 8 * value(-1) + 8 * value(1) - value(2)) / (12 * h)
    rate = potential.value_and_rate(z, field(t, z, u), context)[1]
    torch.testing.assert_close(rate, differences, rtol=1e-6, atol=1e-7)


@pytest.mark.skipif(
    torch.__version__.startswith("2.6."), reason="torch 2.6 draws no symbolic number of integers"
)
@pytest.mark.parametrize("sampler", ["hypercube", {"name": "ball", "times": 2}])
def test_steps_compile_whole(sampler):
    model, (x, y) = _model(), _batch()
    objective = LyapunovMonteCarlo(samples=6, sampler=sampler)
    compiled = torch.compile(
        lambda x, y: objective(model, x, y)[0], fullgraph=True, backend="aot_eager"
    )
    torch.manual_seed(7)
    found = compiled(x, y)
    gradients = _gradients(model, found)
    torch.manual_seed(7)
    loss = objective(model, x, y)[0]
    torch.testing.assert_close(found, loss)
    torch.testing.assert_close(gradients, _gradients(model, loss))


@pytest.mark.parametrize("sampler", ["hypercube", "ball", "trajectory"])
@pytest.mark.parametrize("detach", [False, True])
def test_loss_and_violations_are_those_of_a_loop_over_pairs(sampler, detach):
    head = nn.Linear(CLASSES, CLASSES)
    model = _model(head=head).double()
    sampler = {
        "hypercube": Hypercube(2.0, times=2),
        "ball": Ball(2.0, per_example=True),
        "trajectory": Trajectory(3, 0.5),
    }[sampler]
    objective = LyapunovMonteCarlo(kappa=3.0, samples=6, sampler=sampler, detach=detach)
    x, y = _batch(dtype=torch.float64)
    torch.manual_seed(7)
    loss, logs = objective(model, x, y)

    torch.manual_seed(7)
    u = model.features(x)
    drawn = sampler(model.dynamics, u, 6, 2.0, None)
    terms = []
    for t, states in drawn:
        for i in range(len(x)):
            for z in states[i % len(states)]:
                z = z.detach().requires_grad_()
                value = (F.cross_entropy(head(z), y[i]) - 1e-6).clamp(min=0)
                (gradient,) = torch.autograd.grad(value, z, create_graph=True)
                rate = gradient @ model.dynamics.vector_field(t, z[None], u[i : i + 1])[0]
                terms.append((rate + 3 * (value.detach() if detach else value)).clamp(min=0))
    expected = torch.stack(terms)
    torch.testing.assert_close(loss, expected.mean())
    assert logs["violations"].item() == pytest.approx((expected > 0).double().mean().item())
    for ours, theirs in zip(
        _gradients(model, loss), _gradients(model, expected.mean()), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


class _Loss(nn.Module):
    """Model and objective in one module, as training wraps them."""

    def __init__(self, model, objective):
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, x, y):
        return self.objective(self.model, x, y)[0]


@pytest.mark.parametrize("sampler", [Hypercube(), Ball(per_example=True)])
@pytest.mark.parametrize("form", ["simplex", "direction"])
def test_encoder_gradients_are_nonzero_and_pass_gradcheck(form, sampler):
    objective = LyapunovMonteCarlo(samples=5, kappa=3.0, sampler=sampler, terminal_weight=0.1)
    integrator = {"name": "rk4", "step_size": 0.5}
    model = _model(field={"form": form, "gain": 1.0}, integrator=integrator)
    whole = _Loss(model, objective).double().eval()
    x, y = _batch(2, dtype=torch.float64)
    parameters = dict(whole.named_parameters())
    names = [n for n in parameters if n.startswith("model.backbone")]

    def loss(x, *encoder):
        named = dict(zip(names, encoder, strict=True))
        return torch.func.functional_call(whole, named, (x, y))

    inputs = (x.requires_grad_(), *(parameters[n] for n in names))
    assert len(inputs) == 3
    for gradient in torch.autograd.grad(loss(*inputs), inputs):
        assert gradient.abs().max() > 1e-6
    assert torch.autograd.gradcheck(loss, inputs)


# What it costs.


def _count_evaluations(model):
    calls = []
    model.dynamics.vector_field.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("times", [1, 4])
def test_training_solves_no_equation(times, monkeypatch):
    model = _model()
    calls = _count_evaluations(model)
    features = []
    model.backbone.register_forward_hook(lambda *_: features.append(1))
    sampler = {"name": "hypercube", "times": times}
    objective = LyapunovMonteCarlo(samples=8, sampler=sampler)
    loss, logs = objective(model, *_batch())
    loss.backward()
    assert len(calls) == times
    assert len(features) == 1
    assert "nfe" not in logs
    objective.eval()
    logs = objective(model.eval(), *_batch())[1]
    assert logs["nfe"].item() == len(calls) - 2 * times == 40


class _Largest(TorchDispatchMode):
    """Records the greatest number of entries of any tensor that is made."""

    def __init__(self):
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        sizes = [t.untyped_storage().nbytes() // t.element_size() for t in _tensors(made)]
        self.entries = max([self.entries, *sizes])
        return made


def _tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


@pytest.mark.parametrize("form", ["simplex", "direction"])
@pytest.mark.parametrize("per_example", [False, True])
@pytest.mark.parametrize("head", ["identity", "linear"])
def test_nothing_is_as_large_as_samples_times_classes_squared(form, per_example, head):
    batch, samples, classes, width = 8, 40, 100, 12
    torch.manual_seed(0)
    model = stabnet.build(
        "lyanet",
        in_shape=IN,
        num_outputs=classes,
        backbone={"name": "linear", "width": width**2},
        vector_field={"name": "data_controlled", "form": form, "dropout": 0.1},
        head=head,
    )
    sampler = Hypercube(2.0, per_example)
    objective = LyapunovMonteCarlo(samples=samples, sampler=sampler)
    x, y = _batch(batch, classes=classes)
    with _Largest() as recorded:
        objective(model, x, y)[0].backward()
    # All matrices W(x) for every sample would be batch · samples · width², more than this too.
    assert 0 < recorded.entries <= batch * samples * classes


# Evaluation.


@pytest.mark.parametrize(
    "sampler",
    [
        Hypercube(times=2),
        Hypercube(per_example=True),
        Ball(per_example=True),
        Trajectory(3),
        Trajectory(2, 0.3),
    ],
)
def test_evaluation_is_deterministic_and_its_mean_depends_on_no_batching(sampler):
    model = _model(field={"dropout": 0.5}).double().eval()
    objective = LyapunovMonteCarlo(samples=8, sampler=sampler, terminal_weight=0.5).eval()
    x, y = _batch(6, dtype=torch.float64)
    whole, logs = objective(model, x, y)
    assert torch.equal(objective(model, x, y)[0], whole)
    parts = [objective(model, x[rows], y[rows]) for rows in (slice(0, 1), slice(1, 4), slice(4, 6))]
    for name in ("loss", "violations", "lyapunov_loss", "accuracy"):
        mean = sum(n * p[1][name] for n, p in zip((1, 3, 2), parts, strict=True)) / 6
        torch.testing.assert_close(mean, logs[name], check_dtype=False)


def test_evaluation_leaves_random_numbers_and_schedules_alone():
    model = _model().eval()
    objective = LyapunovMonteCarlo(
        samples=4, kappa_start=1.0, kappa_steps=2, gain_switch=1, sampler=Hypercube(2.0)
    ).eval()
    before, state = copy.deepcopy(objective.state_dict()), torch.get_rng_state()
    gain = model.dynamics.vector_field.gain.clone()
    logs = objective(model, *_batch())[1]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(
        torch.equal(a, b)
        for a, b in zip(before.values(), objective.state_dict().values(), strict=True)
    )
    assert torch.equal(model.dynamics.vector_field.gain, gain)
    assert torch.equal(logs["gain"], gain)
    assert "kappa" not in logs


def test_half_precision_backbones_train():
    model, objective = _model(), LyapunovMonteCarlo(samples=4)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = objective(model, *_batch())
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in model.backbone.parameters())


# Schedules.


def test_the_rate_rises_linearly_and_stays():
    objective = LyapunovMonteCarlo(
        kappa=5.0, kappa_start=1.0, kappa_steps=4, sampler=Hypercube(2.0)
    )
    model, batch = _model(), _batch()
    seen = [objective(model, *batch)[1]["kappa"].item() for _ in range(7)]
    assert seen == [1.0, 2.0, 3.0, 4.0, 5.0, 5.0, 5.0]


def test_the_gain_shrinks_in_the_first_phase_and_grows_in_the_second():
    schedule, gain = GainSchedule(3), torch.tensor(100.0, dtype=torch.float64)
    shares = [0.69, 0.7, 0.2, 0.09, 0.1, 0.11, 0.9]
    expected, seen = [100.0], []
    for share, factor in zip(shares, [0.9999, 1, 0.9999, 1, 1, 1.0001, 1.0001], strict=True):
        expected.append(expected[-1] * factor)
        schedule(gain, torch.tensor(share, dtype=torch.float64))
        seen.append(gain.item())
    assert seen == pytest.approx(expected[1:], rel=1e-7)
    assert schedule.step == 7


def test_the_objective_schedules_the_gain_of_the_model_by_its_own_violations():
    objective = LyapunovMonteCarlo("official", samples=16, gain_switch=2)
    model, batch = _model(field={"form": "direction", "gain": 10.0}), _batch()
    expected = 10.0
    for step in range(4):
        loss, logs = objective(model, *batch)
        loss.backward()  # the gain has changed since, but not what the loss was computed with
        share = logs["violations"].item()
        expected *= (
            0.9999 if step < 2 and share < 0.7 else 1.0001 if step >= 2 and share > 0.1 else 1
        )
        assert logs["gain"].item() == pytest.approx(expected, rel=1e-6)
        assert model.dynamics.vector_field.gain.item() == pytest.approx(expected, rel=1e-6)
    assert expected != 10.0


def test_schedules_go_on_from_a_saved_state():
    def make():
        options = {"kappa_start": 1.0, "kappa_steps": 6, "gain_switch": 3}
        return _model(), LyapunovMonteCarlo(samples=8, sampler=Hypercube(2.0), **options)

    def train(model, objective, steps):
        found = []
        for step in steps:
            torch.manual_seed(step)
            logs = objective(model, *_batch())[1]
            found.append([logs[n].item() for n in ("loss", "kappa", "gain")])
        return found

    whole = train(*make(), range(8))
    model, objective = make()
    first = train(model, objective, range(4))
    resumed_model, resumed = make()
    resumed_model.load_state_dict(model.state_dict())
    resumed.load_state_dict(objective.state_dict())
    assert first + train(resumed_model, resumed, range(4, 8)) == whole


# The plain loss besides.


class _Norm(nn.Module):
    """A head with batch normalization."""

    def __init__(self):
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(CLASSES), nn.Linear(CLASSES, CLASSES)

    def forward(self, z):
        return self.linear(self.norm(z))


def test_the_plain_loss_is_added_and_batch_statistics_are_those_of_one_forward_pass():
    torch.manual_seed(0)
    backbone = {"name": "convnet", "width": 16, "channels": [4, 4]}
    model = stabnet.build(
        "lyanet",
        in_shape=(1, 8, 8),
        num_outputs=CLASSES,
        backbone=backbone,
        head=_Norm(),
    )
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    y = torch.tensor([0, 1, 2, 0, 1])
    plain = copy.deepcopy(model)
    terminal = F.cross_entropy(plain(x), y)
    for sampler in (Ball(2.0), Trajectory(3, 0.1)):
        trained = copy.deepcopy(model)
        objective = LyapunovMonteCarlo(samples=6, sampler=sampler, terminal_weight=0.3)
        loss, logs = objective(trained, x, y)
        torch.testing.assert_close(loss, logs["lyapunov_loss"] + 0.3 * terminal)
        assert logs["loss"] == loss.detach()
        assert logs["nfe"] == 40
        for (name, ours), theirs in zip(
            trained.named_buffers(), _after_one_pass(model, x).buffers(), strict=True
        ):
            torch.testing.assert_close(ours, theirs, msg=lambda m, name=name: f"{name}: {m}")


def _after_one_pass(model, x):
    model = copy.deepcopy(model)
    model(x)
    return model


def test_values_can_be_regressed_on():
    model = _model()
    potential = {"name": "supervised", "loss": "squared_error"}
    objective = LyapunovMonteCarlo(samples=6, sampler=Hypercube(2.0), potential=potential)
    assert objective.task == "regression"
    x, _ = _batch()
    y = torch.randn(4, CLASSES, generator=torch.Generator().manual_seed(2))
    loss, logs = objective.eval()(model.eval(), x, y)
    loss.backward()
    assert next(model.backbone.parameters()).grad.abs().max() > 0
    assert "accuracy" not in logs
    with pytest.raises(InvalidOptionError, match="Give one"):
        LyapunovMonteCarlo(potential=potential)(model, x, y)


# Options.


def test_losses_of_values_have_no_accuracy():
    def absolute(outputs, targets):
        return (outputs - targets).abs().sum(1)

    (x, _), potential = _batch(CLASSES), SupervisedPotential((CLASSES,), absolute)
    objective = LyapunovMonteCarlo(
        samples=4, potential=potential, sampler=Hypercube(2.0), terminal_weight=1.0
    )
    _, logs = objective(_model(), x, torch.rand(CLASSES, CLASSES))
    assert "accuracy" not in logs


@pytest.mark.parametrize("mode", [True, False])
def test_a_solution_that_diverges_is_wrong_and_spoils_no_loss_that_leaves_it_out(mode):
    # Ten steps of rk4 are far too long for the released gain with so few classes.
    model = _model(mode="official", field={"form": "direction", "rate": 20.0})
    x, y = _batch()
    assert not model(x).isfinite().any()
    objective = LyapunovMonteCarlo("official", samples=4, terminal_weight=1.0 if mode else 0.0)
    with torch.no_grad():
        loss, logs = objective.eval()(model.eval(), x, y)
    assert bool(loss.isfinite()) is not mode
    assert logs["accuracy"] == 0


def test_modes_come_to_what_is_documented():
    paper, official = LyapunovMonteCarlo(), LyapunovMonteCarlo("official")
    assert paper.rate(10) == 5.0
    assert official.rate(10) == pytest.approx(math.log(math.sqrt(225 * 10)))
    assert isinstance(paper.sampler, Hypercube)
    assert isinstance(official.sampler, Ball)
    assert (paper.detach, official.detach) == (False, True)
    assert paper.supervision.potential((3,)).truncation == 1e-6
    assert official.supervision.potential((3,)).truncation == 0
    assert paper.samples == official.samples == 512
    assert LyapunovMonteCarlo("official", kappa=2.0).rate(10) == 2.0


@pytest.mark.parametrize(
    ("mode", "sampler", "size"),
    [
        ("paper", "hypercube", hypercube_size(4.0, CLASSES)),
        ("paper", "ball", hypercube_size(4.0, CLASSES) * math.sqrt(CLASSES)),
        ("official", "ball", 15 * math.sqrt(CLASSES)),
        ("official", "hypercube", 15.0),
        ("paper", Hypercube(0.7), 0.7),
    ],
    ids=str,
)
def test_samplers_get_the_documented_size(mode, sampler, size, monkeypatch):
    objective = LyapunovMonteCarlo(mode, kappa=4.0, sampler=sampler)
    seen = []

    def forward(flow, u, samples, size, generator):
        seen.append((samples, size, generator))
        return [(0.0, torch.zeros(1, 1, CLASSES))]

    monkeypatch.setattr(objective.sampler, "forward", forward)
    objective(_model(), *_batch())
    assert seen == [(512, pytest.approx(size), None)]


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "released"},
        {"kappa": 0.0},
        {"kappa": math.inf},
        {"samples": 0},
        {"samples": 2.0},
        {"sampler": "cube"},
        {"sampler": {"size": 1.0}},
        {"sampler": {"name": "trajectory", "size": 1.0}},
        {"terminal_weight": -1.0},
        {"kappa_start": 1.0},
        {"kappa_steps": 3},
        {"kappa_start": -1.0, "kappa_steps": 3},
        {"gain_switch": -1},
        {"gain_switch": 1.5},
        {"potential": "icnn"},
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(InvalidOptionError):
        LyapunovMonteCarlo(**options)


def test_schedules_refuse_what_they_cannot_count():
    with pytest.raises(InvalidOptionError, match="go together"):
        RateSchedule(None, 3)
    with pytest.raises(InvalidOptionError):
        GainSchedule(True)


class _Still(Backbone):
    def __init__(self):
        super().__init__()
        self.in_shape, self.out_shape = IN, (CLASSES,)
        self.linear = nn.Linear(6, CLASSES)

    def forward(self, x):
        return self.linear(x.flatten(1))


def test_models_that_features_do_not_drive_are_refused():
    objective = LyapunovMonteCarlo(samples=4)
    with pytest.raises(InvalidOptionError, match="is one Flow"):
        objective(nn.Linear(2, 2), *_batch())
    deq = stabnet.build("deq", in_shape=IN, num_outputs=CLASSES, backbone="linear")
    with pytest.raises(InvalidOptionError, match="path_integral"):
        objective(deq, *_batch())
    integrator = stabnet.build("rk4", kind="integrator")
    flow = Flow(_Driven(), integrator)
    flow.initial = "features"
    started = StabilityModel(IN, CLASSES, _Still(), flow, nn.Identity())
    with pytest.raises(InvalidOptionError, match="starts at them"):
        objective(started, *_batch())


def test_a_learned_head_needs_a_size_and_a_gain_schedule_a_gain():
    with pytest.raises(InvalidOptionError, match="only where the state itself is"):
        LyapunovMonteCarlo(samples=4)(_model(head="linear"), *_batch())
    driven = StabilityModel(
        IN,
        CLASSES,
        stabnet.build("linear", kind="backbone", in_shape=IN, width=16),
        Flow(_Driven(), stabnet.build("rk4", kind="integrator")),
        nn.Identity(),
    )
    LyapunovMonteCarlo(samples=4)(driven, *_batch())
    with pytest.raises(InvalidOptionError, match="has none"):
        LyapunovMonteCarlo(samples=4, gain_switch=3)(driven, *_batch())


def test_labels_that_do_not_fit_are_refused():
    with pytest.raises(InvalidInputError, match="label 3"):
        LyapunovMonteCarlo(samples=4)(_model(), _batch()[0], torch.tensor([0, 1, 2, 3]))
    with pytest.raises(InvalidInputError, match=r"4 rows .* 1 targets"):
        LyapunovMonteCarlo(samples=4)(_model(), _batch()[0], torch.tensor([0]))


# Training.


def test_training_reaches_good_accuracy_and_leaves_a_report(tmp_path):
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(CLASSES, (240,), generator=generator)
    centers = torch.eye(CLASSES, 6).view(CLASSES, *IN)
    x = 0.6 * centers[y] + 0.4 * torch.rand(240, *IN, generator=generator)
    data = split(from_tensors(x[:160], y[:160], x[160:], y[160:]), validation=0.2)
    model = _model(backbone={"name": "mlp", "width": 16})
    result = fit(
        model,
        data,
        objective={"name": "lyapunov_monte_carlo", "samples": 64},
        epochs=12,
        batch_size=16,
        learning_rate=0.01,
        run_dir=tmp_path / "run",
        progress=False,
        device="cpu",
    )
    assert result.test["accuracy"] > 0.95
    report = (tmp_path / "run" / "report.md").read_text()
    assert "lyapunov_monte_carlo" in report
    assert "violations" in "".join(p.read_text() for p in (tmp_path / "run").glob("*.json*"))
    # The condition holds on most samples, and V has decayed by about κ.
    solution = model.solve(x[160:])
    V = SupervisedPotential((CLASSES,))
    final = V(solution.state, Context(label=y[160:])).mean()
    assert final < 0.1 * math.log(CLASSES)
    assert isinstance(model.dynamics.vector_field, DataControlledField)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"kappa": "5"}, "kappa='5'"),
        ({"kappa": float("nan")}, "kappa=nan"),
        ({"kappa": True}, "kappa=True"),
        ({"samples": 0}, "samples=0"),
        ({"samples": 2.0}, "samples=2.0"),
        ({"detach": "no"}, "detach='no'"),
        ({"terminal_weight": "1"}, "terminal_weight='1'"),
        ({"terminal_weight": -1.0}, "terminal_weight=-1.0"),
        ({"sampler": ["ball"]}, "ball"),
        ({"sampler": "sphere"}, "sphere"),
        ({"sampler": {"name": "ball", "size": "big"}}, "size='big'"),
        ({"sampler": {"name": "ball", "radius": 1.0}}, "radius"),
        ({"kappa_start": 1.0}, "kappa_start=1.0"),
        ({"gain_switch": -1}, "gain_switch=-1"),
    ],
)
def test_an_option_of_the_wrong_type_or_range_is_named(options, named):
    with pytest.raises(InvalidOptionError, match=re.escape(named)):
        stabnet.build("lyapunov_monte_carlo", kind="objective", **options)
