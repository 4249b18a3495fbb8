"""Jacobian regularization, against dense Jacobians and by what training with it does."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from stabnet_deq import ConvCell, JacobianRegularized, spectral_radius
from stabnet_deq.equilibria import flatten
from stabnet_deq.regularization import jacobian_penalty
from torch import nn

import stabnet
from stabnet import Equilibrium, StabilityModel, Stack


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def deq_cell(n=4):
    torch.manual_seed(0)
    cell = stabnet.build("deq", kind="cell", state_shape=(n,), feature_shape=(n,), weight_scale=1.0)
    return cell.double()


def dense(cell, z, u):
    """Return the Jacobian of the raveled cell, of one sample or of a whole batch."""
    shape = z.shape
    return torch.autograd.functional.jacobian(
        lambda q: cell(q.view(shape), u).flatten(), z.flatten().detach()
    )


def model(n=5, cell=None, **options):
    torch.manual_seed(0)
    return stabnet.build(
        "deq",
        in_shape=(1, 8, 8),
        num_outputs=3,
        backbone={"name": "linear", "width": n},
        cell=cell or {"name": "deq", "weight_scale": 0.3},
        solver={"name": "picard", "tolerance": 1e-10, "max_evaluations": 100},
        **options,
    )


def batch(count=6, dtype=torch.float32):
    return random(count, 1, 8, 8, seed=7).sigmoid().to(dtype), torch.arange(count) % 3


def test_orthonormal_probes_give_the_frobenius_norm_exactly():
    cell = deq_cell().eval()
    z, u = random(3, 4, seed=1), random(3, 4, seed=2)
    jacobians = [dense(cell, z[[i]], u[[i]]) for i in range(3)]
    exact = torch.stack([j.square().sum() / 4 for j in jacobians]).mean()
    q, _ = torch.linalg.qr(random(3, 4, 4, seed=3))
    probes = 2 * q.movedim(1, 0)  # √n qᵢ with n = 4, another basis for each sample
    torch.testing.assert_close(jacobian_penalty(cell, z, u, probes), exact)


def test_the_estimate_is_unbiased():
    cell = deq_cell().eval()
    z, u = random(1, 4, seed=1), random(1, 4, seed=2)
    exact = dense(cell, z, u).square().sum() / 4
    # All sixteen vectors of signs: their mean is the expectation.
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double()] * 4)[:, None]
    torch.testing.assert_close(jacobian_penalty(cell, z, u, signs), exact)
    single = torch.stack([jacobian_penalty(cell, z, u, s[None]) for s in signs])
    assert float((single - exact).detach().abs().max()) > 1e-3 * float(exact)


def test_coupled_samples_are_regularized_as_one_map():
    cell = deq_cell().train()
    assert not cell.per_sample
    z, u = random(3, 4, seed=1), random(3, 4, seed=2)
    # The basis of the whole batch, scaled by the root of its dimension.
    probes = 12**0.5 * torch.eye(12, dtype=torch.float64).view(12, 3, 4)
    found = jacobian_penalty(cell, z, u, probes)
    whole = dense(cell, z, u)
    torch.testing.assert_close(found, whole.square().sum() / 12)
    assert float(whole.view(3, 4, 3, 4)[0, :, 1].abs().max()) > 0


@pytest.mark.parametrize("kind", ["deq", "conv"])
def test_the_penalty_is_differentiable_in_everything_it_depends_on(kind):
    torch.manual_seed(0)
    shape = (3,) if kind == "deq" else (2, 2, 2)
    cell = deq_cell(3).eval() if kind == "deq" else ConvCell(shape, shape, groups=1).double()
    z, u = (random(2, *shape, seed=s).requires_grad_() for s in (1, 2))
    probes = random(2, 2, flatten(z).shape[1], seed=3).sign()
    names, weights = zip(*cell.named_parameters(), strict=True)

    def penalty(z, u, *weights):
        class At(nn.Module):
            def __init__(self):
                super().__init__()
                self.cell = cell

            def forward(self, z, u):
                return jacobian_penalty(self.cell, z, u, probes)

        given = {f"cell.{n}": w for n, w in zip(names, weights, strict=True)}
        return torch.func.functional_call(At(), given, (z, u))

    assert torch.autograd.gradcheck(penalty, (z, u, *weights), fast_mode=True)


@pytest.mark.parametrize("training", [True, False])
def test_loss_and_gradient_are_those_of_the_formula(training):
    m = model().double().train(training)
    objective = JacobianRegularized(weight=0.7, samples=3)
    x, y = batch(dtype=torch.float64)
    buffers = {k: v.clone() for k, v in m.named_buffers()}
    plain = stabnet.build("cross_entropy", kind="objective")
    expected_base, expected_logs = plain(m, x, y)
    after_plain = {k: v.clone() for k, v in m.named_buffers()}
    for name, buffer in m.named_buffers():
        buffer.copy_(buffers[name])
    torch.manual_seed(1)
    loss, logs = objective(m, x, y)
    # The extra evaluation updates no statistics.
    assert all(torch.equal(b, after_plain[k]) for k, b in m.named_buffers())
    loss.backward()
    found = {n: p.grad.clone() for n, p in m.named_parameters()}
    assert logs.keys() == {*expected_logs, "base_loss", "jacobian"}
    torch.testing.assert_close(logs["base_loss"], expected_base.detach())
    torch.testing.assert_close(loss, expected_base + 0.7 * logs["jacobian"])

    m.zero_grad()
    torch.manual_seed(1)
    u = m.features(x)
    z = m.dynamics(u).state
    probes = (2 * torch.randint(0, 2, (3, 6, 5)) - 1).double()
    image = m.dynamics.cell(z, u)
    products = [torch.autograd.grad(image, z, p, create_graph=True)[0] for p in probes]
    penalty = torch.stack([p.square().mean() for p in products]).mean()
    (F.cross_entropy(m.head(z), y) + 0.7 * penalty).backward()
    for name, parameter in m.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-6, atol=1e-9)


def test_nothing_is_solved_twice():
    m = model()
    calls = []
    m.dynamics.register_forward_hook(lambda *_: calls.append(1))
    hooks = len(m.dynamics._forward_hooks)
    JacobianRegularized()(m, *batch())
    assert len(calls) == 1
    assert len(m.dynamics._forward_hooks) == hooks


def test_hooks_are_removed_when_the_base_objective_fails():
    m = model()
    x, _ = batch()
    with pytest.raises(stabnet.InvalidInputError, match="class labels"):
        JacobianRegularized()(m, x, torch.rand(6))
    assert not m.dynamics._forward_hooks


def test_the_equilibria_of_a_stack_and_tuple_states_are_regularized():
    torch.manual_seed(0)
    shape = (2, 4, 3)

    def equilibrium(name):
        cell = stabnet.build(
            name, kind="cell", state_shape=shape, feature_shape=shape, groups=1, weight_scale=0.3
        )
        return Equilibrium(cell, stabnet.build("picard", kind="solver"))

    stages = [equilibrium("conv"), equilibrium("multiscale")]
    backbone = stabnet.build("identity", kind="backbone", in_shape=shape)
    m = StabilityModel(shape, 3, backbone, Stack(stages), nn.Linear(24 + 16, 3))
    x, y = torch.rand(4, *shape), torch.arange(4) % 3
    torch.manual_seed(1)
    loss, logs = JacobianRegularized()(m, x, y)
    z = stages[0](x).state
    torch.manual_seed(1)
    terms = []
    for stage, u in zip(stages, (x, z), strict=True):
        state = stage(u).state
        probes = (2 * torch.randint(0, 2, (1, *flatten(state).shape)) - 1).float()
        terms.append(jacobian_penalty(stage.cell, state, u, probes))
    torch.testing.assert_close(logs["jacobian"], sum(terms).detach())
    loss.backward()
    assert all(p.grad is not None for p in m.parameters())


def test_the_base_objective_is_a_part_of_its_own():
    objective = stabnet.build(
        "jacobian_regularized",
        kind="objective",
        base_objective={"name": "cross_entropy", "label_smoothing": 0.2},
    )
    assert objective.base.label_smoothing == 0.2
    assert objective.task == "classification"
    regression = JacobianRegularized("mse")
    assert regression.task == "regression"
    _, logs = regression(model(), batch()[0], torch.rand(6, 3))
    assert "accuracy" not in logs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": -1.0}, "weight is finite and at least 0"),
        ({"weight": float("nan")}, "weight is finite and at least 0"),
        ({"samples": 0}, "samples must be at least 1"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(stabnet.InvalidOptionError, match=message):
        JacobianRegularized(**options)


def test_a_model_without_an_equilibrium_is_refused():
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(stabnet.InvalidInputError, match="no equilibrium of Sequential"):
        JacobianRegularized()(plain, *batch())


def test_loss_and_gradient_survive_compilation():
    class Training(nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.objective = model(), JacobianRegularized()
            self.model.dynamics.solver = stabnet.build(
                "picard", kind="solver", max_evaluations=2, fixed_iterations=True
            )

        def forward(self, x, y):
            return self.objective(self.model, x, y)[0]

    training, (x, y) = Training(), batch()
    found = []
    for run in (training, torch.compile(training, backend="aot_eager")):
        torch.manual_seed(1)
        loss = run(x, y)
        found.append([loss, *torch.autograd.grad(loss, list(training.parameters()))])
    torch.testing.assert_close(found[0], found[1])


def test_training_with_it_lowers_the_spectral_radius():
    data = stabnet.data.load("digits")
    x, y = next(iter(stabnet.data.loader(data.train, batch_size=256)))
    radius, accuracy = {}, {}
    for weight in (0.0, 0.1):
        torch.manual_seed(0)
        m = stabnet.build(
            "deq",
            in_shape=data.in_shape,
            num_outputs=10,
            backbone={"name": "linear", "width": 16},
            cell={"name": "deq", "weight_scale": 0.2},
            solver={"name": "anderson", "tolerance": 1e-3, "max_evaluations": 20},
        )
        objective = JacobianRegularized(weight=weight)
        optimizer = torch.optim.Adam(m.parameters(), lr=0.01)
        for _ in range(60):
            optimizer.zero_grad()
            loss, _ = objective(m.train(), x, y)
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            accuracy[weight] = float((m.eval()(x).argmax(1) == y).float().mean())
        radius[weight] = float(spectral_radius(m, x).median())
    assert radius[0.1] < 0.7 * radius[0.0]
    assert min(accuracy.values()) > 0.9
