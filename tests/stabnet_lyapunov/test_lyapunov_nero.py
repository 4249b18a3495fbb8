from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import stabnet

SHAPES = [(3, 4), (2, 3, 2, 2), (5,), ()]
CONSTRAINED = {"all": {(3, 4), (2, 3, 2, 2)}, "convolutions": {(2, 3, 2, 2)}, "none": set()}
CHOICES = pytest.mark.parametrize("constrained", CONSTRAINED)


def nero(params: Any, **options: Any) -> torch.optim.Optimizer:
    return stabnet.build("nero", kind="optimizer", params=params, **options)  # type: ignore[no-any-return]


def parameters(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(s, generator=generator, dtype=dtype)) for s in SHAPES]


def gradients(steps: int, dtype: torch.dtype = torch.float64) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        [torch.randn(s, generator=generator, dtype=dtype) for s in SHAPES] for _ in range(steps)
    ]


def descend(optimizer: torch.optim.Optimizer, params: list[Any], steps: list[list[Tensor]]) -> None:
    for step in steps:
        for p, g in zip(params, step, strict=True):
            p.grad = g.clone()
        optimizer.step()


def algorithm(
    w: np.ndarray, gradients: list[np.ndarray], constrained: bool, lr: float, beta: float
) -> np.ndarray:
    """Run the algorithm on one tensor, neuron by neuron, in plain loops."""
    neurons = [np.array(row, dtype=float).reshape(-1) for row in (w if w.ndim else [w])]

    def project() -> None:
        for i, neuron in enumerate(neurons):
            balanced = neuron - sum(neuron) / len(neuron)
            neurons[i] = balanced / math.sqrt(sum(balanced**2))

    if constrained:
        project()
    norms = [math.sqrt(sum(neuron**2)) for neuron in neurons]
    scale = sum(norms) / len(norms) or 0.01
    squares = [0.0] * len(neurons)
    for k, gradient in enumerate(gradients, start=1):
        rows = [np.array(row).reshape(-1) for row in (gradient if gradient.ndim else [gradient])]
        for i, g in enumerate(rows):
            squares[i] = beta * squares[i] + (1 - beta) * float(sum(g**2))
            corrected = squares[i] / (1 - beta**k)
            if corrected > 0:
                neurons[i] = neurons[i] - lr * scale * g / math.sqrt(corrected)
        if constrained:
            project()
    return np.array(neurons).reshape(w.shape)


@CHOICES
@pytest.mark.parametrize("beta", [0.0, 0.9, 0.999])
def test_steps_are_those_of_the_algorithm(constrained: str, beta: float) -> None:
    params, steps = parameters(), gradients(6)
    expected = [
        algorithm(
            p.detach().numpy().copy(),
            [step[i].numpy() for step in steps],
            tuple(p.shape) in CONSTRAINED[constrained],
            0.03,
            beta,
        )
        for i, p in enumerate(params)
    ]
    descend(nero(params, lr=0.03, beta=beta, constrained=constrained), params, steps)
    for p, value in zip(params, expected, strict=True):
        torch.testing.assert_close(p.detach(), torch.from_numpy(value), rtol=1e-12, atol=1e-14)


@CHOICES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constrained_neurons_are_balanced_and_of_unit_norm_from_the_start(
    constrained: str, dtype: torch.dtype
) -> None:
    params, initial = parameters(dtype), parameters(dtype)
    optimizer = nero(params, lr=0.1, constrained=constrained)
    for steps in (0, 5):
        descend(optimizer, params, gradients(steps, dtype))
        for p, start in zip(params, initial, strict=True):
            if tuple(p.shape) in CONSTRAINED[constrained]:
                rows, eps = p.detach().flatten(1), torch.finfo(dtype).eps
                assert (rows.norm(dim=1) - 1).abs().max() <= 8 * eps
                assert rows.mean(1).abs().max() <= 8 * eps
            elif steps == 0:
                assert torch.equal(p, start)


def test_projection_keeps_the_direction_of_balanced_weights() -> None:
    (weight, *_), (initial, *_) = parameters(), parameters()
    nero([weight])
    centered = initial - initial.mean(1, keepdim=True)
    cosine = torch.nn.functional.cosine_similarity(weight, centered)
    torch.testing.assert_close(cosine.detach(), torch.ones(3, dtype=torch.float64))


