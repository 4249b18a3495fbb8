"""The gradient-flow block: the flow it follows, the bound of it, and what training does to both."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from stabnet_gradient_flow import Activation, GradientFlow, gradient_flow, gradient_flow_conv
from torch import Tensor, nn

import stabnet
from stabnet import InvalidInputError, InvalidOptionError
from stabnet.interfaces import BoundsLipschitz, Renormalizable

VECTOR, IMAGE = (5,), (2, 4, 3)
SHAPES = [VECTOR, IMAGE]


def make(shape: tuple[int, ...], seed: int = 0, **options: Any) -> GradientFlow:
    """Return a block in float64 and eval mode with random weights and biases."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        factory = gradient_flow if len(shape) == 1 else gradient_flow_conv
        block = factory(shape, **options)
        with torch.no_grad():
            block.weight.normal_()
            if block.bias is not None:
                block.bias.normal_()
        block.norm.update(block.weight, 30)
        return block.double().eval()


def states(shape: tuple[int, ...], count: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *shape, generator=generator, dtype=torch.float64)


def jacobians(block: nn.Module, z: Tensor) -> Tensor:
    """Return the Jacobian of a block at every state, as a matrix."""
    z = z.detach().requires_grad_()
    out = block(z).flatten(1)
    rows = [torch.autograd.grad(o.sum(), z, retain_graph=True)[0].flatten(1) for o in out.unbind(1)]
    return torch.stack(rows, 1)


def largest(block: nn.Module, z: Tensor) -> float:
    """Return the largest norm of the Jacobian at the given states."""
    return float(torch.linalg.matrix_norm(jacobians(block, z).detach(), 2).max())


def explicit(block: GradientFlow) -> Tensor:
    size = math.prod(block.state_shape)
    units = torch.eye(size, dtype=block.weight.dtype).view(size, *block.state_shape)
    return block.operator(block.weight, units).flatten(1).T.detach()


