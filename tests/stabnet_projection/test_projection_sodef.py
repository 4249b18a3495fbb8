"""SODEF: its field, its penalties against an independent reference, its phases, its freezing."""

from __future__ import annotations

import math

import pytest
import stabnet_projection as projection
import torch
from torch import nn

import stabnet
from stabnet import InvalidInputError, InvalidOptionError
from stabnet.interfaces import VectorField

CONVNET = {"name": "convnet", "channels": [4], "width": 6}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def inputs(batch=6, dtype=torch.float32, seed=0):
    x = torch.rand(batch, 1, 8, 8, generator=generator(seed), dtype=dtype)
    return x, torch.arange(batch) % 3


def model(seed=0, **options):
    torch.manual_seed(seed)
    given = {"backbone": CONVNET, "frozen": True, "width": 4, "time": 1.0, **options}
    return stabnet.build("sodef", in_shape=(1, 8, 8), num_outputs=3, **given)


def objective(**options):
    return stabnet.build("sodef", kind="objective", **options)


def train(network, loss, steps=3, **options):
    """Take steps on one batch, in training mode, and return the names of what moved."""
    before = {n: t.clone() for n, t in network.state_dict().items()}
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), 1e-2, **options)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(network, *inputs())[0].backward()
        optimizer.step()
    after = network.state_dict()
    return {n for n, t in before.items() if not torch.equal(t, after[n])}


class Linear(VectorField):
    """A given matrix."""

    state_shape, feature_shape = (2,), ()

    def __init__(self, matrix):
        super().__init__()
        self.matrix = nn.Parameter(torch.tensor(matrix))

    def forward(self, t, z, u=None):
        return z @ self.matrix.T


class Start(nn.Module):
    """A head that gives one known state for any features."""

    def __init__(self, state):
        super().__init__()
        self.state = nn.Parameter(torch.tensor(state))

    def forward(self, features):
        return self.state.expand(len(features), -1)


# The field


def test_sine_field_has_the_jacobian_of_its_formula():
    field = stabnet.build("sine", kind="vector_field", state_shape=(2, 3), feature_shape=())
    field = field.double()
    z = torch.randn(5, 2, 3, generator=generator(), dtype=torch.float64)
    weight, bias = field.linear.weight, field.linear.bias
    angle = z.flatten(1) @ weight.T + bias
    torch.testing.assert_close(field(0.0, z).flatten(1), -torch.sin(angle))
    expected = -torch.cos(angle)[:, :, None] * weight
    torch.testing.assert_close(projection.field_jacobian(field, 0.0, z), expected)


def test_sine_field_takes_many_states_for_one_set_of_features():
    field = stabnet.build("sine", kind="vector_field", state_shape=(4,), feature_shape=(2, 3))
    z, u = torch.randn(2, 7, 4, generator=generator()), torch.randn(2, 2, 3, generator=generator(1))
    expected = torch.stack([field(0.0, z[:, k], u) for k in range(7)], 1)
    torch.testing.assert_close(field(0.0, z, u), expected)


def test_sine_field_refuses_other_shapes_and_missing_features():
    field = stabnet.build("sine", kind="vector_field", state_shape=(4,), feature_shape=(3,))
    with pytest.raises(InvalidInputError, match="states of shape"):
        field(0.0, torch.zeros(2, 5), torch.zeros(2, 3))
    with pytest.raises(InvalidInputError, match="driven by features"):
        field(0.0, torch.zeros(2, 4))


# The fixed class vectors


@pytest.mark.parametrize(("classes", "size"), [(2, 1), (3, 2), (10, 64), (10, 9)])
def test_class_vectors_are_a_regular_simplex(classes, size):
    vectors = projection.class_vectors(classes, size)
    expected = torch.full((classes, classes), -1 / (classes - 1)).fill_diagonal_(1)
    torch.testing.assert_close(vectors @ vectors.T, expected)
    torch.testing.assert_close(vectors.sum(0), torch.zeros(size))


def test_class_vectors_need_room():
    with pytest.raises(InvalidOptionError, match="at least 9 features"):
        projection.class_vectors(10, 8)


# The penalties