def test_a_first_step_turns_a_neuron_by_the_learning_rate() -> None:
    (weight, *_) = parameters()
    optimizer = nero([weight], lr=1e-3)
    before = weight.detach().clone()
    tangent = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    tangent -= tangent.mean(1, keepdim=True)
    weight.grad = tangent - (tangent * before).sum(1, keepdim=True) * before
    optimizer.step()
    angle = torch.arccos((weight.detach() * before).sum(1))
    torch.testing.assert_close(angle, torch.full((3,), math.atan(1e-3), dtype=torch.float64))


@CHOICES
def test_a_multiple_of_the_loss_gives_the_same_steps(constrained: str) -> None:
    found = []
    for factor in (1.0, 2.0**-20, 2.0**20):  # powers of two, so that nothing is rounded
        params = parameters()
        steps = [[factor * g for g in step] for step in gradients(4)]
        descend(nero(params, constrained=constrained), params, steps)
        found.append(params)
    for p, small, large in zip(*found, strict=True):
        assert torch.equal(p, small)
        assert torch.equal(p, large)


def test_weights_in_other_units_take_the_same_relative_steps() -> None:
    plain, scaled = parameters(), parameters()
    with torch.no_grad():
        for p in scaled:
            p.mul_(8)
    descend(nero(plain, constrained="none"), plain, gradients(4))
    descend(nero(scaled, constrained="none"), scaled, [[g / 8 for g in s] for s in gradients(4)])
    assert all(torch.equal(8 * p, q) for p, q in zip(plain, scaled, strict=True))


def test_tensors_that_start_at_zero_move_by_a_hundredth() -> None:
    bias = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    descend(nero([bias], lr=0.5), [bias], [[torch.tensor([2.0, -1e-9, 0.0], dtype=torch.float64)]])
    assert bias.tolist() == pytest.approx([-0.005, 0.005, 0.0], rel=1e-12)


def test_neurons_without_a_gradient_stay_as_they_are() -> None:
    params = parameters()
    optimizer = nero(params)
    before = [p.detach().clone() for p in params]
    descend(optimizer, params, [[torch.zeros(s, dtype=torch.float64) for s in SHAPES]])
    for p, start in zip(params, before, strict=True):
        torch.testing.assert_close(p.detach(), start, rtol=1e-15, atol=1e-15)
    for p in params:
        p.grad = None
    optimizer.step()
    assert optimizer.state[params[0]]["step"] == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_stops_its_neuron_for_one_step_only(bad: float) -> None:
    found = []
    for spoiled in (False, True):
        params, steps = parameters(), gradients(3)
        if spoiled:
            steps[1][0][2, 1] = bad
        optimizer = nero(params, constrained="none")
        descend(optimizer, params, steps[:2])
        middle = params[0].detach().clone()
        descend(optimizer, params, steps[2:])
        found.append((middle, params))
    (_, clean), (middle, params) = found
    start = parameters()
    descend(nero(start, constrained="none"), start, gradients(1))
    assert torch.equal(middle[2], start[0][2])  # where it was after the first step
    assert not torch.equal(params[0][2], middle[2])  # and on it goes
    assert torch.equal(params[0][:2], clean[0][:2])
    assert all(bool(p.isfinite().all()) for p in params)


@CHOICES
@pytest.mark.parametrize("before", [0, 3])
def test_a_run_taken_up_again_goes_on_bit_by_bit(constrained: str, before: int) -> None:
    params, steps = parameters(torch.float32), gradients(before + 3, torch.float32)
    optimizer = nero(params, lr=0.05, constrained=constrained)
    descend(optimizer, params, steps[:before])
    again = copy.deepcopy(params)
    resumed = nero(again)  # its options come from the state, too
    with torch.no_grad():  # where weights are restored after construction
        for p, q in zip(params, again, strict=True):
            q.copy_(p)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    descend(optimizer, params, steps[before:])
    descend(resumed, again, steps[before:])
    assert all(torch.equal(p, q) for p, q in zip(params, again, strict=True))


