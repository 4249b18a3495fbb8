"""The pair of an expansive and a contractive step: its formula, its bound, its extremes."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from stabnet_gradient_flow import GradientFlowPair
from torch import Tensor, nn

import stabnet
from stabnet import InvalidInputError, InvalidOptionError

VECTOR, IMAGE = (5,), (2, 4, 3)
SHAPES = [VECTOR, IMAGE]


def make(shape: tuple[int, ...], seed: int = 0, **options: Any) -> GradientFlowPair:
    """Return a block in float64 and eval mode with random parameters."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        block = GradientFlowPair(shape, **options)
        with torch.no_grad():
            for parameter in block.parameters():
                parameter.normal_()
        block.norm.update(block.weight, 30)
        return block.double().eval()


def states(shape: tuple[int, ...], count: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *shape, generator=generator, dtype=torch.float64)


def largest(block: Any, z: Tensor) -> float:
    """Return the largest norm of the Jacobian at the given states."""
    z = z.detach().requires_grad_()
    out = block(z).flatten(1)
    rows = [torch.autograd.grad(o.sum(), z, retain_graph=True)[0].flatten(1) for o in out.unbind(1)]
    return float(torch.linalg.matrix_norm(torch.stack(rows, 1), 2).max())


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    shape=st.sampled_from(SHAPES),
    activation=st.sampled_from(["relu", "tanh", "sigmoid"]),
    slope=st.floats(0.05, 0.95),
    factor=st.floats(0.3, 3),
)
def test_jacobians_stay_within_the_bound_whatever_the_buffer_says(
    seed: int, shape: tuple[int, ...], activation: str, slope: float, factor: float
) -> None:
    block = make(shape, seed, activation=activation, slope=slope, time=30.0)
    block.norm.norm.mul_(factor)
    assert largest(block, 3 * states(shape, 40, seed)) <= block.lipschitz_bound() * (1 + 1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("slope", [0.01, 0.5, 0.9])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_renormalized_pair_increases_no_distance_and_uses_what_is_allowed(
    shape: tuple[int, ...], slope: float, dtype: torch.dtype
) -> None:
    block = make(shape, hidden=7, slope=slope, time=1e4).to(dtype)
    block.renormalize()
    assert 1 - 1e-4 < block.lipschitz_bound() <= 1 + 1e-7
    assert largest(block.double(), 3 * states(shape, 200)) <= 1 + 1e-7
    z, w = states(shape, 400, 1), states(shape, 400, 2)
    before = (z - w).flatten(1).norm(dim=1)
    assert bool(((block(z) - block(w)).flatten(1).norm(dim=1) <= before * (1 + 1e-6)).all())


def test_the_first_step_expands_and_the_second_makes_up_for_it() -> None:
    block = make(VECTOR, time=1e4, slope=0.5)
    block.renormalize()
    A, b, B, c = block.weight, block.bias, block.orthogonal(), block.offset
    h = float(2 / block.norm.norm**2)  # 2a/(1 − a) = 2

    def first(z: Tensor) -> Tensor:
        return z + h * torch.relu(z @ A.T + b) @ A

    def second(y: Tensor) -> Tensor:
        return y - 4 / 3 * F.leaky_relu(y @ B.T + c, 0.5) @ B

    z = states(VECTOR, 200)
    torch.testing.assert_close(block(z), second(first(z)))
    assert 1.5 < largest(first, z) <= 3
    assert largest(second, first(z)) == pytest.approx(1 / 3)
    assert block.contraction_bound() == pytest.approx(1 / 3, rel=1e-12)


def test_the_bound_is_attained() -> None:
    block = make(VECTOR, time=1e4)
    with torch.no_grad():
        block.bias.fill_(1e3)  # every ReLU of the first step is on, every second one's in one place
        block.offset.fill_(1e6)
    block.norm.norm.fill_(float(torch.linalg.matrix_norm(block.weight.detach(), 2)) / 1.2)
    assert block.lipschitz_bound() == pytest.approx((1 + 2 * 1.2**2) / 3, rel=1e-9)
    assert largest(block, states(VECTOR, 2)) == pytest.approx(block.lipschitz_bound(), rel=1e-9)


@pytest.mark.parametrize("factor", [0.5, 0.97, 1.03, 1.6])
def test_a_second_step_that_is_not_orthogonal_is_bounded_too(
    factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = make(VECTOR)
    B = block.orthogonal().detach() * torch.linspace(1, factor, 5, dtype=torch.float64)
    monkeypatch.setattr(block, "orthogonal", lambda: B)
    singular = torch.linalg.svdvals(B)
    worst = max(1 - 2 / 3 * float(singular.min()) ** 2, 4 / 3 * float(singular.max()) ** 2 - 1)
    assert block.contraction_bound() >= worst
    assert largest(block, 3 * states(VECTOR, 100)) <= block.lipschitz_bound() * (1 + 1e-9)


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0, 1e20, 1e30])
@pytest.mark.parametrize("size", [1, 4, 9])
def test_the_second_matrix_is_orthogonal_whatever_its_parameter(size: int, scale: float) -> None:
    block = make((size,))
    block.angle.data.mul_(scale)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 2e-2)):
        B = block.to(dtype).orthogonal().detach().double()
        error = float(torch.linalg.matrix_norm(B.mT @ B - torch.eye(size).double()))
        assert error <= (tolerance if scale > 100 else tolerance / 100)
        assert float(torch.linalg.det(B)) == pytest.approx(1, abs=tolerance)
    if scale == 0:
        assert torch.equal(B, torch.eye(size).double())


