"""The path-integral Lyapunov loss, against differences, closed forms and hand computations."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from stabnet_lyapunov import continuous_net, resnet18
from torch import nn

import stabnet
from stabnet import Flow, InvalidInputError, InvalidOptionError, StabilityModel, Stack
from stabnet.interfaces import Block, VectorField

CLASSES = 3


def _objective(**options):
    return stabnet.build("lyapunov_path_integral", kind="objective", **options)


def _rk4(step_size=0.25):
    return stabnet.build("rk4", kind="integrator", step_size=step_size)


class _Normalized(Block):
    """A smooth change of space with batch normalization."""

    def __init__(self, before, after, stride=1):
        super().__init__()
        self.state_shape = before
        self.conv = nn.Conv2d(before[0], after, 3, stride=stride, padding=1)
        self.norm = nn.BatchNorm2d(after)

    def forward(self, z, u=None):
        return self.norm(self.conv(z)).tanh()


class _NormalizedField(VectorField):
    """A smooth field with batch normalization, not autonomous, driven or not."""

    def __init__(self, shape, driven=False):
        super().__init__()
        self.state_shape, self.feature_shape = shape, shape if driven else ()
        self.conv = nn.Conv2d(shape[0], shape[0], 3, padding=1)
        self.norm = nn.BatchNorm2d(shape[0])

    def forward(self, t, z, u=None):
        return (1 + t) * self.norm(self.conv(z).tanh()) + (0 if u is None else u.sin())


def _stacked(initial="features"):
    """Return a smooth stack: flow, change of space, block of one shape, flow, average."""
    torch.manual_seed(0)
    backbone = stabnet.build("stem", kind="backbone", in_shape=(1, 8, 8), channels=2)
    backbone.net[2] = nn.Tanh()
    first, second = (2, 8, 8), (3, 4, 4)
    driven = initial == "zeros"
    stages = [
        Flow(_NormalizedField(first), _rk4(0.5), "features"),
        _Normalized(first, 3, stride=2),
        _Normalized(second, 3),
        Flow(_NormalizedField(second, driven), _rk4(0.5), initial),
        stabnet.build("average_pool", kind="block", state_shape=second),
    ]
    model = StabilityModel((1, 8, 8), CLASSES, backbone, Stack(stages), nn.Linear(3, CLASSES))
    return model.double()


def _flow(head=True):
    """Return a smooth flow driven by features, with a learned head or none."""
    torch.manual_seed(0)
    backbone = stabnet.build("linear", kind="backbone", in_shape=(5,), width=4)
    field = stabnet.build(
        "mlp",
        kind="vector_field",
        state_shape=(CLASSES,),
        feature_shape=(4,),
        hidden=(6,),
        time_dependent=True,
    )
    last = nn.Linear(CLASSES, CLASSES) if head else nn.Identity()
    return StabilityModel((5,), CLASSES, backbone, Flow(field, _rk4(0.1)), last).double()


def _batch(model, size=4):
    generator = torch.Generator().manual_seed(1)
    dtype = next(model.parameters()).dtype
    x = torch.rand(size, *model.in_shape, generator=generator, dtype=dtype)
    return x, torch.randint(model.num_outputs, (size,), generator=generator)


def _potential(logits, y, truncation=1e-6):
    return (F.cross_entropy(logits, y, reduction="none") - truncation).relu()


def _buffers(model):
    return {name: b.clone() for name, b in model.named_buffers()}


def _stack_terms(model, x, y, kappa, h=1e-5):
    """Return ``V̇ + κV`` of the smooth stack, by differences of ``V`` along its fields."""
    first, change, kept, second, pool = copy.deepcopy(model).dynamics.stages
    carries = second.initial == "features"

    def potential(z, stages):
        for stage in stages:
            z = stage(z).state if isinstance(stage, Flow) else stage(z)
        return _potential(model.head(z), y)

    times, terms = [k / 3 for k in range(4)], []
    before = model.backbone(x)
    after = kept(change(first(before, times).state))
    for flow, start, stages in (
        (first, before, [change, *([] if carries else [second]), pool]),
        (second, after, [pool]),
    ):
        for t, z in zip(times, flow(start, times).states, strict=True):
            f = flow.vector_field(t, z, None if flow.initial == "features" else start)
            ahead, behind = potential(z + h * f, stages), potential(z - h * f, stages)
            terms.append((ahead - behind) / (2 * h) + kappa * potential(z, stages))
    return torch.stack(terms)


@pytest.mark.parametrize("initial", ["features", "zeros"])
@pytest.mark.parametrize("training", [False, True])
def test_loss_of_a_stack_is_that_of_differences_along_its_fields(initial, training):
    """Through batch normalization in training mode the potentials of all samples move at once."""
    model = _stacked(initial).train(training)
    x, y = _batch(model)
    loss, logs = _objective(kappa=0.01)(copy.deepcopy(model), x, y)
    terms = _stack_terms(model, x, y, 0.01)
    torch.testing.assert_close(loss, terms.relu().mean(), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(logs["violations"], (terms > 0).float().mean())
    assert 0 < logs["violations"] < 1


def test_rate_along_a_flow_is_that_of_the_potential_in_time():
    model = _flow().eval()
    x, y = _batch(model)
    u, flow, h = model.features(x), model.dynamics, 1e-4
    terms = []
    for k in range(1, 5):
        t = k / 4
        z = flow(u, (0.0, t)).state if k < 4 else flow(u, (0.0, 0.25, 0.5, 0.75, 1.0)).state
        ends = [flow.integrator(flow.vector_field, z, (t, t + s), u).states[-1] for s in (h, -h)]
        ahead, behind = (_potential(model.head(end), y) for end in ends)
        terms.append((ahead - behind) / (2 * h) + 9.0 * _potential(model.head(z), y))
    z = torch.zeros(4, CLASSES, dtype=torch.float64)
    ends = [z + s * flow.vector_field(0.0, z, u) for s in (h, -h)]
    ahead, behind = (_potential(model.head(end), y) for end in ends)
    terms.append((ahead - behind) / (2 * h) + 9.0 * _potential(model.head(z), y))
    loss, logs = _objective(kappa=9.0, points=5)(model, x, y)
    assert logs["violations"] == 1
    torch.testing.assert_close(loss, torch.stack(terms).mean(), rtol=1e-6, atol=1e-7)


def test_zero_loss_of_a_field_that_decays_fast_enough_and_its_excess_elsewhere():
    """For ``ż = −2(z − y)`` and ``V = ½|z − y|²``, ``V̇ = −4V``."""

    class Decay(VectorField):
        state_shape = feature_shape = (CLASSES,)

        def forward(self, t, z, u=None):
            return -2 * (z - u)

    backbone = stabnet.build("identity", kind="backbone", in_shape=(CLASSES,))
    model = StabilityModel((CLASSES,), CLASSES, backbone, Flow(Decay(), _rk4(0.01)), nn.Identity())
    y = torch.randn(6, CLASSES, dtype=torch.float64)
    potential = {"name": "supervised", "loss": "squared_error", "truncation": 0.0}
    options = {"potential": potential, "points": 3}
    loss, logs = _objective(kappa=3.999, **options)(model, y, y)
    assert loss == logs["violations"] == 0
    assert "accuracy" not in logs
    start = 0.5 * y.square().sum(1)
    mean = start.mean() * (1 + math.exp(-2) + math.exp(-4)) / 3
    loss, logs = _objective(kappa=4.5, **options)(model, y, y)
    torch.testing.assert_close(loss, 0.5 * mean, rtol=1e-7, atol=0)
    torch.testing.assert_close(logs["potential"], start.mean() * math.exp(-4), rtol=1e-7, atol=0)
    least = 1 - math.exp(-2)
    discrete = {"condition": "discrete", **options}
    assert _objective(kappa=least - 1e-6, **discrete)(model, y, y)[0] == 0
    loss, _ = _objective(kappa=least + 0.1, **discrete)(model, y, y)
    expected = 0.1 * start.mean() * (1 + math.exp(-2)) / 2
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    assert _objective(potential=potential).task == "regression"
    with pytest.raises(InvalidInputError, match="target values"):
        _objective(**options)(model, y, y[:, :1])


@pytest.mark.parametrize("condition", ["continuous", "discrete"])
@pytest.mark.parametrize("make", [_flow, _stacked])
def test_gradients_of_the_loss_pass_gradcheck(make, condition):
    """In the encoder, the fields, what joins them and the head; in training mode of the model."""
    model = make().train()
    x, y = _batch(model, 3)
    objective = _objective(
        kappa=0.9, points=3, condition=condition, terminal_weight=0.1, detach=False
    )
    names = [name for name, _ in model.named_parameters()]
    values = [p.detach().clone().requires_grad_() for p in model.parameters()]

    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self):
            return objective(self.model, x, y)[0]

    def loss(*values):
        named = {f"model.{n}": v for n, v in zip(names, values, strict=True)}
        # Recorded statistics of batch normalization are replaced too, so that none moves.
        named |= {f"model.{n}": b.clone() for n, b in model.named_buffers()}
        return torch.func.functional_call(Loss(), named, ())

    assert torch.autograd.gradcheck(loss, values, fast_mode=True, atol=1e-5)
    gradients = dict(zip(names, torch.autograd.grad(loss(*values), values), strict=True))
    encoder = [g for name, g in gradients.items() if name.startswith("backbone")]
    assert encoder
    assert all(g.abs().max() > 1e-3 for g in encoder)


def _tiny_continuous_net():
    torch.manual_seed(0)
    return continuous_net(in_shape=(1, 8, 8), num_outputs=CLASSES, channels=(3, 4), pieces=2)


@pytest.mark.parametrize(
    ("make", "condition"),
    [
        (_tiny_continuous_net, "continuous"),
        (_tiny_continuous_net, "discrete"),
        (lambda: resnet18(in_shape=(1, 16, 16), num_outputs=CLASSES), "discrete"),
    ],
)
@pytest.mark.parametrize("terminal_weight", [0.0, 1.0])
def test_statistics_of_batch_normalization_are_those_of_one_forward(
    make, condition, terminal_weight
):
    model = make().train()
    plain, (x, y) = copy.deepcopy(model), _batch(model)
    logits, solution = plain.run(x)
    objective = _objective(condition=condition, terminal_weight=terminal_weight)
    loss, logs = objective(model, x, y)
    loss.backward()
    expected = _buffers(plain)
    assert all(torch.equal(b, expected[n]) for n, b in model.named_buffers())
    assert all(m.track_running_stats for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    assert logs["nfe"] == solution.nfe
    assert logs["accuracy"] == (logits.argmax(1) == y).float().mean()
    terminal = F.cross_entropy(logits, y)
    torch.testing.assert_close(loss, logs["lyapunov_loss"] + terminal_weight * terminal)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("training", [False, True])
def test_discrete_loss_of_a_residual_network_is_that_of_a_hand_computation(training):
    torch.manual_seed(0)
    model = resnet18(in_shape=(1, 16, 16), num_outputs=CLASSES).double().train(training)
    x, y = _batch(model)
    by_hand = copy.deepcopy(model)
    a, b, to128, c, to256, d, to512, e, pool = by_hand.dynamics.stages

    def read(z, *stages):
        for stage in (*stages, pool):
            z = stage(z)
        return _potential(by_hand.head(z), y, 0.0)

    z0 = by_hand.backbone(x)
    z1 = a(z0)
    z2 = b(z1)
    z3 = to128(z2)
    z4 = c(z3)
    z5 = to256(z4)
    z6 = d(z5)
    z7 = to512(z6)
    z8 = e(z7)
    pairs = [
        (read(z0, to128, to256, to512), read(z1, to128, to256, to512)),
        (read(z1, to128, to256, to512), read(z2, to128, to256, to512)),
        (read(z3, to256, to512), read(z4, to256, to512)),
        (read(z5, to512), read(z6, to512)),
        (read(z7), read(z8)),
    ]
    kappa = 1 - math.exp(-10 / 9)
    expected = torch.stack([(after + (kappa - 1) * before).relu() for before, after in pairs])
    objective = _objective(mode="official", condition="discrete")
    loss, logs = objective(model, x, y)
    torch.testing.assert_close(loss, expected.mean())
    torch.testing.assert_close(logs["violations"], (expected > 0).float().mean())
    torch.testing.assert_close(logs["potential"], read(z8).mean())


def test_discrete_loss_of_flows_in_a_stack_takes_the_pairs_along_each():
    model = _tiny_continuous_net().double().eval()
    x, y = _batch(model)
    solution = model.solve(x)
    terms = []
    for stage, later in ((1, [3]), (3, [])):
        states = solution.stages[stage].states
        values = [_potential(model.decode(z, stage, skip=later), y) for z in states]
        terms += [v + (0.4 - 1) * w for w, v in pairwise(values)]
    loss, _ = _objective(condition="discrete", kappa=0.4)(model, x, y)
    torch.testing.assert_close(loss, torch.stack(terms).relu().mean())


def test_a_stack_evaluates_alike_with_and_without_gradients():
    for condition in ("continuous", "discrete"):
        model = _stacked().eval()
        x, y = _batch(model)
        objective = _objective(condition=condition, kappa=0.5).eval()
        expected = objective(model, x, y)
        for mode in (torch.no_grad(), torch.inference_mode()):
            with mode:
                loss, logs = objective(model, x, y)
            torch.testing.assert_close(loss, expected[0].detach(), rtol=1e-12, atol=0)
            assert logs.keys() == expected[1].keys()


def test_holding_the_rate_term_fixed_changes_gradients_alone():
    model = _flow()
    x, y = _batch(model)
    found = []
    for detach in (False, True):
        loss, _ = _objective(kappa=2.0, detach=detach)(model, x, y)
        found.append((loss, torch.autograd.grad(loss, model.head.weight)[0]))
    assert torch.equal(found[0][0], found[1][0])
    assert not torch.allclose(found[0][1], found[1][1])


@pytest.mark.parametrize(
    ("options", "rate"),
    [
        ({}, 5.0),
        ({"condition": "discrete"}, 0.999955),
        ({"mode": "official"}, math.log(math.sqrt(225 * 10))),
        ({"mode": "official", "condition": "discrete"}, 0.6708),
        ({"mode": "official", "kappa": 2.0}, 2.0),
    ],
)
def test_rates_are_those_of_the_paper_and_the_release(options, rate):
    objective = _objective(**options)
    assert objective.rate(10) == pytest.approx(rate, rel=1e-4)
    assert objective.detach == (options.get("mode") == "official")


def test_the_rate_rises_in_training_and_is_final_in_evaluation():
    model = _flow()
    x, y = _batch(model)
    objective = _objective(kappa=3.0, kappa_start=1.0, kappa_steps=2).train()
    seen = [float(objective(model, x, y)[1]["kappa"]) for _ in range(4)]
    assert seen == [1.0, 2.0, 3.0, 3.0]
    assert torch.equal(
        objective.eval()(model, x, y)[0], _objective(kappa=3.0).eval()(model, x, y)[0]
    )


@pytest.mark.parametrize("times", [(0.0, 0.5, 1.0, 2.0), (0.0, 3.0)])
def test_states_are_kept_at_even_times_or_at_the_flows_own(times):
    model = _flow().eval()
    model.dynamics.times = times
    x, y = _batch(model)
    seen = []
    model.dynamics.register_forward_hook(lambda m, given, out: seen.append(out.times.tolist()))
    _objective()(model, x, y)
    _objective(points=3)(model, x, y)
    assert seen[0] == (list(times) if len(times) > 2 else [0.0, 1.0, 2.0, 3.0])
    assert seen[1] == [0.0, times[-1] / 2, times[-1]]


def test_training_makes_potentials_decay_at_the_rate_asked_for():
    model = _flow(head=False)
    x, y = _batch(model, 8)
    objective = _objective(kappa=1.0, points=5)
    optimizer = torch.optim.Adam(model.parameters(), 0.03)
    for _ in range(150):
        optimizer.zero_grad()
        objective(model, x, y)[0].backward()
        optimizer.step()
    states = model.solve(x, (0.0, 0.25, 0.5, 0.75, 1.0)).states
    start = math.log(CLASSES)
    for k, z in enumerate(states):
        assert (_potential(z, y) <= 1.02 * start * math.exp(-k / 4)).all()


def test_nothing_of_the_size_of_classes_squared_is_kept():
    classes = 200
    backbone = stabnet.build("linear", kind="backbone", in_shape=(5,), width=4)
    field = stabnet.build(
        "mlp", kind="vector_field", state_shape=(classes,), feature_shape=(4,), hidden=(3,)
    )
    model = StabilityModel((5,), classes, backbone, Flow(field, _rk4(0.5)), nn.Identity())
    x, y = torch.rand(6, 5), torch.arange(6)
    sizes = []

    def pack(tensor):
        sizes.append(tensor.untyped_storage().nbytes() // tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        _objective(points=3)(model, x, y)
    assert 0 < max(sizes) <= 6 * classes * 3


class _Halve(Block):
    state_shape = (4,)

    def forward(self, z, u=None):
        return z[:, :2]


def test_models_without_a_path_are_refused():
    x, y = torch.rand(2, 4), torch.tensor([0, 1])
    equilibrium = stabnet.build("deq", in_shape=(4,), num_outputs=2, backbone="identity")
    with pytest.raises(InvalidOptionError, match="this one has Equilibrium"):
        _objective(condition="discrete")(equilibrium, x, y)
    with pytest.raises(InvalidOptionError, match="got Linear"):
        _objective()(nn.Linear(4, 2), x, y)
    backbone = stabnet.build("identity", kind="backbone", in_shape=(4,))
    halved = StabilityModel((4,), 2, backbone, Stack([_Halve()]), nn.Identity())
    with pytest.raises(InvalidOptionError, match="use condition='discrete'"):
        _objective()(halved, x, y)
    with pytest.raises(InvalidOptionError, match="no stage of this model keeps the shape"):
        _objective(condition="discrete")(halved, x, y)
    assert (_objective().dynamics, _objective(condition="discrete").dynamics) == ("flow", "any")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "released"}, "'paper' or 'official'"),
        ({"condition": "exact"}, "'continuous' or 'discrete'"),
        ({"kappa": 0.0}, "kappa=0.0"),
        ({"kappa": math.inf}, "kappa=inf"),
        ({"kappa": 1.0, "condition": "discrete"}, "below 1 for the discrete"),
        ({"kappa_start": 2.0, "kappa_steps": 3, "condition": "discrete"}, "kappa_start=2.0"),
        ({"points": 1}, "points=1"),
        ({"points": 2.5}, "points=2.5"),
        ({"terminal_weight": -1.0}, "terminal_weight"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, words):
    with pytest.raises(InvalidOptionError, match=words):
        _objective(**options)