def test_weights_that_satisfy_the_constraint_are_not_touched_again() -> None:
    weight = nn.Parameter(torch.randn(64, 3, 7, 7, generator=torch.Generator().manual_seed(0)))
    wide = nn.Parameter(torch.randn(8, 4608, generator=torch.Generator().manual_seed(0)))
    optimizer = nero([weight, wide])
    weight.grad, wide.grad = torch.randn_like(weight), torch.randn_like(wide)
    optimizer.step()
    before = weight.detach().clone(), wide.detach().clone()
    nero([weight, wide])
    assert torch.equal(weight, before[0])
    assert torch.equal(wide, before[1])


def test_weights_slightly_off_the_constraint_are_projected() -> None:
    weight = nn.Parameter(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
    nero([weight])
    with torch.no_grad():
        weight.add_(1e-3)  # the norm hardly changes, the mean does
    nero([weight])
    assert weight.mean(1).abs().max() < 1e-6


def test_groups_have_options_of_their_own() -> None:
    free, bound = parameters()[0], parameters()[0]
    optimizer = nero([{"params": [free], "constrained": "none", "lr": 0.0}, {"params": [bound]}])
    assert torch.equal(free, parameters()[0])
    torch.testing.assert_close(bound.norm(dim=1).detach(), torch.ones(3, dtype=torch.float64))
    moved = bound.detach().clone()
    free.grad = bound.grad = gradients(1)[0][0]
    optimizer.step()
    assert torch.equal(free, parameters()[0])
    assert not torch.equal(bound, moved)


@pytest.mark.parametrize(
    "weight",
    [torch.randn(4, 1), torch.randn(4, 1, 1, 1), torch.zeros(3, 2), torch.full((2, 9), 0.1)],
)
def test_neurons_that_balancing_would_make_zero_are_refused(weight: Tensor) -> None:
    p, fine = nn.Parameter(weight), nn.Parameter(torch.randn(2, 3))
    before = fine.detach().clone()
    with pytest.raises(stabnet.InvalidOptionError, match=r"all equal, as with a single input"):
        nero([fine, p])
    assert torch.equal(fine, before)  # nothing is projected unless everything can be
    nero([p], constrained="none")
    optimizer = nero([fine])
    with pytest.raises(stabnet.InvalidOptionError, match=r"all equal"):
        optimizer.add_param_group({"params": [p]})
    assert len(optimizer.param_groups) == 1


def test_frozen_weights_are_left_alone_until_they_are_trained() -> None:
    frozen = parameters()[0].requires_grad_(False)
    optimizer = nero([frozen], lr=0.0)
    assert torch.equal(frozen, parameters()[0])
    frozen.requires_grad_()
    frozen.grad = torch.ones_like(frozen)
    optimizer.step()
    torch.testing.assert_close(frozen.norm(dim=1).detach(), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr is a finite number, at least 0"),
        ({"lr": math.nan}, "lr is a finite number, at least 0"),
        ({"beta": 1.0}, r"beta lies in \[0, 1\)"),
        ({"constrained": "some"}, "'all', 'convolutions', 'none'; got 'some'"),
    ],
)
def test_bad_options_are_refused_with_a_reason(options: dict[str, Any], message: str) -> None:
    with pytest.raises(stabnet.InvalidOptionError, match=message):
        nero(parameters(), **options)


def test_a_step_needs_no_look_at_the_device() -> None:
    params = parameters()
    optimizer = nero(params)
    descend(optimizer, params, gradients(1))
    valueless = [nn.Parameter(p.detach().to("meta")) for p in params]  # nothing to look at
    optimizer.param_groups[0]["params"] = valueless
    for p, q in zip(params, valueless, strict=True):
        average = optimizer.state[p]["exp_avg_sq"].to("meta")
        optimizer.state[q] = {**optimizer.state[p], "exp_avg_sq": average}
        q.grad = torch.empty_like(q)
    optimizer.step()


@pytest.mark.parametrize(("constrained", "beta"), [("all", 0.999), ("convolutions", 0.9)])
def test_nero_trains_a_small_network(constrained: str, beta: float) -> None:
    torch.manual_seed(0)
    y = torch.arange(64) % 2
    x = torch.rand(64, 1, 6, 6)
    x[:, 0, :3] += 0.3 * y[:, None, None]  # one class is brighter above
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 16), nn.ReLU(), nn.Linear(16, 2)
    )
    optimizer = nero(list(model.parameters()), beta=beta, constrained=constrained)
    for _ in range(300):

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            return loss

        optimizer.step(closure)
    assert float((model(x).argmax(1) == y).float().mean()) == 1