# The bound


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    shape=st.sampled_from(SHAPES),
    activation=st.sampled_from(["relu", "leaky_relu", "tanh", "sigmoid", "softplus", "elu"]),
    max_steps=st.integers(1, 3),
    time=st.floats(0.1, 30),
    factor=st.floats(0.3, 3),
)
def test_jacobians_stay_within_the_bound_whatever_the_buffer_says(
    seed: int, shape: tuple[int, ...], activation: str, max_steps: int, time: float, factor: float
) -> None:
    block = make(shape, seed, activation=activation, max_steps=max_steps, time=time)
    block.norm.norm.mul_(factor)  # an estimate that is wrong by far
    found = largest(block, 3 * states(shape, 40, seed))
    assert found <= block.lipschitz_bound() * (1 + 1e-9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
def test_a_renormalized_block_increases_no_distance(
    shape: tuple[int, ...], padding_mode: str
) -> None:
    options = {} if shape == VECTOR else {"padding_mode": padding_mode}
    block = make(shape, hidden=7, time=9.0, max_steps=2, **options)
    block.renormalize()
    assert block.lipschitz_bound() == 1
    z, w = states(shape, 400, 1), states(shape, 400, 2)
    before = (z - w).flatten(1).norm(dim=1)
    assert bool(((block(z) - block(w)).flatten(1).norm(dim=1) <= before * (1 + 1e-12)).all())
    # Close pairs probe the Jacobian, on both sides of the kinks of the activation too.
    w = z + 1e-5 * w
    before = (z - w).flatten(1).norm(dim=1)
    assert bool(((block(z) - block(w)).flatten(1).norm(dim=1) <= before * (1 + 1e-9)).all())


@pytest.mark.parametrize("shape", SHAPES)
def test_the_bound_is_attained_where_the_estimate_is_too_low(shape: tuple[int, ...]) -> None:
    options = {} if shape == VECTOR else {"padding_mode": "circular"}
    block = make(shape, time=100.0, **options)
    with torch.no_grad():
        block.bias.fill_(1000)  # so that every ReLU is on, and the block is affine
    block.norm.norm.fill_(float(torch.linalg.matrix_norm(explicit(block), 2)) / 1.5)
    assert block.lipschitz_bound() == pytest.approx(2 * 1.5**2 - 1, rel=1e-9)
    assert largest(block, states(shape, 2)) == pytest.approx(block.lipschitz_bound(), rel=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_an_edit_of_the_weights_in_place_or_through_data_moves_the_bound(
    shape: tuple[int, ...],
) -> None:
    block = make(shape, time=100.0)
    block.renormalize()
    z = states(shape, 50)
    assert block.lipschitz_bound() == 1
    block.weight.data.mul_(1.3)
    assert largest(block, z) <= block.lipschitz_bound() <= (2 * 1.3**2 - 1) * (1 + 1e-6)
    assert block.lipschitz_bound() > 2
    block.renormalize()
    assert block.lipschitz_bound() == 1
    with torch.no_grad():
        block.weight.mul_(1.3)
    assert block.lipschitz_bound() > 2
    block.norm.norm.data.mul_(1.3)
    assert block.lipschitz_bound() == 1
    assert largest(block, z) <= 1 + 1e-9


def test_the_weights_transposed_as_printed_in_the_chapter_expand() -> None:
    block = make((6,), time=100.0)
    block.renormalize()
    A, b, h = block.weight.detach(), block.bias.detach(), float(2 / block.norm.norm**2)
    z = states((6,), 300)
    inner = torch.relu(z @ A.T + b)
    torch.testing.assert_close(block(z), z - h * inner @ A)
    D = torch.diag_embed((inner > 0).double())
    printed = torch.eye(6, dtype=torch.float64) - h * A @ D @ A
    assert float(torch.linalg.matrix_norm(printed, 2).max()) > 1.3
    assert largest(block, z) <= 1 + 1e-12


def test_the_jacobian_of_a_step_is_symmetric() -> None:
    for shape in SHAPES:
        found = jacobians(make(shape, time=1.0, activation="tanh"), states(shape, 20))
        torch.testing.assert_close(found, found.mT)


def test_without_a_finite_weight_or_estimate_there_is_no_bound() -> None:
    for spoil in (torch.nan, torch.inf):
        for name in ("weight", "bias", "norm"):
            block = make(VECTOR)
            (block.norm.norm if name == "norm" else getattr(block, name).data[0]).fill_(spoil)
            with pytest.raises(InvalidInputError):
                block.lipschitz_bound()
            assert [g.status for g in block.guarantees()] == ["falsified"]
    block = make(VECTOR)
    block.weight.data.fill_(torch.nan)
    with pytest.raises(InvalidInputError):
        block.renormalize()


def test_guarantees_give_the_bound_as_it_stands() -> None:
    block = make(VECTOR, time=100.0)
    block.norm.norm.mul_(0.7)
    (guarantee,) = block.guarantees()
    assert guarantee.status == "verified"
    assert repr(block.lipschitz_bound()) in guarantee.detail
    assert isinstance(block, BoundsLipschitz)
    assert isinstance(block, Renormalizable)


# The flow


@settings(max_examples=40, deadline=None)
@given(
    norm=st.floats(0.05, 20),
    time=st.floats(0.05, 5),
    max_steps=st.integers(1, 6),
    slope=st.sampled_from([1.0, 0.25]),
)
def test_steps_are_as_few_as_the_limit_allows_and_no_longer(
    norm: float, time: float, max_steps: int, slope: float
) -> None:
    block = make(VECTOR, time=time, max_steps=max_steps)
    calls = []

    def counted(x: Tensor) -> Tensor:
        calls.append(x)
        return slope * torch.relu(x)

    block.activation = Activation("counted", counted, largest_slope=slope)
    block.weight.data.mul_(1e-3)  # no entry of which exceeds the norm
    block.norm.norm.fill_(norm)
    z = states(VECTOR, 3)
    found = block(z)
    needed = math.ceil(time * slope * norm**2 / 2 * (1 - 1e-12))
    n = min(max_steps, max(1, needed))
    assert len(calls) == n
    h = min(time / n, 2 / (slope * norm**2))
    for _ in range(n):
        z = z - h * slope * torch.relu(z @ block.weight.T + block.bias) @ block.weight
    torch.testing.assert_close(found, z)


def test_many_short_blocks_follow_the_exact_flow() -> None:
    time, z = 0.7, states(VECTOR, 1)
    block = make(VECTOR, activation="tanh")
    A, b = block.weight.detach().numpy(), block.bias.detach().numpy()
    exact = solve_ivp(
        lambda t, z: -A.T @ torch.tanh(torch.from_numpy(A @ z + b)).numpy(),
        (0, time),
        z[0].numpy(),
        rtol=1e-10,
        atol=1e-12,
    ).y[:, -1]
    errors = []
    for count in (100, 200, 400):
        block.time, out = time / count, z
        for _ in range(count):
            out = block(out)
        errors.append(float((out[0].detach() - torch.from_numpy(exact)).norm()))
    assert errors[-1] < 5e-3
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("factor", [0.1, 1.0, 1.7, 30.0, torch.nan])
def test_a_compiled_block_makes_the_same_steps(factor: float) -> None:
    block = make(VECTOR, time=1.0, max_steps=4)
    block.norm.norm.mul_(factor)
    z = states(VECTOR, 3)
    compiled = torch.compile(block, fullgraph=True, backend="eager")
    assert torch.equal(compiled(z).nan_to_num(), block(z).nan_to_num())
    assert bool(block(z).isnan().all()) == math.isnan(factor)


def test_blocks_of_different_step_counts_stack_under_vmap() -> None:
    blocks = [make(IMAGE, seed, time=1.0, max_steps=4) for seed in range(3)]
    for block, norm in zip(blocks, (0.5, 2.0, 50.0), strict=True):
        block.norm.norm.fill_(norm)
    parameters, buffers = torch.func.stack_module_state(blocks)
    z = states(IMAGE, 2)
    out = torch.func.vmap(
        lambda p, b: torch.func.functional_call(blocks[0], (p, b), (z,)),
    )(parameters, buffers)
    for block, found in zip(blocks, out, strict=True):
        torch.testing.assert_close(found, block(z))


@pytest.mark.parametrize("max_steps", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_block_exports(shape: tuple[int, ...], max_steps: int) -> None:
    block, z = make(shape, max_steps=max_steps), states(shape, 3)
    exported = torch.export.export(block, (z,)).module()
    torch.testing.assert_close(exported(z), block(z))


@pytest.mark.parametrize("max_steps", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_agree_with_differences(shape: tuple[int, ...], max_steps: int) -> None:
    block = make(shape, activation="tanh", max_steps=max_steps)
    z = states(shape, 2).requires_grad_()

    def call(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(block, {"weight": weight, "bias": bias}, (z,))

    assert torch.autograd.gradcheck(call, (z, block.weight, block.bias))


def test_gradients_of_a_converged_training_step_count_in_the_norm() -> None:
    block = make(VECTOR, activation="tanh", time=100.0, power_iterations=300).train()
    z = states(VECTOR, 2)

    def call(weight: Tensor) -> Tensor:
        return torch.func.functional_call(block, {"weight": weight}, (z,))

    assert torch.autograd.gradcheck(call, (block.weight,), rtol=1e-3, atol=1e-5)


# Extremes, and what is kept


@pytest.mark.parametrize("mode", ["training", "renormalized", "edited"])
@pytest.mark.parametrize("max_steps", [1, 3])
@pytest.mark.parametrize("value", [0.0, 1.0, 1e-20, 1e20, 1e30, -1e30])
@pytest.mark.parametrize("shape", SHAPES)
def test_extreme_weights_make_no_nan(
    shape: tuple[int, ...], value: float, max_steps: int, mode: str
) -> None:
    block = make(shape, max_steps=max_steps).float()
    with torch.no_grad():
        block.weight.fill_(value)
    if mode != "edited":
        block.renormalize()
    z = states(shape, 4).float().requires_grad_()
    out = block.train(mode == "training")(z)
    out.square().sum().backward()
    for tensor in (out, z.grad, block.weight.grad, block.bias.grad):
        assert tensor is not None
        assert bool(tensor.isfinite().all())
    if value == 0 or abs(value) == 1e-20:
        torch.testing.assert_close(out, z)
    if mode == "renormalized":
        assert block.lipschitz_bound() <= 1 + 1e-7
    assert math.isfinite(block.lipschitz_bound())


def test_a_block_leaves_zero_weights_by_its_gradient() -> None:
    block = make(VECTOR).train()
    with torch.no_grad():
        block.weight.zero_()
    out = block(states(VECTOR, 4))
    assert torch.equal(out, states(VECTOR, 4))
    out.square().sum().backward()
    assert float(block.weight.grad.abs().max()) > 0


@pytest.mark.parametrize("shape", SHAPES)
def test_the_state_dict_carries_the_estimate(shape: tuple[int, ...]) -> None:
    block, other = make(shape, 0, time=50.0), make(shape, 1, time=50.0)
    block.norm.norm.mul_(0.8)
    z = states(shape, 4)
    assert not torch.allclose(block(z), other(z))
    other.load_state_dict(block.state_dict())
    assert torch.equal(block(z), other(z))
    assert block.lipschitz_bound() == other.lipschitz_bound()
    assert torch.equal(copy.deepcopy(block)(z), block(z))


def test_only_training_moves_the_estimate() -> None:
    block = make(VECTOR)
    block.weight.data.mul_(3)
    before = {name: buffer.clone() for name, buffer in block.named_buffers()}
    first = block(states(VECTOR, 2))
    assert torch.equal(block(states(VECTOR, 2)), first)
    assert all(torch.equal(buffer, before[name]) for name, buffer in block.named_buffers())
    block.train()(states(VECTOR, 2))
    assert not torch.equal(block.norm.norm, before["norm.norm"])


@pytest.mark.parametrize(
    ("factory", "shape", "options", "message"),
    [
        (gradient_flow, IMAGE, {}, "gradient_flow_conv"),
        (gradient_flow_conv, VECTOR, {}, "there is gradient_flow"),
        (gradient_flow, VECTOR, {"time": 0}, "time"),
        (gradient_flow, VECTOR, {"time": 1e40}, "time"),
        (gradient_flow, VECTOR, {"max_steps": 0}, "max_steps"),
        (gradient_flow, VECTOR, {"activation": "gelu"}, "slopes"),
        (gradient_flow, VECTOR, {"power_iterations": 0}, "power_iterations"),
        (gradient_flow, VECTOR, {"bias": 1}, "bias"),
        (gradient_flow_conv, IMAGE, {"kernel_size": 2}, "odd"),
        (gradient_flow_conv, IMAGE, {"padding_mode": "reflect"}, "border"),
    ],
)
def test_options_out_of_range_are_refused(
    factory: Any, shape: tuple[int, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidOptionError, match=message):
        factory(shape, **options)


def test_states_of_another_shape_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="states have shape"):
        make(VECTOR)(torch.zeros(2, 6))


# Training


def _trained(shape: tuple[int, ...]) -> tuple[nn.Sequential, Tensor]:
    """Return 20 blocks after 200 steps of Adam at 1e-2 on a made-up classification, and states."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        factory = gradient_flow if len(shape) == 1 else gradient_flow_conv
        model = nn.Sequential(*(factory(shape) for _ in range(20))).train()
        head = nn.Linear(math.prod(shape), 3)
        z = torch.randn(1000, *shape)
        y = (3 * z.flatten(1)[:, :3] * z.flatten(1)[:, -3:]).argmax(1)
        optimizer = torch.optim.Adam([*model.parameters(), *head.parameters()], lr=1e-2)
        for step in range(200):
            rows = slice(100 * (step % 10), 100 * (step % 10) + 100)
            loss = nn.functional.cross_entropy(head(model(z[rows]).flatten(1)), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval(), z


@pytest.mark.parametrize("shape", [(8,), (2, 3, 3)])
def test_twenty_trained_blocks_stay_within_their_bounds_and_renormalize_to_one(
    shape: tuple[int, ...],
) -> None:
    model, points = _trained(shape)

    def products() -> tuple[float, float]:
        true, certified, z = 1.0, 1.0, points.double()
        for block in copy.deepcopy(model).double():  # the same numbers, evaluated more exactly
            found = largest(block, z)
            assert found <= block.lipschitz_bound() * (1 + 1e-9)
            true *= found
            with torch.no_grad():
                z = block(z)
        for block in model:
            certified *= block.lipschitz_bound()
        return true, certified

    true, certified = products()
    assert 1 - 1e-6 <= true <= certified * (1 + 1e-9)
    assert certified > 1 + 1e-4  # the estimates lag: without bounds of their own nobody would know
    assert stabnet.renormalize(model) == 20
    true, certified = products()
    assert true <= certified * (1 + 1e-9)
    assert certified <= 1 + 1e-5
