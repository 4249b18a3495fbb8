"""The norm estimate: from below, converging, differentiable, and certified when asked to be."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stabnet_gradient_flow import NormEstimate, Operator, operator

from stabnet import InvalidInputError

SHAPES = [(5,), (2, 5, 4)]


def exact(op: Operator, weight: torch.Tensor) -> torch.Tensor:
    size = torch.Size(op.state_shape).numel()
    units = torch.eye(size, dtype=weight.dtype).view(size, *op.state_shape)
    norm: torch.Tensor = torch.linalg.matrix_norm(op(weight, units).flatten(1), 2)
    return norm


def weights(op: Operator, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(op.weight_shape, generator=generator, dtype=torch.float64).to(dtype)


def estimate(op: Operator, weight: torch.Tensor, iterations: int = 1) -> NormEstimate:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return NormEstimate(op, weight.float(), iterations).to(weight.dtype)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**20), shape=st.sampled_from(SHAPES))
def test_the_estimate_never_exceeds_the_norm(seed: int, shape: tuple[int, ...]) -> None:
    op = operator(shape, 3)
    norm = estimate(op, weights(op, seed))
    other = weights(op, seed + 1)  # as if by a large step of training
    largest = float(exact(op, other))
    for _ in range(3):
        assert 0 < float(norm(other)) <= largest * (1 + 1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_estimate_converges_to_the_norm_over_calls(shape: tuple[int, ...]) -> None:
    op = operator(shape, 3)
    weight = weights(op, 0)
    norm = estimate(op, weights(op, 1))
    errors = [float(exact(op, weight) - norm(weight)) for _ in range(400)]
    assert errors[0] > 1e-4
    assert abs(errors[-1]) < 1e-9
    assert float(norm.norm) == pytest.approx(float(exact(op, weight)), rel=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_gradient_of_a_converged_estimate_is_that_of_the_norm(shape: tuple[int, ...]) -> None:
    op = operator(shape, 3)
    weight = weights(op, 0).requires_grad_()
    norm = estimate(op, weight.detach(), iterations=500)
    (found,) = torch.autograd.grad(norm(weight), weight)
    (expected,) = torch.autograd.grad(exact(op, weight), weight)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("value", [0.0, 1.0, 1e20, -1e-20, 1e30, 1e-38])
@pytest.mark.parametrize("shape", SHAPES)
def test_extreme_weights_have_a_finite_estimate_and_gradient(
    shape: tuple[int, ...], value: float
) -> None:
    op = operator(shape, 3)
    weight = torch.full(op.weight_shape, value, requires_grad=True)
    norm = estimate(op, weight.detach())
    found = norm(weight)
    (gradient,) = torch.autograd.grad(found, weight)
    assert bool(gradient.isfinite().all())
    assert float(found.detach()) == pytest.approx(
        float(exact(op, weight.detach().double())), rel=1e-4
    )


@pytest.mark.parametrize("value", [0.0, torch.nan])
def test_the_estimate_recovers_from_weights_that_were_zero_or_no_numbers(value: float) -> None:
    op = operator((5,), 3)
    norm = estimate(op, weights(op, 0))
    norm(torch.full(op.weight_shape, value, dtype=torch.float64))
    assert bool(norm.vector.isfinite().all())
    weight = weights(op, 0)
    for _ in range(200):
        norm(weight)
    assert float(norm.norm) == pytest.approx(float(exact(op, weight)), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_certifying_puts_an_upper_bound_into_the_buffer(dtype: torch.dtype) -> None:
    for shape in SHAPES:
        op = operator(shape, 3)
        weight = weights(op, 2, dtype)
        norm = estimate(op, weight)
        certified = norm.certify(weight)
        assert certified == float(norm.norm)
        assert certified >= float(exact(op, weight.double())) * (1 + torch.finfo(dtype).eps)


def test_weights_that_are_not_finite_are_not_certified() -> None:
    op = operator((5,), 3)
    norm = estimate(op, weights(op, 0))
    before = float(norm.norm)
    with pytest.raises(InvalidInputError):
        norm.certify(torch.full(op.weight_shape, torch.inf, dtype=torch.float64))
    assert float(norm.norm) == before