def test_edits_in_place_or_through_data_move_the_bound() -> None:
    block = make(VECTOR, time=1e4)
    block.renormalize()
    for edit in (lambda: block.weight.data.mul_(1.25), lambda: block.norm.norm.data.mul_(0.8)):
        edit()
        assert block.lipschitz_bound() == pytest.approx((1 + 2 * 1.25**2) / 3, rel=1e-3)
        block.renormalize()
        assert block.lipschitz_bound() <= 1 + 1e-7


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_agree_with_differences(shape: tuple[int, ...]) -> None:
    block = make(shape, activation="tanh")
    names = ["weight", "bias", "angle", "offset"]
    z = states(shape, 2).requires_grad_()

    def call(z: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(block, dict(zip(names, values, strict=True)), (z,))

    assert torch.autograd.gradcheck(call, (z, *(getattr(block, name) for name in names)))


@pytest.mark.parametrize("mode", ["training", "renormalized", "edited"])
@pytest.mark.parametrize("value", [0.0, 1.0, 1e-20, 1e20, 1e30])
@pytest.mark.parametrize("shape", SHAPES)
def test_extreme_parameters_make_no_nan(shape: tuple[int, ...], value: float, mode: str) -> None:
    block = make(shape).float()
    with torch.no_grad():
        block.weight.fill_(value)
        block.angle.mul_(value)
    if mode != "edited":
        block.renormalize()
    z = states(shape, 4).float().requires_grad_()
    out = block.train(mode == "training")(z)
    out.square().sum().backward()
    for tensor in (out, z.grad, *(p.grad for p in block.parameters())):
        assert tensor is not None
        assert bool(tensor.isfinite().all())
    if mode == "renormalized":
        assert block.lipschitz_bound() <= 1 + 1e-7


def test_zero_weights_leave_the_contractive_step_alone() -> None:
    block = make(VECTOR)
    with torch.no_grad():
        block.weight.zero_()
    block.renormalize()
    assert block.lipschitz_bound() == pytest.approx(1 / 3)


@pytest.mark.parametrize("name", ["weight", "angle", "bias", "offset"])
def test_parameters_that_are_not_finite_have_no_bound(name: str) -> None:
    block = make(VECTOR)
    getattr(block, name).data[0] = torch.nan
    for method in (block.lipschitz_bound, block.renormalize):
        with pytest.raises(InvalidInputError, match="finite"):
            method()
    assert [g.status for g in block.guarantees()] == ["falsified"]


def test_a_slope_that_rounding_hides_cannot_be_renormalized() -> None:
    block = make(VECTOR, slope=1e-9).float()
    with pytest.raises(InvalidInputError, match="larger slope"):
        block.renormalize()


@pytest.mark.parametrize("shape", SHAPES)
def test_state_dict_and_copies_carry_everything(shape: tuple[int, ...]) -> None:
    block, other = make(shape, 0), make(shape, 1)
    z = states(shape, 3)
    other.load_state_dict(block.state_dict())
    assert torch.equal(other(z), block(z))
    assert torch.equal(copy.deepcopy(block)(z), block(z))
    assert other.lipschitz_bound() == block.lipschitz_bound()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_pair_compiles_exports_and_vmaps(shape: tuple[int, ...]) -> None:
    block, z = make(shape), states(shape, 6)
    expected = block(z)
    compiled = torch.compile(block, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(z), expected)
    torch.testing.assert_close(torch.export.export(block, (z,)).module()(z), expected)
    batches = torch.func.vmap(block)(z.unflatten(0, (2, 3)))
    torch.testing.assert_close(batches.flatten(0, 1), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slope": 0}, "slope"),
        ({"slope": 1}, "slope"),
        ({"time": 0}, "time"),
        ({"activation": "maxmin"}, "slopes"),
        ({"hidden": 0}, "hidden"),
        ({"state_shape": (2, 3)}, "state"),
        ({"state_shape": IMAGE, "kernel_size": 4}, "odd"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOptionError, match=message):
        GradientFlowPair(**{"state_shape": VECTOR, **options})


def test_states_of_another_shape_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="states have shape"):
        make(VECTOR)(torch.zeros(2, 6))


def test_twenty_trained_pairs_stay_within_their_bounds_and_renormalize_to_one() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, head = nn.Sequential(*(GradientFlowPair((6,)) for _ in range(20))), nn.Linear(6, 2)
        z = torch.randn(1000, 6)
        y = (z[:, 0] * z[:, 1] > 0).long()
        optimizer = torch.optim.Adam([*model.parameters(), *head.parameters()], lr=1e-2)
        for _ in range(100):
            loss = F.cross_entropy(head(model(z[:100])), y[:100])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    for block in model:
        exact = copy.deepcopy(block).double()
        assert largest(exact, z.double()) <= block.lipschitz_bound() * (1 + 1e-5)
    assert stabnet.renormalize(model) == 20
    assert math.prod(block.lipschitz_bound() for block in model) <= 1 + 1e-5


@pytest.mark.parametrize("factor", [0.7, 1.2])
def test_the_contraction_is_bounded_for_the_matrix_as_it_is(
    monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    """What rounding may do to the orthogonal matrix, exaggerated."""
    block = make(VECTOR, slope=0.3)
    block.weight.data.zero_()  # the second step alone
    turn = factor * block.orthogonal().detach()
    monkeypatch.setattr(GradientFlowPair, "orthogonal", lambda self: turn)
    length = 2 / (1 + 0.3)
    truth = max(1 - length * 0.3 * factor**2, length * factor**2 - 1)
    assert block.contraction_bound() >= truth
    assert largest(block, 10 * states(VECTOR, 50)) <= block.lipschitz_bound() * (1 + 1e-12)