def reference(form, field, z, weights):
    """Return the weighted penalties by a loop over samples and entries."""
    some = z if form == "joint" else z[:8]
    speed = diagonal = dominance = 0.0
    for point in z:
        f = field(0.0, point[None])[0]
        speed = speed + (f.norm() if form == "joint" else ((50 * f) ** 2).mean())
    for point in some:
        jacobian = torch.autograd.functional.jacobian(
            lambda p: field(0.0, p[None])[0], point, create_graph=True
        )
        n = len(point)
        for i in range(n):
            line = jacobian[i] if form == "joint" else jacobian[:, i]
            excess = sum(line[j].abs() for j in range(n) if j != i) - line[i].abs()
            if form == "joint":
                diagonal = diagonal + jacobian[i, i].exp()
                dominance = dominance + excess.exp()
            else:
                diagonal = diagonal + (jacobian[i, i] + 1).exp() / n
                dominance = dominance + (0.1 * (excess + 1)).exp() / n
    parts = (speed / len(z), diagonal / len(some), dominance / len(some))
    return sum(w * part for w, part in zip(weights, parts, strict=True))


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({"form": "joint"}, (1.0, 0.05, 0.05)),
        ({"form": "phased", "phase": "stability"}, (0.2, 10.0, 10.0)),
    ],
)
def test_penalties_and_their_gradients_are_those_of_a_loop_over_jacobians(options, weights):
    network = model(vector_field={"name": "mlp", "hidden": [5]}).double().eval()
    x, y = inputs(10, torch.float64)
    parameters = list(network.dynamics.vector_field.parameters())
    loss, logs = objective(**options)(network, x, y)
    expected = reference(
        options["form"], network.dynamics.vector_field, network.features(x), weights
    )
    if options["form"] == "joint":
        expected = expected + nn.functional.cross_entropy(network(x), y)
    torch.testing.assert_close(loss, expected)
    assert logs["loss"] == loss
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    wanted = torch.autograd.grad(expected, parameters, allow_unused=True)
    for one, other in zip(found, wanted, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other)


def test_penalties_of_a_linear_field_are_those_computed_by_hand():
    head = Start([1.0, 2.0])
    network = model(width=2, feature_head=head, vector_field=Linear([[-3.0, 1.0], [0.5, -2.0]]))
    _, logs = objective()(network, *inputs())
    assert logs["field_term"] == pytest.approx(math.hypot(-1.0, -3.5), rel=1e-6)
    assert logs["diagonal_term"] == pytest.approx(math.exp(-3) + math.exp(-2), rel=1e-6)
    assert logs["dominance_term"] == pytest.approx(math.exp(-2) + math.exp(-1.5), rel=1e-6)
    assert (logs["dominant"], logs["extended"]) == (1, 0)
    _, logs = objective(form="phased", phase="stability")(network, *inputs())
    assert logs["field_term"] == pytest.approx(2500 * (1 + 3.5**2) / 2, rel=1e-6)
    assert logs["diagonal_term"] == pytest.approx((math.exp(-2) + math.exp(-1)) / 2, rel=1e-6)
    columns = (math.exp(0.1 * (0.5 - 3 + 1)) + math.exp(0.1 * (1 - 2 + 1))) / 2
    assert logs["dominance_term"] == pytest.approx(columns, rel=1e-6)


def test_loss_has_correct_gradients():
    network = model(vector_field={"name": "mlp", "hidden": [3]}).double().eval()
    x, y = inputs(3, torch.float64)
    field, loss = network.dynamics.vector_field, objective()
    names = [n for n, _ in field.named_parameters()]

    def value(*parameters):
        changed = dict(zip((f"dynamics.vector_field.{n}" for n in names), parameters, strict=True))

        class Call(nn.Module):
            def __init__(self):
                super().__init__()
                self.network = network

            def forward(self):
                return loss(self.network, x, y)[0]

        changed = {f"network.{n}": p for n, p in changed.items()}
        return torch.func.functional_call(Call(), changed, ())

    given = [p.detach().clone().requires_grad_() for p in field.parameters()]
    assert torch.autograd.gradcheck(value, given)


def test_exponentials_of_large_jacobians_stay_finite_and_push_the_diagonal_down():
    network = model(width=2, vector_field=Linear([[500.0, 900.0], [0.0, 1.0]]))
    network.dynamics.times = (0.0, 1e-4)
    loss, logs = objective()(network, *inputs())
    loss.backward()
    assert loss.isfinite()
    gradient = network.dynamics.vector_field.matrix.grad
    assert gradient.isfinite().all()
    assert gradient[0, 0] > 0
    # Of the four exponents (500, 1; 400, −1) two are beyond the limit.
    assert logs["extended"] == 0.5
    expected = math.exp(30) * (1 + 470 + 470**2 / 2) + math.e
    assert logs["diagonal_term"] == pytest.approx(expected, rel=1e-5)


