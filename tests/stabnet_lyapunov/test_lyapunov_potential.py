"""The supervised potential: every loss behind every kind of head, against autograd."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from stabnet_lyapunov import SupervisedPotential
from torch import nn

import stabnet
from stabnet import InvalidInputError, InvalidOptionError
from stabnet.interfaces import Context

N, C = 5, 4
"""Entries of a state, and outputs."""


def _normalized():
    head = nn.Sequential(nn.Linear(N, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, C))
    head(3 * torch.randn(50, N) + 1)  # statistics that are not those of a fresh layer
    return head.eval()


HEADS = {
    "none": lambda: None,
    "identity": nn.Identity,
    "linear": lambda: nn.Linear(N, C, bias=False),
    "linear_bias": lambda: nn.Linear(N, C),
    "network": lambda: nn.Sequential(nn.Linear(N, 6), nn.Tanh(), nn.Linear(6, C)),
    "orthogonal": lambda: stabnet.build("orthogonal", kind="head", in_features=N, num_outputs=C),
    "normalized": _normalized,
    "layer_normalized": lambda: nn.Sequential(nn.LayerNorm(N), nn.Linear(N, C)),
    "hooked": lambda: _hooked(nn.Linear(N, C)),
}


def _hooked(linear):
    linear.register_forward_hook(lambda module, args, out: out.sin())
    return linear


def _absolute(outputs, targets):
    """Return a loss that is no name: of outputs ``(N, C)`` and values ``(N, C)``."""
    return (outputs - targets).square().add(1).sqrt().sum(1)


LOSSES = {"cross_entropy": "cross_entropy", "squared_error": "squared_error", "own": _absolute}


def _head(name, seed=0):
    torch.manual_seed(seed)
    head = HEADS[name]()
    return None if head is None else head.double()


def _targets(loss, outputs, batch, generator):
    if loss == "cross_entropy":
        return torch.randint(outputs, (batch,), generator=generator)
    return torch.randn(batch, outputs, generator=generator, dtype=torch.float64)


def _reference(loss, head, truncation):
    """Return ``V`` of one state and one target, written plainly."""

    def value(z, target):
        outputs = z if head is None else head(z.unsqueeze(0))[0]
        if loss == "cross_entropy":
            found = -outputs.log_softmax(0)[target]
        elif loss == "squared_error":
            found = 0.5 * ((outputs - target) ** 2).sum()
        else:
            found = _absolute(outputs.unsqueeze(0), target.unsqueeze(0))[0]
        return (found - truncation).clamp(min=0)

    return value


def _value_gradient_rate(reference, z, target, velocity):
    z = z.detach().requires_grad_()
    value = reference(z, target)
    (gradient,) = torch.autograd.grad(value, z)
    return value.detach(), gradient, gradient @ velocity


shapes = st.tuples(st.integers(1, 4), st.integers(1, 3), st.booleans())


@settings(max_examples=5, deadline=None)
@given(shape=shapes, seed=st.integers(0, 99), truncation=st.sampled_from([0.0, 1e-6, 1.5]))
@pytest.mark.parametrize("head_name", HEADS)
@pytest.mark.parametrize("loss", LOSSES)
def test_value_gradient_and_rate_agree_with_autograd(loss, head_name, shape, seed, truncation):
    batch, samples, shared = shape
    head, generator = _head(head_name, seed), torch.Generator().manual_seed(seed)
    outputs = N if head_name in ("none", "identity") else C
    target = _targets(loss, outputs, batch, generator)
    rows = 1 if shared else batch
    z = 3 * torch.randn(rows, samples, N, generator=generator, dtype=torch.float64)
    velocity = torch.randn(batch, samples, N, generator=generator, dtype=torch.float64)
    potential = SupervisedPotential((N,), LOSSES[loss], truncation)
    context = Context(label=target, head=head)

    reference = _reference(loss, head, truncation)
    expected = [
        [
            _value_gradient_rate(reference, z[i % rows, j], target[i], velocity[i, j])
            for j in range(samples)
        ]
        for i in range(batch)
    ]
    values, gradients, rates = (
        torch.stack([torch.stack([pair[part] for pair in row]) for row in expected])
        for part in range(3)
    )
    torch.testing.assert_close(potential(z, context), values)
    found, gradient = potential.value_and_gradient(z, context)
    torch.testing.assert_close(found, values)
    torch.testing.assert_close(gradient, gradients)
    found, rate = potential.value_and_rate(z, velocity, context)
    torch.testing.assert_close(found, values)
    torch.testing.assert_close(rate, rates)


@pytest.mark.parametrize("head_name", HEADS)
@pytest.mark.parametrize("loss", LOSSES)
def test_states_without_samples_are_sets_of_one(loss, head_name):
    head, generator = _head(head_name), torch.Generator().manual_seed(1)
    target = _targets(loss, N if head_name in ("none", "identity") else C, 3, generator)
    z, velocity = torch.randn(2, 3, N, generator=generator, dtype=torch.float64)
    potential, context = SupervisedPotential((N,), LOSSES[loss]), Context(label=target, head=head)
    wide = potential.value_and_rate(z.unsqueeze(1), velocity.unsqueeze(1), context)
    for one, many in zip(potential.value_and_rate(z, velocity, context), wide, strict=True):
        torch.testing.assert_close(one, many.squeeze(1))
    wide = potential.value_and_gradient(z.unsqueeze(1), context)
    for one, many in zip(potential.value_and_gradient(z, context), wide, strict=True):
        torch.testing.assert_close(one, many.squeeze(1))


@pytest.mark.parametrize("head_name", ["linear_bias", "network", "orthogonal", "layer_normalized"])
@pytest.mark.parametrize("loss", LOSSES)
def test_values_and_rates_are_differentiable(loss, head_name):
    head, generator = _head(head_name), torch.Generator().manual_seed(2)
    target = _targets(loss, C, 2, generator)
    z = torch.randn(1, 3, N, generator=generator, dtype=torch.float64, requires_grad=True)
    velocity = torch.randn(2, 3, N, generator=generator, dtype=torch.float64, requires_grad=True)
    potential, context = SupervisedPotential((N,), LOSSES[loss]), Context(label=target, head=head)

    def both(z, velocity, *parameters):
        return potential.value_and_rate(z, velocity, context)

    assert torch.autograd.gradcheck(both, (z, velocity, *head.parameters()))
    assert torch.autograd.gradcheck(
        lambda z, *_: potential.value_and_gradient(z, context), (z, *head.parameters())
    )


def test_states_of_several_dimensions_are_raveled_for_linear_heads_alone():
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(2, 6, 2, 3, generator=generator)
    velocity = torch.randn(2, 6, 2, 3, generator=generator)
    linear = nn.Linear(6, C)
    label = torch.tensor([1, 3])
    potential = SupervisedPotential((2, 3))
    for head in (linear, nn.Sequential(nn.Flatten(), linear)):
        context = Context(label=label, head=head)
        flat = SupervisedPotential((6,)).value_and_rate(
            z.flatten(2), velocity.flatten(2), Context(label=label, head=linear)
        )
        torch.testing.assert_close(potential.value_and_rate(z, velocity, context), flat)
        assert potential.value_and_gradient(z, context)[1].shape == z.shape


def test_a_velocity_shared_by_all_targets_is_taken_for_each():
    z, velocity = torch.randn(2, 1, 3, N, generator=torch.Generator().manual_seed(4))
    for head in (None, _head("network").float()):
        context = Context(label=torch.tensor([0, 2, 1]), head=head)
        potential = SupervisedPotential((N,))
        found = potential.value_and_rate(z, velocity, context)
        expanded = potential.value_and_rate(z, velocity.expand(3, 3, N), context)
        torch.testing.assert_close(found, expanded)


@pytest.mark.parametrize("loss", [1e-2, 1e-4, 1e-5, 2e-6])
def test_single_precision_is_accurate_near_the_target(loss):
    generator = torch.Generator().manual_seed(5)
    z = torch.randn(20, N, generator=generator)
    label = torch.randint(N, (20,), generator=generator)
    # Raise the right entry until the loss is about as given.
    others = z.scatter(1, label[:, None], -torch.inf).logsumexp(1)
    z = z.scatter(1, label[:, None], (others - torch.tensor(loss).log())[:, None])
    velocity = torch.randn(20, N, generator=generator)
    potential, context = SupervisedPotential((N,), truncation=0.0), Context(label=label)

    def relative(ours, exact):
        return ((ours.double() - exact).abs() / exact.abs()).max().item()

    value, rate = potential.value_and_rate(z, velocity, context)
    exact_value, exact_rate = potential.value_and_rate(z.double(), velocity.double(), context)
    assert exact_value.mean().item() == pytest.approx(loss, rel=0.1)
    eps = torch.finfo(torch.float32).eps
    assert relative(value, exact_value) < 50 * eps
    # The rate is a sum of terms of both signs; what it may lose is relative to their sizes.
    size = exact_value * (velocity.double().abs().amax(1) * 2)
    assert ((rate.double() - exact_rate).abs() / size).max() < 50 * eps
    gradient = potential.value_and_gradient(z, context)[1]
    exact_gradient = potential.value_and_gradient(z.double(), context)[1]
    assert relative(gradient, exact_gradient) < 50 * eps


def test_the_value_vanishes_with_its_gradient_and_rate_below_the_truncation():
    z = torch.tensor([[8.0, 0, 0], [0, 0, 8.0]])
    potential = SupervisedPotential((3,), truncation=0.01)
    context = Context(label=torch.tensor([0, 0]))
    value, gradient = potential.value_and_gradient(z, context)
    rate = potential.value_and_rate(z, torch.eye(3)[:2], context)[1]
    assert value[0] == 0
    assert not gradient[0].any()
    assert rate[0] == 0
    assert value[1] > 7
    assert rate[1] != 0
    plain = SupervisedPotential((3,), truncation=0.0)(z, context)
    torch.testing.assert_close(value, (plain - 0.01).clamp(min=0))
    torch.testing.assert_close(plain, F.cross_entropy(z, context.label, reduction="none"))


def test_the_value_is_blind_to_a_common_shift_of_the_logits():
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    potential, context = SupervisedPotential((3,)), Context(label=torch.tensor([0, 1, 2, 0]))
    torch.testing.assert_close(potential(z + 7, context), potential(z, context))
    rate = potential.value_and_rate(z, torch.ones_like(z), context)[1]
    torch.testing.assert_close(rate, torch.zeros(4, dtype=torch.float64))


def test_extreme_logits_overflow_nothing():
    z = torch.tensor([[1e4, -1e4, 0.0], [0.0, 1e30, -1e30]], requires_grad=True)
    value = SupervisedPotential((3,))(z, Context(label=torch.tensor([1, 1])))
    assert value.tolist() == [2e4, 0.0]
    (gradient,) = torch.autograd.grad(value.sum(), z)
    assert gradient.tolist() == [[1.0, -1.0, 0.0], [0.0, 0.0, 0.0]]


@pytest.fixture(params=["none", "linear_bias", "network", "orthogonal", "normalized"])
def problem(request):
    generator = torch.Generator().manual_seed(7)
    head = _head(request.param)
    label = torch.randint(C, (3,), generator=generator)
    z, velocity = torch.randn(2, 3, 4, N, generator=generator, dtype=torch.float64)
    return SupervisedPotential((N,)), z, velocity, Context(label=label, head=head)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_nothing_depends_on_gradients_being_recorded(problem, mode):
    potential, z, velocity, context = problem
    for states in (z, z[:1]):
        expected = [
            *potential.value_and_gradient(states, context),
            *potential.value_and_rate(states, velocity, context),
        ]
        with mode():
            copied = Context(label=context.label.clone(), head=context.head)
            found = [
                *potential.value_and_gradient(states.clone(), copied),
                *potential.value_and_rate(states.clone(), velocity.clone(), copied),
            ]
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_functional_transforms_agree_with_batching(problem):
    potential, z, velocity, context = problem
    value, rate = potential.value_and_rate(z, velocity, context)
    gradient = potential.value_and_gradient(z, context)[1]

    def one(z, velocity, label):
        mine = Context(label=label[None], head=context.head)
        return [part[0] for part in potential.value_and_rate(z[None], velocity[None], mine)]

    mapped = torch.vmap(one)(z, velocity, context.label)
    torch.testing.assert_close(mapped, [value, rate])

    def total(z, label):
        return potential(z[None], Context(label=label[None], head=context.head)).sum()

    mapped = torch.vmap(torch.func.grad(total))(z, context.label)
    torch.testing.assert_close(mapped, gradient)


@pytest.mark.parametrize("head_name", ["none", "linear_bias", "network"])
def test_programs_compile_whole(head_name):
    head = _head(head_name)
    potential = SupervisedPotential((N,))
    generator = torch.Generator().manual_seed(8)
    z, velocity = torch.randn(2, 3, 4, N, generator=generator, dtype=torch.float64)
    label = torch.randint(C, (3,), generator=generator)

    def program(z, velocity, label):
        context = Context(label=label, head=head)
        rate = potential.value_and_rate(z, velocity, context)[1]
        return rate, potential.value_and_gradient(z, context)[1]

    compiled = torch.compile(program, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(z[:1], velocity, label), program(z[:1], velocity, label))


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_half_precision_outputs_are_judged_in_single_precision(precision):
    z = torch.tensor([[0.0, 9.0]], dtype=precision)
    value = SupervisedPotential((2,), truncation=0.0)(z, Context(label=torch.tensor([1])))
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(F.softplus(torch.tensor(-9.0)).item(), rel=1e-5)


LABELS = {
    "absent": None,
    "scalar": torch.tensor(1),
    "real": torch.zeros(2),
    "boolean": torch.zeros(2, dtype=torch.bool),
    "one hot": torch.eye(4)[:2],
    "negative": torch.tensor([0, -1]),
    "too great": torch.tensor([4, 0]),
    "too many": torch.tensor([0, 1, 2]),
}


@pytest.mark.parametrize("head", [None, nn.Sequential(nn.Linear(4, 4))], ids=["none", "network"])
@pytest.mark.parametrize("method", ["forward", "value_and_gradient", "value_and_rate"])
@pytest.mark.parametrize("name", LABELS)
def test_labels_that_do_not_fit_are_refused(name, method, head):
    potential, z = SupervisedPotential((4,)), torch.zeros(2, 4)
    given = (z, z) if method == "value_and_rate" else (z,)
    with pytest.raises(InvalidInputError):
        getattr(potential, method)(*given, Context(label=LABELS[name], head=head))


@pytest.mark.parametrize("method", ["forward", "value_and_gradient", "value_and_rate"])
@pytest.mark.parametrize("rows", [1, 3])
def test_rows_of_states_that_are_not_those_of_the_targets_are_refused(rows, method):
    z = torch.zeros(rows, 4)
    given = (z, z) if method == "value_and_rate" else (z,)
    for loss, label in (
        ("cross_entropy", torch.zeros(2).long()),
        ("squared_error", torch.zeros(2, 4)),
    ):
        with pytest.raises(InvalidInputError, match=rf"{rows} rows .* 2 targets"):
            getattr(SupervisedPotential((4,), loss), method)(*given, Context(label=label))


def test_values_that_do_not_fit_are_refused():
    potential = SupervisedPotential((4,), "squared_error")
    for label in (torch.zeros(2).long(), torch.zeros(2), torch.zeros(2, 3)):
        with pytest.raises(InvalidInputError, match="target values"):
            potential(torch.zeros(2, 4), Context(label=label))


@pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 1, 1, 4)])
def test_states_of_another_shape_are_refused(shape):
    with pytest.raises(InvalidInputError, match="takes states"):
        SupervisedPotential((4,))(torch.zeros(shape), Context(label=torch.tensor([0, 1])))


@pytest.mark.parametrize(
    "options", [{"loss": "hinge"}, {"truncation": -1.0}, {"truncation": float("nan")}], ids=str
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(InvalidOptionError):
        SupervisedPotential((4,), **options)
