from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stabnet_gradient_flow import operator, rescaled_rows
from torch import Tensor

# Channels, image, kernel: images wider and narrower than the kernel and its autocorrelation.
ZEROS = [
    ((3, 6, 5), 1, "zeros"),
    ((2, 7, 6), 3, "zeros"),
    ((2, 2, 3), 3, "zeros"),
    ((2, 3, 1), 5, "zeros"),
    ((1, 9, 9), 5, "zeros"),
]
CIRCULAR = [
    ((3, 4, 5), 1, "circular"),
    ((2, 5, 6), 3, "circular"),
    ((2, 3, 4), 3, "circular"),
    ((2, 5, 5), 5, "circular"),
    ((1, 9, 10), 5, "circular"),
]
GEOMETRIES = [((5,), 3, "zeros"), *ZEROS, *CIRCULAR]


def numbers(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def explicit(a, weight: Tensor) -> Tensor:
    """Return the matrix of an operator, a column for every entry of a state."""
    size = torch.Size(a.state_shape).numel()
    basis = torch.eye(size, dtype=weight.dtype).view(size, *a.state_shape)
    return a(weight, basis).flatten(1).T


@pytest.mark.parametrize(("state_shape", "kernel", "padding"), GEOMETRIES)
@pytest.mark.parametrize("spread", [0.0, 2.0])
def test_diagonal_dominates_the_gram_matrix(state_shape, kernel, padding, spread):
    a = operator(state_shape, 4, kernel, padding)
    weight, log_q = numbers(0, *a.weight_shape), spread * numbers(1, 4)
    rescaled, norms = rescaled_rows(weight, log_q)
    pixels = torch.Size(a.hidden_shape[1:]).numel()
    A = explicit(a, weight)
    gap = torch.diag((norms**2).repeat_interleave(pixels)) - A @ A.T
    assert torch.linalg.eigvalsh(gap).min() >= -1e-12 * (norms**2).max()
    B = explicit(a, rescaled)
    torch.testing.assert_close(norms.repeat_interleave(pixels)[:, None] * B, A)
    assert torch.linalg.matrix_norm(B, 2) <= 1 + 1e-12


@pytest.mark.parametrize(("state_shape", "kernel"), [((5,), 3), ((2, 5, 6), 3), ((1, 9, 10), 5)])
def test_norms_are_the_weighted_sums_of_the_explicit_gram_matrix(state_shape, kernel):
    # Circular images that the correlation of two kernels just fits in: nothing meets, nothing cut.
    a = operator(state_shape, 4, kernel, "circular")
    weight, log_q = numbers(2, *a.weight_shape), numbers(3, 4)
    A = explicit(a, weight)
    pixels = len(A) // 4
    q = log_q.exp().repeat_interleave(pixels)
    sums = ((A @ A.T).abs() * q / q[:, None]).sum(1)
    norms = rescaled_rows(weight, log_q)[1]
    torch.testing.assert_close(norms.square().repeat_interleave(pixels), sums)


def test_orthogonal_rows_are_divided_by_their_norms():
    lengths = torch.tensor([1e-3, 1.0, 3.0, 1e2]).double()
    rows = torch.linalg.qr(numbers(4, 6, 6))[0][:4] * lengths[:, None]
    rescaled, norms = rescaled_rows(rows, numbers(5, 4))
    torch.testing.assert_close(rescaled @ rescaled.T, torch.eye(4).double())
    torch.testing.assert_close(norms, lengths)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    exponents=st.lists(st.integers(-30, 20), min_size=4, max_size=4),
    logs=st.lists(st.floats(-1e30, 1e30), min_size=4, max_size=4),
    kernel=st.sampled_from([None, 1, 3]),
)
def test_norm_is_at_most_one_for_rows_and_q_of_any_size(seed, exponents, logs, kernel):
    shape = (4, 6) if kernel is None else (4, 2, kernel, kernel)
    weight = numbers(seed, *shape, dtype=torch.float32)
    weight *= 10.0 ** torch.tensor(exponents).view(-1, *[1] * (len(shape) - 1))
    weight[0] = weight[1] * 10.0 ** (exponents[0] // 2)  # correlated, whatever their sizes
    log_q = torch.tensor(logs)
    weight.requires_grad_(), log_q.requires_grad_()
    rescaled, norms = rescaled_rows(weight, log_q)
    state_shape = (6,) if kernel is None else (2, 5, 5)
    a = operator(state_shape, 4, kernel or 3)
    assert torch.linalg.matrix_norm(explicit(a, rescaled.detach().double()), 2) <= 1 + 1e-6
    assert (norms > 0).all()
    for gradient in torch.autograd.grad((rescaled * rescaled.detach()).sum(), (weight, log_q)):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("shape", [(4, 3), (3, 2, 3, 3)])
def test_gradients_are_those_of_the_formula(shape):
    weight, log_q = numbers(5, *shape), numbers(6, shape[0])
    assert torch.autograd.gradcheck(
        rescaled_rows, (weight.requires_grad_(), log_q.requires_grad_())
    )


@pytest.mark.parametrize("value", [0.0, 1.0, 1e20, 1e-20])
@pytest.mark.parametrize("shape", [(4, 3), (3, 2, 3, 3)])
def test_constant_weights_of_any_size_are_rescaled_to_finite_ones(shape, value):
    weight = torch.full(shape, value, requires_grad=True)
    rescaled, norms = rescaled_rows(weight)
    (rescaled.sum() + norms.sum() / (1 + value)).backward()
    for x in (rescaled, norms, weight.grad):
        assert x.isfinite().all()
    assert bool(rescaled.any()) == (value != 0)