def test_loss_is_the_same_in_inference_mode():
    network, (x, y) = model().eval(), inputs()
    expected = objective()(network, x, y)[0]
    with torch.inference_mode():
        found = objective()(network, x, y)[0]
    torch.testing.assert_close(found, expected.detach())


def test_a_field_that_couples_samples_is_refused():
    class Coupled(Linear):
        def __init__(self):
            super().__init__([[1.0, 0.0], [0.0, 1.0]])
            self.norm = nn.BatchNorm1d(2)

        def forward(self, t, z, u=None):
            return self.norm(z)

    with pytest.raises(InvalidInputError, match="couples the samples"):
        objective()(model(width=2, vector_field=Coupled()), *inputs())


# What trains


def test_the_joint_form_trains_all_but_the_frozen_backbone():
    moved = train(model(), objective())
    assert {n.split(".")[0] for n in moved} == {"backbone", "dynamics", "head"}
    assert not any(n.startswith("backbone.backbone") for n in moved)
    assert any(n.startswith("backbone.feature_head") for n in moved)


@pytest.mark.parametrize(
    ("phase", "where"),
    [("features", "backbone.feature_head."), ("stability", "dynamics."), ("head", "head.")],
)
def test_each_phase_trains_its_part_alone(phase, where):
    moved = train(model(), objective(form="phased", phase=phase))
    assert moved
    assert all(n.startswith(where) for n in moved)


@pytest.mark.parametrize(("phase", "moves"), [("features", True), ("stability", False)])
def test_a_backbone_that_is_not_frozen_moves_in_the_phase_of_the_features_alone(phase, moves):
    moved = train(model(frozen=False), objective(form="phased", phase=phase))
    assert any(n.startswith("backbone.backbone") for n in moved) == moves
    assert any("running_mean" in n for n in moved) == moves


def test_a_frozen_backbone_stays_bit_identical_with_its_statistics():
    backbone = stabnet.build(CONVNET, kind="backbone", in_shape=(1, 8, 8))
    network = model(backbone=backbone)
    before = {n: t.clone() for n, t in backbone.state_dict().items()}
    train(network, objective(), weight_decay=0.1)
    assert not any(m.training for m in network.backbone.backbone.modules())
    assert network.backbone.feature_head.training
    for name, tensor in network.backbone.backbone.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_freezing_a_backbone_leaves_the_module_that_was_given_alone():
    backbone = stabnet.build(CONVNET, kind="backbone", in_shape=(1, 8, 8))
    network = model(backbone=backbone)
    assert all(p.requires_grad for p in backbone.parameters())
    assert not any(p.requires_grad for p in network.backbone.backbone.parameters())
    assert backbone.training


def test_gradients_pass_through_a_frozen_backbone():
    x, _ = inputs()
    model()(x.requires_grad_()).sum().backward()
    assert x.grad.abs().sum() > 0


def test_a_model_on_a_trained_backbone_is_saved_and_loaded_exactly(tmp_path):
    backbone = stabnet.build(CONVNET, kind="backbone", in_shape=(1, 8, 8))
    with torch.no_grad():
        for _ in range(2):
            backbone(inputs()[0])  # moves the statistics
    network = model(backbone=backbone)
    train(network, objective())
    stabnet.save(network, tmp_path / "sodef.safetensors")
    loaded = stabnet.load(tmp_path / "sodef.safetensors")
    x, _ = inputs()
    assert torch.equal(loaded.eval()(x), network.eval()(x))
    assert loaded.train().backbone.backbone.training is False


def test_fit_trains_the_joint_form_and_every_phase(tmp_path):
    x, y = inputs(24)
    data = stabnet.data.split(stabnet.data.from_tensors(x, y, x[:6], y[:6]), 0.25)
    network = model()
    phases = [{"form": "phased", "phase": p} for p in ("features", "stability", "head")]
    for index, options in enumerate([{}, *phases]):
        fitted = stabnet.training.fit(
            network,
            data,
            objective={"name": "sodef", **options},
            epochs=1,
            batch_size=9,
            run_dir=tmp_path / str(index),
            device="cpu",
            progress=False,
        )
        assert fitted.complete
        assert math.isfinite(fitted.test["loss"])


def test_a_backbone_that_is_built_here_trains_unless_frozen():
    """Frozen at random weights, it would leave nothing to learn of the inputs."""
    network = stabnet.build(
        "sodef", in_shape=(1, 8, 8), num_outputs=3, backbone=CONVNET, width=4, time=1.0
    )
    moved = train(network, objective())
    assert any(n.startswith("backbone.backbone") for n in moved)


def test_one_phase_after_the_other_on_a_trained_backbone_learns_and_keeps_what_was_learned(
    tmp_path,
):
    x = 0.5 * torch.rand(150, 1, 8, 8, generator=generator())
    y = torch.arange(150) % 3
    x[torch.arange(150), 0, 2 * y] += 0.5  # a bright row tells the class
    data = stabnet.data.split(stabnet.data.from_tensors(x, y, x[:60], y[:60]), 0.2)

    def fit(module, loss, name, **options):
        return stabnet.training.fit(
            module,
            data,
            objective=loss,
            batch_size=16,
            learning_rate=1e-2,
            run_dir=tmp_path / name,
            device="cpu",
            progress=False,
            **options,
        )

    backbone = stabnet.build("mlp", kind="backbone", in_shape=(1, 8, 8), width=16)
    fit(nn.Sequential(backbone, nn.Linear(16, 3)), "cross_entropy", "backbone", epochs=10)
    network = model(backbone=backbone, width=8)
    seen = [{n: t.clone() for n, t in network.state_dict().items()}]
    for phase, epochs in (("features", 5), ("stability", 1), ("head", 10)):
        loss = {"name": "sodef", "form": "phased", "phase": phase}
        fitted = fit(network, loss, phase, epochs=epochs)
        seen.append({n: t.clone() for n, t in network.state_dict().items()})
    # A part keeps for good what its phase came to; the backbone, what it was given with.
    for part, phase in (("backbone.backbone.", 0), ("backbone.feature_head.", 1), ("dynamics.", 2)):
        names = [n for n in seen[0] if n.startswith(part)]
        assert names
        assert all(torch.equal(seen[phase][n], seen[-1][n]) for n in names)
        assert phase == 0 or not all(torch.equal(seen[0][n], seen[-1][n]) for n in names)
    assert fitted.test["accuracy"] > 0.9


# What is refused


@pytest.mark.parametrize(
    "options",
    [
        {"form": "paper"},
        {"form": "joint", "phase": "head"},
        {"form": "phased"},
        {"form": "phased", "phase": "final"},
        {"form": "phased", "phase": "head", "samples": 3},
        {"field_weight": -1.0},
        {"samples": 0},
    ],
)
def test_options_that_cannot_be_are_refused(options):
    with pytest.raises(InvalidOptionError):
        objective(**options)


def test_a_backbone_that_is_none_or_takes_other_inputs_is_refused():
    with pytest.raises(InvalidOptionError, match="Sequential says neither in_shape nor out_shape"):
        model(backbone=nn.Sequential(nn.Flatten(), nn.Linear(64, 6)))
    other = stabnet.build(CONVNET, kind="backbone", in_shape=(3, 8, 8))
    with pytest.raises(InvalidOptionError, match=r"takes inputs of shape \(3, 8, 8\)"):
        model(backbone=other)


def test_a_state_wider_than_the_features_is_refused():
    with pytest.raises(InvalidOptionError, match="width=7 exceeds the 6 features"):
        model(width=7)
    assert model(width=7, feature_head="linear")(inputs()[0]).shape == (6, 3)


@pytest.mark.parametrize(
    ("phase", "options", "part"),
    [
        ("features", {"width": 6, "feature_head": "identity"}, "backbone with its feature_head"),
        ("head", {"width": 3, "head": "identity"}, "head"),
    ],
)
def test_a_phase_that_would_train_nothing_is_refused(phase, options, part):
    network, loss = model(**options), objective(form="phased", phase=phase)
    with pytest.raises(InvalidOptionError, match=f"the {part} has no parameter that requires"):
        loss(network, *inputs())
    with torch.no_grad():
        assert loss(network, *inputs())[0].isfinite()
    assert loss.eval()(network, *inputs())[0].isfinite()


def test_a_model_without_flow_is_refused():
    network = nn.Linear(3, 2)
    with pytest.raises(InvalidOptionError, match="dynamics is a Flow"):
        objective()(network, torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(InvalidOptionError, match="dynamics is a Flow"):
        projection.sodef_stability(network, torch.zeros(2, 3))


def test_labels_out_of_range_are_refused():
    with pytest.raises(InvalidInputError, match="label 3"):
        objective()(model(), inputs()[0], torch.full((6,), 3))
